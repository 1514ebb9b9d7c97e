"""Where spans go: an exporter as OpenTelemetry's own environment variables describe it."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from guardrail.errors import ConfigurationError, MissingExtraError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SpanExporter

_ASKING = (
    "OTEL_EXPORTER_OTLP_ENDPOINT",
    "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT",
    "OTEL_TRACES_EXPORTER",
)


def asked_for(environ: Mapping[str, str] = os.environ) -> bool:
    """Whether the environment names a place for spans, and does not switch them off."""
    if environ.get("OTEL_SDK_DISABLED", "").lower() == "true":
        return False
    return environ.get("OTEL_TRACES_EXPORTER") != "none" and any(map(environ.get, _ASKING))


def tracer_provider(version: str) -> TracerProvider:
    """What makes and sends spans (OTLP over HTTP, to localhost:4318 unless told otherwise).

    It is nobody else's: the process's global provider is left alone. Shut it down at the end.

    Raises:
        MissingExtraError: the extra `otel` is not installed.
        ConfigurationError: an exporter other than `otlp` and `console` is asked for.
    """
    try:
        from opentelemetry.sdk.resources import Resource

        from guardrail.observe.tracing import BoundedProvider
    except ModuleNotFoundError as error:
        _refuse_missing(error)
        raise
    told = {"service.version": version}
    if not os.environ.get("OTEL_SERVICE_NAME"):
        told["service.name"] = "guardrail-vlm"
    return BoundedProvider(_exporter(), Resource.create(told))


def _exporter() -> SpanExporter:
    name = os.environ.get("OTEL_TRACES_EXPORTER") or "otlp"
    if name == "console":
        from opentelemetry.sdk.trace.export import ConsoleSpanExporter

        return ConsoleSpanExporter()
    if name != "otlp":
        raise ConfigurationError(
            f"OTEL_TRACES_EXPORTER={name!r} is not known here; use otlp, console or none"
        )
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    except ModuleNotFoundError as error:
        _refuse_missing(error)
        raise
    return OTLPSpanExporter()


def _refuse_missing(error: ModuleNotFoundError) -> None:
    """Name the extra; an installed package that misses one of its own is another problem."""
    name = error.name or ""
    if name.partition(".")[0] == "opentelemetry":
        raise MissingExtraError(name, extra="otel") from error
