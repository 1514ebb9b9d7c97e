from __future__ import annotations

import threading

import pytest

pytest.importorskip("opentelemetry.sdk")

from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult

from guardrail.observe.provider import BoundedProvider


class Slow(SpanExporter):
    """An exporter that tries until it is told to stop."""

    def __init__(self):
        self.told = threading.Event()

    def export(self, spans):
        self.told.wait(20)
        return SpanExportResult.FAILURE

    def shutdown(self):
        self.told.set()


def test_a_collector_that_is_away_does_not_keep_a_server_from_ending(caplog):
    exporter = Slow()
    provider = BoundedProvider(exporter, Resource({}), last_s=0.05)
    provider.get_tracer("test").start_span("one").end()
    provider.shutdown()
    assert exporter.told.is_set()
    assert "could not be sent" in caplog.text
    assert not [t for t in threading.enumerate() if t.name == "guardrail-spans"]


def test_spans_that_wait_are_sent_at_the_end(caplog):
    sent = []

    class Quick(SpanExporter):
        def export(self, spans):
            sent.extend(spans)
            return SpanExportResult.SUCCESS

    provider = BoundedProvider(Quick(), Resource({}))
    provider.get_tracer("test").start_span("one").end()
    provider.shutdown()
    assert [span.name for span in sent] == ["one"]
    assert "could not" not in caplog.text
