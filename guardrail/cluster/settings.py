"""What a deployment of replicas runs, where it is reached, and how it grows."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from guardrail.errors import ConfigurationError
from guardrail.policy import Policy
from guardrail.server.keys import read_keys
from guardrail.server.settings import Engine, Listening, ServerSettings

_FILE: dict[str, Any] = {"metavar": "FILE", "exists": True, "dir_okay": False}
_ACCESS: dict[str, Any] = {"panel": "Who may ask"}
_ADDRESS: dict[str, Any] = {"panel": "Address"}
_NO_OPTION: dict[str, Any] = {"option": False}  # `guardrail cluster start` has the others


class ClusterSettings(BaseModel):
    """One deployment's settings, as a configuration file of Ray Serve has them in `args`.

    Immutable; times are in seconds. The files named are read on the cluster's machines and have the
    same paths on all of them.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: str = Field(description="a folder or hub id of the model")
    artefact: str = Field(description="the fitted file, or its hub id")
    artefact_id: str | None = Field(
        default=None,
        description="the artefact's id; none: that of the file when it is deployed",
        json_schema_extra=_NO_OPTION,
    )
    name: str = Field(
        default="guardrail", pattern=r"^[A-Za-z0-9_-]{1,40}$", description="The deployment's name."
    )
    policy: Path | Policy | None = Field(
        default=None,
        description="Rules in TOML, YAML or JSON. Default: GUARDRAIL_POLICY_* variables.",
        json_schema_extra=_FILE,
    )
    loading: dict[str, Any] = Field(
        default_factory=dict,
        description="how the model is loaded: keywords of `load_model`, or of vLLM's engine",
        json_schema_extra=_NO_OPTION,
    )
    engine: Engine = Field(default="transformers", description="Which runs the model.")
    allow_mismatch: bool = Field(
        default=False, description="Use an artefact that was fitted on another checkpoint."
    )
    audit: Path | None = Field(
        default=None,
        description="A file of verdicts for each replica.",
        json_schema_extra={"metavar": "FOLDER"},
    )
    keys_file: Path | None = Field(
        default=None,
        description="name:token lines (or name:sha256:HEX); only their bearers may ask. Those of "
        "name+trusted:token are told scores. The variable GUARDRAIL_API_KEYS holds the same "
        "between commas.",
        json_schema_extra=_ACCESS | _FILE | {"name": "api_keys", "env": "GUARDRAIL_API_KEYS_FILE"},
    )
    insecure_no_keys: bool = Field(
        default=False,
        description="Answer everybody, at any address: only behind something that asks for keys.",
        json_schema_extra=_ACCESS | {"env": "GUARDRAIL_SERVE_INSECURE_NO_KEYS"},
    )
    host: str = Field(default="0.0.0.0", description="the address at which Serve's proxies listen")
    server: ServerSettings = Field(
        default=ServerSettings(),
        description="what each replica accepts, but for its keys",
        json_schema_extra=_NO_OPTION,
    )

    replicas: int = Field(default=1, ge=1, description="How many; each has its own model.")
    max_replicas: int | None = Field(
        default=None, ge=1, description="Follow the load up to this many."
    )
    target_ongoing: float = Field(
        default=8.0, gt=0, description="Requests of a replica at once, when they follow the load."
    )
    cpus: float = Field(default=1.0, ge=0, description="Processors of each replica.")
    gpus: float = Field(default=0.0, ge=0, description="GPUs of each replica; a share will do.")
    health_s: float = Field(default=5.0, gt=0, description="Seconds between health checks.")

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
        default="127.0.0.1",
        description="The address to listen at; others than this machine's loopback need "
        "--api-keys.",
        json_schema_extra=_ADDRESS | {"env": "GUARDRAIL_SERVE_HOST"},
    )
    port: int = Field(
        default=Listening.model_fields["port"].default,
        ge=0,
        le=65_535,
        description="0: a free one.",
        json_schema_extra=_ADDRESS | {"env": "GUARDRAIL_SERVE_PORT"},
    )
    address: str | None = Field(
        default=None,
        description="A Ray cluster; default: a new one, on loopback.",
        json_schema_extra={"metavar": "HOST:PORT"},
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

    policy, keys = settings.policy, read_keys(settings.keys_file)
    insecure = settings.insecure_no_keys
    try:
        server = settings.server.kept_to(keys, settings.host, insecure=insecure)
    except ConfigurationError as error:
        raise ConfigurationError(f"{error} (in a file: keys_file, insecure_no_keys)") from error
    if not isinstance(policy, Policy):
        policy = policy_from_env() if policy is None else load_policy(policy)
    return Plan(settings, policy, server)


def whole_path(place: str) -> str:
    """The same place for a process that runs in another folder; a hub id as it is."""
    path = Path(place).expanduser()
    return str(path.resolve()) if path.exists() else place
