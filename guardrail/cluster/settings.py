"""What a deployment of replicas runs, where it is reached, and how it grows."""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from guardrail.errors import ConfigurationError
from guardrail.policy import Policy
from guardrail.server.settings import ServerSettings

_log = logging.getLogger(__name__)
KEYS_VARIABLE = "GUARDRAIL_API_KEYS"
"""Of the processes that build the application; see `ClusterSettings.keys_file`."""


class ClusterSettings(BaseModel):
    """One deployment's settings, as a configuration file of Ray Serve has them in `args`.

    Immutable; times are in seconds. The files named are read on the cluster's machines and have the
    same paths on all of them.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: str = Field(description="a folder or hub id of the model")
    artefact: str = Field(description="the fitted file, or its hub id")
    artefact_id: str | None = Field(
        default=None, description="the artefact's id; none: that of the file when it is deployed"
    )
    name: str = Field(
        default="guardrail", pattern=r"^[A-Za-z0-9_-]{1,40}$", description="the deployment's name"
    )
    policy: Path | Policy | None = Field(
        default=None, description="rules, or a file of them; none: GUARDRAIL_POLICY_* variables"
    )
    loading: dict[str, Any] = Field(
        default_factory=dict, description="how the model is loaded: keywords of `load_model`"
    )
    allow_mismatch: bool = Field(
        default=False, description="use an artefact that was fitted on another checkpoint"
    )
    audit: Path | None = Field(
        default=None, description="a folder with a file of verdicts for each replica"
    )
    keys_file: Path | None = Field(default=None, description="API keys; only their bearers may ask")
    insecure_no_keys: bool = Field(
        default=False, description="answer everybody: only behind something that asks for keys"
    )
    host: str = Field(default="0.0.0.0", description="the address at which Serve's proxies listen")
    server: ServerSettings = Field(
        default=ServerSettings(), description="what each replica accepts, but for its keys"
    )

    replicas: int = Field(default=1, ge=1, description="each has its own model")
    max_replicas: int | None = Field(
        default=None, ge=1, description="follow the load up to this many replicas"
    )
    target_ongoing: float = Field(
        default=8.0, gt=0, description="requests under way in a replica that growing aims at"
    )
    cpus: float = Field(default=1.0, ge=0, description="processors of each replica")
    gpus: float = Field(default=0.0, ge=0, description="GPUs of each replica; a share will do")
    health_s: float = Field(default=5.0, gt=0, description="seconds between health checks")

    @field_validator("server")
    @classmethod
    def _no_keys(cls, value: ServerSettings) -> ServerSettings:
        if value.keys:  # Ray writes the settings to its log and shows them
            raise ValueError("keys are read from keys_file alone; give its path")
        return value

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.max_replicas is not None and self.max_replicas < self.replicas:
            raise ValueError(
                f"max_replicas is {self.max_replicas}, less than replicas, {self.replicas}"
            )
        return self


class StartSettings(ClusterSettings):
    """A deployment, and the Ray it is started on: all that `guardrail cluster start` takes."""

    host: str = Field(
        default="127.0.0.1", description="the address to listen at; others than loopback need keys"
    )
    port: int = Field(default=8000, ge=0, le=65_535, description="the port to listen at")
    address: str | None = Field(
        default=None, description="HOST:PORT of a Ray cluster; none: a new one, on loopback"
    )


class UserConfig(BaseModel):
    """What Ray hands to the replicas again whenever it changes: the artefact to answer under."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    artefact: str = Field(description="where it is on every machine, or its hub id")
    artefact_id: str = Field(description="its id; a replica that finds another one does not answer")

    @classmethod
    def of(cls, artefact: str) -> Self:
        """An artefact as it is on this machine now.

        Raises:
            ArtefactError: there is none.
        """
        from guardrail.artefact import Artefact

        found = Artefact.from_pretrained(artefact)
        return cls(artefact=whole_path(artefact), artefact_id=found.artefact_id)


@dataclass(frozen=True, slots=True)
class Plan:
    """What every replica is sent: settings, and what the files they name held at the deployment."""

    settings: ClusterSettings
    policy: Policy
    server: ServerSettings


def plan_of(settings: ClusterSettings) -> Plan:
    """What the replicas are to run.

    Raises:
        ConfigurationError: a file cannot be used, or everybody could ask.
    """
    from guardrail.policy.files import load_policy, policy_from_env
    from guardrail.server.binding import hostnames, require_safe_bind, shown_scores

    policy, keys, insecure = settings.policy, _keys(settings.keys_file), settings.insecure_no_keys
    try:
        require_safe_bind(settings.host, keys, insecure=insecure)
    except ConfigurationError as error:
        raise ConfigurationError(f"{error} (in a file: keys_file, insecure_no_keys)") from error
    if not isinstance(policy, Policy):
        policy = policy_from_env() if policy is None else load_policy(policy)
    server = settings.server
    resolved = {
        "keys": keys,
        "hostnames": server.hostnames or hostnames(settings.host, keys, insecure=insecure),
        "expose_scores": shown_scores(server.expose_scores, keys, insecure=insecure),
    }
    return Plan(settings, policy, server.model_copy(update=resolved))


def whole_path(place: str) -> str:
    """The same place for a process that runs in another folder; a hub id as it is."""
    path = Path(place).expanduser()
    return str(path.resolve()) if path.exists() else place


def _keys(file: Path | None) -> tuple[Any, ...]:
    from guardrail.server.keys import keys_from_file, keys_from_text

    keys, warning = ((), None) if file is None else keys_from_file(file)
    if warning is not None:
        _log.warning("%s", warning)
    listed = os.environ.get(KEYS_VARIABLE)
    return keys + keys_from_text(listed, source=KEYS_VARIABLE) if listed else keys
