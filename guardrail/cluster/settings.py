"""What a cluster of replicas runs, and how it grows."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from guardrail.server.settings import ServerSettings

if TYPE_CHECKING:
    from guardrail.cluster.orders import Pin
    from guardrail.policy import Policy


class ClusterSettings(BaseModel):
    """One deployment's settings. Immutable; times are in seconds.

    Paths are the same on every machine. `artefact_id` is read from the artefact by whoever deploys,
    where it is left out; a replica that finds another artefact there does not serve. With
    `max_replicas` the number of replicas follows the load, from `replicas` on.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: str
    artefact: str
    artefact_id: str | None = None
    name: str = Field(default="guardrail", pattern=r"^[A-Za-z0-9_-]{1,40}$")
    policy: Path | None = Field(default=None, description="a file; None: the environment's")
    loading: dict[str, Any] = Field(default_factory=dict, description="for `load_model`")
    allow_mismatch: bool = False
    audit: Path | None = Field(default=None, description="a folder; each replica has a file there")
    keys_file: Path | None = Field(default=None, description="API keys, read by who deploys")
    insecure_no_keys: bool = Field(default=False, description="where something in front asks")
    server: ServerSettings = ServerSettings()

    replicas: int = Field(default=1, ge=1)
    max_replicas: int | None = Field(default=None, ge=1)
    target_ongoing: float = Field(default=8.0, gt=0, description="per replica, when it follows")
    cpus: float = Field(default=1.0, ge=0, description="of each replica")
    gpus: float = Field(default=0.0, ge=0, description="of each replica")

    lease_s: float = Field(default=5.0, ge=0.5, description="a replica without contact serves on")
    prepare_s: float = Field(default=60.0, gt=0, description="for a new artefact to be loaded")
    pause_s: float = Field(default=10.0, gt=0, description="in which answers may begin no more")
    health_s: float = Field(default=5.0, gt=0, description="between health checks")

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.max_replicas is not None and self.max_replicas < self.replicas:
            raise ValueError(
                f"max_replicas is {self.max_replicas}, less than replicas, {self.replicas}"
            )
        return self


@dataclass(frozen=True, slots=True)
class Plan:
    """What every replica is sent: settings, and what the files they name held at the deployment."""

    settings: ClusterSettings
    pin: Pin
    policy: Policy
    server: ServerSettings
