"""Spans belong to their requests, have the usual names, and go where the environment says."""

from __future__ import annotations

import importlib
import re
import sys
import threading
import time
import warnings
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from guardrail.errors import ConfigurationError, MissingExtraError
from guardrail.types import Action, Modality, Where

pytest.importorskip("opentelemetry.exporter.otlp.proto.http")

from opentelemetry import trace
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import StatusCode

from guardrail.observe import tracing as names
from guardrail.observe.tracing import BoundedProvider, Tracing, tracer_provider

ROOT = Path(__file__).parents[2]
CALLER = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


@pytest.fixture
def exporter():
    return InMemorySpanExporter()


@pytest.fixture
def tracing(exporter):
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    yield Tracing(provider.get_tracer("test"), model="tiny")
    provider.shutdown()


def served(tracing, request_id, headers=None, client=None):
    """A request's span, ended by the caller."""
    span = tracing.begin("POST", "http", headers or {})
    tracing.known_as(span, request_id, client)
    return span


def end(tracing, span, request_id, status=200):
    tracing.over(request_id)
    tracing.end(span, "POST /x", "/x", status)


def by_name(exporter):
    return {span.name: span for span in exporter.get_finished_spans()}


def test_a_check_is_a_child_of_its_request_which_is_the_callers(tracing, exporter, verdict_of):
    span = served(tracing, "r-1", {"traceparent": CALLER}, client="alice")
    tracing(verdict_of(), {"event": "verdict", "request_id": "r-1", "queue_s": 0.5})
    end(tracing, span, "r-1")
    request, check = by_name(exporter)["POST /x"], by_name(exporter)["guardrail.check"]
    assert request.parent.span_id == 0xB7AD6B7169203331
    assert check.parent.span_id == request.context.span_id
    assert check.context.trace_id == 0x0AF7651916CD43DD8448EB211C80319C
    assert request.attributes["guardrail.client"] == "alice"
    assert request.attributes["http.route"] == "/x"
    assert check.attributes["guardrail.queue_s"] == 0.5


def test_the_evaluation_tells_score_and_label_and_no_text(tracing, exporter, verdict_of):
    verdict = verdict_of(action=Action.PASS, would_be=Action.FLAG, score=1.25, mode="shadow")
    tracing(verdict, {"event": "verdict", "request_id": "r-1", "prompt": "pick a lock"})
    (check,) = exporter.get_finished_spans()
    (event,) = check.events
    assert event.name == "gen_ai.evaluation.result"
    assert event.attributes["gen_ai.evaluation.score.value"] == 1.25
    assert event.attributes["gen_ai.evaluation.score.label"] == "flag"
    assert event.attributes["gen_ai.evaluation.explanation"] == verdict.summary()
    assert check.attributes["guardrail.action"] == "pass"
    assert "lock" not in check.to_json()


@pytest.mark.parametrize("decided", [True, False])
def test_an_outage_is_an_error_and_no_finding(tracing, exporter, outage_of, decided):
    verdict, event = (outage_of(), "verdict") if decided else (None, "outage")
    tracing(verdict, {"event": event, "request_id": "r-1"})
    (check,) = exporter.get_finished_spans()
    assert check.status.status_code is StatusCode.ERROR
    assert check.attributes["error.type"] == "detector_failed"
    assert "gen_ai.evaluation.score.value" not in check.events[0].attributes


def test_an_answer_has_its_tokens_and_its_time(tracing, exporter, verdict_of):
    facts = {
        "event": "answer",
        "request_id": "r-1",
        "finish_reason": "length",
        "prompt_tokens": 21,
        "completion_tokens": 4,
        "total_s": 2.5,
    }
    tracing(verdict_of(), facts)
    (answer,) = exporter.get_finished_spans()
    assert answer.name == "chat tiny"
    assert answer.attributes["gen_ai.operation.name"] == "chat"
    assert answer.attributes["gen_ai.request.model"] == "tiny"
    assert answer.attributes["gen_ai.usage.input_tokens"] == 21
    assert answer.attributes["gen_ai.usage.output_tokens"] == 4
    assert answer.attributes["gen_ai.response.finish_reasons"] == ("length",)
    assert answer.end_time - answer.start_time == 2_500_000_000
    assert answer.end_time <= time.time_ns()


def test_an_answer_that_the_model_failed_under_is_an_error(tracing, exporter, verdict_of):
    tracing(verdict_of(), {"event": "answer", "request_id": "r-1", "finish_reason": "error"})
    (answer,) = exporter.get_finished_spans()
    assert answer.attributes["error.type"] == "model_failed"
    assert answer.status.status_code.name == "ERROR"


def test_items_of_a_request_are_its_children(tracing, exporter, verdict_of):
    span = served(tracing, "a-b")
    tracing(verdict_of(), {"event": "verdict", "request_id": "a-b-11"})
    end(tracing, span, "a-b")
    assert by_name(exporter)["guardrail.check"].parent.span_id == span.get_span_context().span_id


def test_an_unknown_request_is_a_trace_of_its_own(tracing, exporter, verdict_of):
    other = served(tracing, "r-1")
    with trace.use_span(other, end_on_exit=False):  # whatever the thread is at
        tracing(verdict_of(), {"event": "verdict", "request_id": "r-2"})
        tracing(verdict_of(), {"event": "verdict", "request_id": None})
    end(tracing, other, "r-1")
    checks = [s for s in exporter.get_finished_spans() if s.name == "guardrail.check"]
    assert [check.parent for check in checks] == [None, None]


def test_two_requests_at_once_under_one_id_get_no_child_of_each_other(
    tracing, exporter, verdict_of
):
    first, second = served(tracing, "same"), served(tracing, "same")
    tracing(verdict_of(), {"event": "verdict", "request_id": "same"})
    end(tracing, first, "same")
    end(tracing, second, "same")
    assert by_name(exporter)["guardrail.check"].parent is None
    third = served(tracing, "same")  # a retry later on
    tracing(verdict_of(), {"event": "verdict", "request_id": "same"})
    end(tracing, third, "same")
    last = [s for s in exporter.get_finished_spans() if s.name == "guardrail.check"][-1]
    assert last.parent.span_id == third.get_span_context().span_id


def test_a_record_that_comes_after_its_request_is_still_its_child(tracing, exporter, verdict_of):
    span = served(tracing, "r-1")
    end(tracing, span, "r-1")
    tracing(verdict_of(), {"event": "answer", "request_id": "r-1", "total_s": 1.0})
    assert by_name(exporter)["chat tiny"].parent.span_id == span.get_span_context().span_id


def test_requests_are_not_remembered_without_end(tracing, monkeypatch):
    monkeypatch.setattr("guardrail.observe.tracing._MOST", 5)
    for number in range(50):
        end(tracing, served(tracing, f"r{number}"), f"r{number}")
    assert len(tracing._parents) == 5
    assert not tracing._under_way


def test_threads_do_not_mix_requests(tracing, exporter, verdict_of):
    def one(name):
        for number in range(20):
            request_id = f"{name}{number}"
            span = served(tracing, request_id)
            tracing(verdict_of(), {"event": "verdict", "request_id": request_id})
            end(tracing, span, request_id)

    threads = [threading.Thread(target=one, args=(name,)) for name in "abcd"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    spans = exporter.get_finished_spans()
    requests = {s.attributes["guardrail.request_id"]: s for s in spans if s.name == "POST /x"}
    checks = [s for s in spans if s.name == "guardrail.check"]
    assert len(checks) == 80
    for check in checks:
        parent = requests[check.attributes["guardrail.request_id"]]
        assert check.parent.span_id == parent.context.span_id


NAMED = {
    key: value for key, value in vars(names).items() if key.isupper() and isinstance(value, str)
}


def listed(module):
    found = pytest.importorskip("opentelemetry.semconv") and importlib.import_module(module)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return {getattr(found, name) for name in dir(found) if name.isupper()}


@pytest.mark.parametrize("room", ["http", "url", "error"])
def test_the_stable_names_are_listed_as_stable(room):
    mine = {value for value in NAMED.values() if value.split(".")[0] == room}
    assert mine
    assert mine <= listed(f"opentelemetry.semconv.attributes.{room}_attributes")


def test_the_provisional_names_are_listed():
    mine = {v for v in NAMED.values() if v.startswith("gen_ai.")} - {names.EVALUATION_EVENT}
    assert mine <= listed("opentelemetry.semconv._incubating.attributes.gen_ai_attributes")


def test_every_other_attribute_is_in_our_own_room():
    values = {names.CHAT, names.PROVIDER_VALUE}
    rooms = {v.split(".")[0] for v in set(NAMED.values()) - values}
    assert rooms == {"http", "url", "error", "gen_ai", "guardrail"}


def test_names_of_the_conventions_stand_in_this_module_alone():
    others = {
        path.name
        for path in (ROOT / "guardrail").rglob("*.py")
        if re.search(r'"(gen_ai\.|error\.type|http\.request\.method)', path.read_text("utf-8"))
    }
    assert others == {"tracing.py"}


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


def test_a_provider_is_made_and_the_global_one_left_alone(monkeypatch):
    monkeypatch.delenv("OTEL_SERVICE_NAME", raising=False)
    monkeypatch.setenv("OTEL_TRACES_EXPORTER", "console")
    before = trace.get_tracer_provider()
    provider = tracer_provider("1.2.3")
    assert trace.get_tracer_provider() is before
    assert provider.resource.attributes["service.name"] == "guardrail-vlm"
    assert provider.resource.attributes["service.version"] == "1.2.3"
    provider.shutdown()


def test_the_services_name_is_the_operators(monkeypatch):
    monkeypatch.setenv("OTEL_SERVICE_NAME", "front")
    monkeypatch.setenv("OTEL_TRACES_EXPORTER", "console")
    provider = tracer_provider("1")
    assert provider.resource.attributes["service.name"] == "front"
    provider.shutdown()


def test_an_unknown_exporter_is_refused(monkeypatch):
    monkeypatch.setenv("OTEL_TRACES_EXPORTER", "jaeger")
    with pytest.raises(ConfigurationError, match="otlp, console or none"):
        tracer_provider("1")


@pytest.mark.parametrize(
    "missing", ["opentelemetry.sdk.trace", "opentelemetry.exporter.otlp.proto.http.trace_exporter"]
)
def test_without_the_extra_it_is_named(monkeypatch, missing):
    monkeypatch.setitem(sys.modules, missing, None)
    monkeypatch.delitem(sys.modules, "guardrail.observe.tracing")
    monkeypatch.delattr("guardrail.observe.tracing")  # so the first one is put back
    with pytest.raises(MissingExtraError, match=r"guardrail-vlm\[otel\]"):
        importlib.import_module("guardrail.observe.tracing")


def test_spans_arrive_at_a_collector_when_the_server_ends(monkeypatch):
    got = []

    class Collector(BaseHTTPRequestHandler):
        def do_POST(self):
            got.append((self.path, self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_words):
            pass

    with HTTPServer(("127.0.0.1", 0), Collector) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
        monkeypatch.delenv("OTEL_TRACES_EXPORTER", raising=False)
        provider = tracer_provider("1")
        provider.get_tracer("test").start_span("guardrail.check").end()
        provider.shutdown()
        server.shutdown()
        thread.join()
    ((path, body),) = got
    assert path == "/v1/traces"
    assert b"guardrail.check" in body
    assert b"guardrail-vlm" in body


def test_a_check_tells_where_its_score_is_from_without_the_words(tracing, exporter, verdict_of):
    where = Where(
        reading="window",
        message=1,
        role="tool",
        part=0,
        kind=Modality.TEXT,
        start=3,
        stop=9,
        words="pick a lock",
    )
    tracing(verdict_of(where=where), {"event": "verdict", "request_id": "r-1"})
    (check,) = exporter.get_finished_spans()
    places = {n: v for n, v in check.attributes.items() if n.startswith("guardrail.where.")}
    assert places == {
        "guardrail.where.reading": "window",
        "guardrail.where.message": 1,
        "guardrail.where.role": "tool",
        "guardrail.where.part": 0,
        "guardrail.where.kind": "text",
        "guardrail.where.start": 3,
        "guardrail.where.stop": 9,
        "guardrail.where.earlier": False,
    }
    assert "tokens 4 to 9" in check.to_json()
    assert "lock" not in check.to_json()
