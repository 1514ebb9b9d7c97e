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

_NO_OPTION: dict[str, Any] = {
    "option": False
}  # of `guardrail cluster start`, which has one for every other field


class ClusterSettings(BaseModel):
    """One deployment's settings. Immutable; times are in seconds.

    Paths are the same on every machine. `artefact_id` is read from the artefact by whoever deploys,
    where it is left out; a replica that finds another artefact there does not serve. With
    `max_replicas` the number of replicas follows the load, from `replicas` on.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: str
    artefact: str
    artefact_id: str | None = Field(default=None, json_schema_extra=_NO_OPTION)
    name: str = Field(
        default="guardrail",
        pattern=r"^[A-Za-z0-9_-]{1,40}$",
        description="The deployment's name.",
    )
    policy: Path | None = Field(
        default=None,
        description="Rules in TOML, YAML or JSON. Default: GUARDRAIL_POLICY_* variables.",
        json_schema_extra={"metavar": "FILE", "exists": True, "dir_okay": False},
    )
    loading: dict[str, Any] = Field(
        default_factory=dict, description="For `load_model`.", json_schema_extra=_NO_OPTION
    )
    allow_mismatch: bool = Field(
        default=False, description="Use an artefact that was fitted on another checkpoint."
    )
    audit: Path | None = Field(
        default=None,
        description="A file of verdicts for each replica.",
        json_schema_extra={"metavar": "FOLDER"},
    )
    keys_file: Path | None = Field(
        default=None, description="API keys, read by who deploys.", json_schema_extra=_NO_OPTION
    )
    insecure_no_keys: bool = Field(
        default=False,
        description="Something in front asks for keys.",
        json_schema_extra=_NO_OPTION,
    )
    server: ServerSettings = Field(default=ServerSettings(), json_schema_extra=_NO_OPTION)

    replicas: int = Field(default=1, ge=1, description="Each has its own model.")
    max_replicas: int | None = Field(
        default=None, ge=1, description="Follow the load up to this many."
    )
    target_ongoing: float = Field(
        default=8.0, gt=0, description="Requests of a replica at once, when they follow the load."
    )
    cpus: float = Field(default=1.0, ge=0, description="Of each replica.")
    gpus: float = Field(default=0.0, ge=0, description="Of each replica; a share will do.")

    lease_s: float = Field(
        default=5.0, ge=0.5, description="Seconds a replica answers without contact."
    )
    prepare_s: float = Field(
        default=60.0,
        gt=0,
        description="Seconds for all to load a new artefact.",
        json_schema_extra=_NO_OPTION,
    )
    pause_s: float = Field(
        default=10.0,
        gt=0,
        description="Seconds in which answers may begin no more.",
        json_schema_extra=_NO_OPTION,
    )
    health_s: float = Field(default=5.0, gt=0, description="Seconds between health checks.")

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
