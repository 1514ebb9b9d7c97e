from __future__ import annotations

import sys

import pytest

from guardrail.cli.serve_observe import observing
from guardrail.errors import MissingExtraError


@pytest.fixture(autouse=True)
def plain_environment(monkeypatch):
    for name in (
        "OTEL_TRACES_EXPORTER",
        "OTEL_EXPORTER_OTLP_ENDPOINT",
        "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT",
    ):
        monkeypatch.delenv(name, raising=False)


def test_counts_are_always_there_and_spans_only_if_asked_for():
    with observing("tiny", None, otel=False) as seen:
        assert seen._traces is None
        assert b"guardrail_outages_total 0.0" in seen.metrics.exposition(None)[0]


def test_the_option_and_the_environment_ask_for_spans(monkeypatch):
    pytest.importorskip("opentelemetry.sdk")
    monkeypatch.setenv("OTEL_TRACES_EXPORTER", "console")
    with observing("tiny", None, otel=False) as seen:
        assert seen._traces is not None
    monkeypatch.setenv("OTEL_TRACES_EXPORTER", "none")
    with observing("tiny", None, otel=False) as seen:
        assert seen._traces is None


def test_spans_without_their_extra_are_refused(monkeypatch):
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.trace", None)
    monkeypatch.delitem(sys.modules, "guardrail.observe.tracing", raising=False)
    with pytest.raises(MissingExtraError, match="otel"), observing("tiny", None, otel=True):
        pass
