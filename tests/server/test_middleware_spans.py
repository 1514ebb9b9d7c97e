"""Spans of a server's requests: whose they are, and what is not in them."""

from __future__ import annotations

import asyncio
import logging
from types import SimpleNamespace as Simple

import pytest

from guardrail.server import ServerSettings
from guardrail.server.keys import keys_from_text
from guardrail.server.middleware import Exchange, observed
from guardrail.server.observing import Observation

pytest.importorskip("opentelemetry.sdk")

from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import StatusCode

TOKEN = "0123456789abcdef0123456789abcdef"


@pytest.fixture
def exporter():
    return InMemorySpanExporter()


@pytest.fixture
def observation(exporter):
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    made = Observation(model="tiny", traces=provider)
    yield made
    made.close()


def chat(words, **changes):
    body = {"model": "guarded", "messages": [{"role": "user", "content": words}], "max_tokens": 3}
    return body | changes


def trace_id(number):
    return f"{number + 1:032x}"


async def test_fifty_requests_at_once_keep_their_spans_apart(
    guard_of, client_of, observation, exporter
):
    settings = ServerSettings(max_concurrent=64)
    async with client_of(guard_of(), settings, observation=observation) as client:

        async def ask(number):
            headers = {"traceparent": f"00-{trace_id(number)}-{number + 1:016x}-01"}
            body = chat("hello" * (1 + number % 3), stream=number % 2 == 0)
            told = await client.post("/v1/chat/completions", json=body, headers=headers)
            assert told.status_code == 200
            return told.headers["x-request-id"]

        ids = await asyncio.gather(*map(ask, range(50)))
    spans = exporter.get_finished_spans()
    for number, request_id in enumerate(ids):
        mine = [s for s in spans if s.attributes.get("guardrail.request_id") == request_id]
        assert {s.name for s in mine} == {
            "POST /v1/chat/completions",
            "guardrail.check",
            "chat tiny",
        }
        assert len(mine) == 3
        assert {f"{s.context.trace_id:032x}" for s in mine} == {trace_id(number)}
        (request,) = [s for s in mine if s.name.startswith("POST")]
        children = [s for s in mine if s is not request]
        assert {s.parent.span_id for s in children} == {request.context.span_id}
    assert len(spans) == 150


async def test_items_of_a_list_belong_to_its_request(guard_of, client_of, observation, exporter):
    async with client_of(guard_of(), observation=observation) as client:
        inputs = [{"input": "hello"}, {"input": "there"}]
        await client.post("/v1/checks", json={"inputs": inputs})
    spans = exporter.get_finished_spans()
    (request,) = [s for s in spans if s.name == "POST /v1/checks"]
    checks = [s for s in spans if s.name == "guardrail.check"]
    assert [s.parent.span_id for s in checks] == [request.context.span_id] * 2


async def test_neither_words_nor_keys_are_in_spans(guard_of, client_of, observation, exporter):
    settings = ServerSettings(keys=keys_from_text(f"alice:{TOKEN}", source="here"))
    headers = {"Authorization": f"Bearer {TOKEN}", "baggage": "zxqv=1"}
    async with client_of(guard_of(), settings, observation=observation) as client:
        await client.post("/v1/chat/completions?zxqv", json=chat("zxqv"), headers=headers)
        await client.post("/zxqv", headers=headers)
        await client.request("ZXQV", "/v1/models", headers=headers)
        await client.post("/v1/checks", json={"input": "zxqv"})
    told = [span.to_json() for span in exporter.get_finished_spans()]
    assert len(told) == 6
    assert not any("zxqv" in text.lower() or TOKEN in text for text in told)
    routes = {s.attributes.get("http.route") for s in exporter.get_finished_spans()} - {None}
    assert routes == {"/v1/chat/completions", "other", "/v1/models", "/v1/checks"}
    refused = [s for s in exporter.get_finished_spans() if s.name == "POST /v1/checks"]
    assert refused[0].attributes["http.response.status_code"] == 401
    assert "guardrail.client" not in refused[0].attributes


async def test_a_failed_detector_is_an_error_in_both_spans(
    guard_of, client_of, observation, exporter, broken_detector
):
    async with client_of(guard_of(), observation=observation) as client:
        await client.post("/v1/chat/completions", json=chat("hello"))
    spans = {s.name: s for s in exporter.get_finished_spans()}
    assert spans["POST /v1/chat/completions"].attributes["error.type"] == "503"
    assert spans["guardrail.check"].attributes["error.type"] == "detector_failed"
    assert not any("broken inside" in s.to_json() for s in spans.values())


async def test_an_exporter_that_fails_costs_no_answer(guard_of, client_of, caplog):
    class Broken(InMemorySpanExporter):
        def export(self, spans):
            raise OSError("collector away")

    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(Broken()))
    broken = Observation(traces=provider)
    with caplog.at_level(logging.CRITICAL, logger="opentelemetry"):
        async with client_of(guard_of(), observation=broken) as client:
            told = await client.post("/v1/chat/completions", json=chat("hello"))
    broken.close()
    assert told.status_code == 200


async def test_without_spans_nothing_of_opentelemetry_is_imported(guard_of, client_of, monkeypatch):
    import sys

    for name in [name for name in sys.modules if name.startswith("opentelemetry")]:
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.delitem(sys.modules, "guardrail.observe.tracing", raising=False)
    async with client_of(guard_of(), observation=Observation()) as client:
        assert (await client.post("/v1/checks", json={"input": "hello"})).status_code == 200


@pytest.fixture
def traced(around, observation):
    """`traced(app)`: the server's middleware with spans around any app."""
    return lambda app: around(app, observation)


def scope_of(**changes):
    named = [(b"x-request-id", b"r-1"), *changes.pop("headers", [])]
    return {"type": "http", "method": "POST", "path": "/x", "headers": named} | changes


async def receive():
    await asyncio.Event().wait()


async def send(_message):
    pass


async def answer(_scope, _receive, send):
    await send({"type": "http.response.start", "status": 200, "headers": []})


async def test_a_request_is_named_by_its_id_and_route(traced, observation, exporter):
    await traced(answer)(scope_of(route=Simple(path="/x/{y}")), receive, send)
    (span,) = exporter.get_finished_spans()
    assert span.name == "POST /x/{y}"
    assert dict(span.attributes) == {
        "http.request.method": "POST",
        "url.scheme": "http",
        "http.route": "/x/{y}",
        "http.response.status_code": 200,
        "guardrail.request_id": "r-1",
    }
    assert not observation.tracing._under_way


async def test_an_error_is_a_500_and_goes_on(observation, exporter):
    with pytest.raises(RuntimeError), observed(Exchange(scope_of(), send), observation):
        raise RuntimeError("zxqv")
    (span,) = exporter.get_finished_spans()
    assert span.attributes["http.response.status_code"] == 500
    assert span.attributes["error.type"] == "500"
    assert "zxqv" not in span.to_json()
    assert not observation.tracing._under_way


async def test_an_answer_that_is_cut_short_is_an_error(observation, exporter):
    exchange = Exchange(scope_of(), send)
    await answer(exchange.scope, receive, exchange.send)
    with pytest.raises(RuntimeError), observed(exchange, observation):
        raise RuntimeError("zxqv")
    (span,) = exporter.get_finished_spans()
    assert span.attributes["http.response.status_code"] == 200
    assert span.attributes["error.type"] == "RuntimeError"
    assert span.status.status_code is StatusCode.ERROR
    assert "zxqv" not in span.to_json()


async def test_a_request_given_up_ends_its_span(traced, observation, exporter):
    async def never(_scope, _receive, _send):
        await asyncio.Event().wait()

    task = asyncio.create_task(traced(never)(scope_of(), receive, send))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    (span,) = exporter.get_finished_spans()
    assert span.attributes["http.response.status_code"] == 499
    assert not observation.tracing._under_way


@pytest.mark.parametrize("traceparent", [b"nonsense", b"00-0-0-00", b"\xff\xfe", b""])
async def test_a_broken_traceparent_begins_a_trace(traced, observation, exporter, traceparent):
    headers = [(b"traceparent", traceparent)]
    await traced(answer)(scope_of(headers=headers, method="ZXQV"), receive, send)
    (span,) = exporter.get_finished_spans()
    assert span.parent is None
    assert span.attributes["http.request.method"] == "_OTHER"


async def test_other_connections_have_no_span(traced, observation, exporter):
    seen = []

    async def inner(scope, _receive, _send):
        seen.append(scope["type"])

    await traced(inner)({"type": "lifespan"}, None, None)
    assert seen == ["lifespan"]
    assert not exporter.get_finished_spans()


async def test_an_error_of_the_package_is_a_fault_whatever_python_calls_it(
    observation, exporter, monkeypatch
):
    class Bare(BaseException):
        pass

    monkeypatch.setattr("guardrail.server.middleware.GuardrailError", Bare)
    with pytest.raises(Bare), observed(Exchange(scope_of(), send), observation):
        raise Bare
    (span,) = exporter.get_finished_spans()
    assert span.attributes["http.response.status_code"] == 500
