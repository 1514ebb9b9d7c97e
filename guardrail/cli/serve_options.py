"""Options of `guardrail serve` beside the server's own settings, and what becomes of both."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from pydantic import Field, ValidationError

from guardrail.audit import AuditLog
from guardrail.cli.derived import Derived
from guardrail.cli.options import FILE, MODEL_HELP, Options
from guardrail.errors import ConfigurationError
from guardrail.server.settings import (
    Engine,
    LogFormat,
    LogLevel,
    UpstreamOptions,
    UpstreamSettings,
    read_key,
)

if TYPE_CHECKING:
    from guardrail.model.source import LoadingOptions
    from guardrail.server.service import Answerer, Service

ENV = "GUARDRAIL_SERVE_"
SERVED = Derived(env=ENV)
UPSTREAM = Derived(
    env=ENV, prefix="upstream_", panel="Upstream: check here, let another server answer"
)

Model = Annotated[str, typer.Argument(metavar="MODEL", envvar=f"{ENV}MODEL", help=MODEL_HELP)]
Artefact = Annotated[
    str,
    typer.Option(
        "--artefact",
        "-a",
        metavar="ARTEFACT",
        envvar=f"{ENV}ARTEFACT",
        help="The fitted file, or its hub id.",
    ),
]

EngineName = Annotated[
    Engine,
    typer.Option(envvar=f"{ENV}ENGINE", help="Which runs the model."),
]
VllmWords = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[-- VLLM OPTIONS]", help="With --engine vllm: options of `vllm serve`, behind --."
    ),
]

_log = logging.getLogger("guardrail.serve")
_ACCESS: dict[str, Any] = {"panel": "Who may ask"}


class KeyOptions(Options):
    """Who may ask."""

    api_keys: Path | None = Field(
        default=None,
        description="name:token lines (or name:sha256:HEX); only their bearers may ask. Those of "
        "name+trusted:token are told scores. The variable GUARDRAIL_API_KEYS holds the same "
        "between commas.",
        json_schema_extra=_ACCESS | FILE | {"env": "GUARDRAIL_API_KEYS_FILE"},
    )
    insecure_no_keys: bool = Field(
        default=False,
        description="Answer everybody, at any address: only behind something that asks for keys.",
        json_schema_extra=_ACCESS,
    )


class RecordOptions(Options):
    """The log, the record of verdicts, and spans."""

    audit: Path | None = Field(
        default=None,
        description="Append each verdict as a JSON line, without what was asked.",
        json_schema_extra={"metavar": "FILE", "dir_okay": False},
    )
    audit_max_bytes: int = Field(
        default=0, ge=0, description="Start the next --audit file at this size. 0: never."
    )
    audit_backups: int = Field(
        default=inspect.signature(AuditLog).parameters["backups"].default,
        ge=0,
        description="Older audit files kept.",
    )
    log_format: LogFormat = Field(
        default="json", description="A JSON object or key=value pairs a line, on stderr."
    )
    log_level: LogLevel = "info"
    otel: bool = Field(
        default=False,
        description="Send OpenTelemetry spans, to where the OTEL_* variables say (default: OTLP "
        "over HTTP to localhost:4318). On without this when they name an exporter or an endpoint.",
    )

    @contextmanager
    def audit_log(self) -> Iterator[AuditLog | None]:
        """The audit log, for the block; the lines it lost are told at its end."""
        if self.audit is None:
            if self.audit_max_bytes:
                raise typer.BadParameter("--audit-max-bytes needs --audit FILE")
            yield None
            return
        with AuditLog(
            self.audit, max_bytes=self.audit_max_bytes, backups=self.audit_backups
        ) as log:
            yield log
            if log.dropped:
                _log.error("%d audit lines were not written", log.dropped)


def engine_options(
    engine: EngineName, loading: LoadingOptions, words: Sequence[str]
) -> dict[str, Any]:
    """Who runs the model, and how; for `opened` in `guardrail.server.reload`.

    Raises:
        BadParameter: an option is of the other engine, vLLM's own affair, or the guard's.
    """
    if engine != "vllm":
        if words:
            raise typer.BadParameter(f"{words[0]!r}: what follows -- is for --engine vllm")
        return {"engine": engine, "options": dict(loading)}

    from guardrail.vllm.options import parsed

    if loading.device is not None:
        raise typer.BadParameter("--device is not for --engine vllm, which takes the GPUs it sees")
    given = loading.model_dump(exclude={"device"}, exclude_defaults=True)
    try:
        return {"engine": engine, "options": given | parsed(words)}
    except ConfigurationError as error:
        raise typer.BadParameter(str(error)) from None


class UpstreamKey(Options):
    """Where an upstream's key is."""

    key_env: str | None = Field(
        default=None,
        description="The variable that holds the upstream's key. Clients' own keys are never sent "
        "on.",
        json_schema_extra={"metavar": "VARIABLE"},
    )
    key_file: Path | None = Field(
        default=None, description="Or the file that holds it.", json_schema_extra=FILE
    )


def upstream_answerer(
    options: UpstreamOptions, key: UpstreamKey
) -> Callable[[Service], Answerer] | None:
    """What answers in the place of the guarded model; None without an upstream.

    Raises:
        ConfigurationError: a setting cannot hold, or the key is not where it should be.
    """
    if options.url is None:
        if key.key_env or key.key_file or options.models or options.unchecked:
            raise typer.BadParameter("--upstream-... options need --upstream URL")
        return None
    from guardrail.server.proxy import through

    try:
        upstream = UpstreamSettings(
            **dict(options), key=read_key(env=key.key_env, file=key.key_file)
        )
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False)[0]
        said = first["msg"].removeprefix("Value error, ")
        raise ConfigurationError(f"--upstream: {said}") from None
    return through(upstream)
