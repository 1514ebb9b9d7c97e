"""What `guardrail serve` tells its operators beside the log: counts always, spans if asked."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated

import typer

from guardrail.cli.serve_options import ENV

if TYPE_CHECKING:
    from guardrail.audit import AuditLog
    from guardrail.server.observing import Observation

Otel = Annotated[
    bool,
    typer.Option(
        "--otel",
        envvar=f"{ENV}OTEL",
        rich_help_panel="Log and audit",
        help="Send OpenTelemetry spans, to where the OTEL_* variables say (default: OTLP over HTTP "
        "to localhost:4318). On without this when they name an exporter or an endpoint.",
    ),
]


@contextmanager
def observing(model_name: str, log: AuditLog | None, *, otel: bool) -> Iterator[Observation]:
    """The server's metrics and spans, for the block; spans that wait are sent at its end.

    Raises:
        MissingExtraError: spans are asked for, and the extra `otel` is not installed.
    """
    from guardrail import __version__
    from guardrail.observe.exporting import asked_for, tracer_provider
    from guardrail.server.observing import Observation

    traces = tracer_provider(__version__) if otel or asked_for(os.environ) else None
    observation = Observation(model=model_name, audit_log=log, traces=traces)
    try:
        yield observation
    finally:
        observation.close()
