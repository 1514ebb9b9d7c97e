from __future__ import annotations

import asyncio
from types import SimpleNamespace as Simple

import pytest

pytest.importorskip("opentelemetry.sdk")

from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import StatusCode

from guardrail.observe.spans import NamedSpanMiddleware, SpanMiddleware
from guardrail.observe.tracing import Tracing


@pytest.fixture
def exporter():
    return InMemorySpanExporter()


@pytest.fixture
def tracing(exporter):
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    yield Tracing(provider.get_tracer("test"), model="tiny")
    provider.shutdown()


def scope_of(**changes):
    scope = {"type": "http", "method": "POST", "path": "/x", "headers": []}
    return scope | {"state": {"caller": Simple(request_id="r-1", client=None)}} | changes


async def send(_message):
    pass


async def answer(_scope, _receive, send):
    await send({"type": "http.response.start", "status": 200, "headers": []})


def around(app, tracing):
    return SpanMiddleware(NamedSpanMiddleware(app, tracing=tracing), tracing=tracing)


async def test_a_request_is_named_by_its_id_and_route(tracing, exporter):
    await around(answer, tracing)(scope_of(route=Simple(path="/x/{y}")), None, send)
    (span,) = exporter.get_finished_spans()
    assert span.name == "POST /x/{y}"
    assert dict(span.attributes) == {
        "http.request.method": "POST",
        "url.scheme": "http",
        "http.route": "/x/{y}",
        "http.response.status_code": 200,
        "guardrail.request_id": "r-1",
    }
    assert not tracing._under_way


async def test_an_error_is_a_500_and_goes_on(tracing, exporter):
    async def broken(_scope, _receive, _send):
        raise RuntimeError("zxqv")

    with pytest.raises(RuntimeError):
        await around(broken, tracing)(scope_of(), None, send)
    (span,) = exporter.get_finished_spans()
    assert span.attributes["http.response.status_code"] == 500
    assert span.attributes["error.type"] == "500"
    assert "zxqv" not in span.to_json()
    assert not tracing._under_way


async def test_an_answer_that_is_cut_short_is_an_error(tracing, exporter):
    async def cut(scope, receive, send):
        await answer(scope, receive, send)
        raise RuntimeError("zxqv")

    with pytest.raises(RuntimeError):
        await around(cut, tracing)(scope_of(), None, send)
    (span,) = exporter.get_finished_spans()
    assert span.attributes["http.response.status_code"] == 200
    assert span.attributes["error.type"] == "RuntimeError"
    assert span.status.status_code is StatusCode.ERROR
    assert "zxqv" not in span.to_json()


async def test_a_request_given_up_ends_its_span(tracing, exporter):
    async def never(_scope, _receive, _send):
        await asyncio.Event().wait()

    task = asyncio.create_task(around(never, tracing)(scope_of(), None, send))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    (span,) = exporter.get_finished_spans()
    assert span.attributes["http.response.status_code"] == 499
    assert not tracing._under_way


@pytest.mark.parametrize("traceparent", [b"nonsense", b"00-0-0-00", b"\xff\xfe", b""])
async def test_a_broken_traceparent_begins_a_trace(tracing, exporter, traceparent):
    headers = [(b"traceparent", traceparent)]
    await around(answer, tracing)(scope_of(headers=headers, method="ZXQV"), None, send)
    (span,) = exporter.get_finished_spans()
    assert span.parent is None
    assert span.attributes["http.request.method"] == "_OTHER"


async def test_other_connections_have_no_span(tracing, exporter):
    seen = []

    async def inner(scope, _receive, _send):
        seen.append(scope["type"])

    await around(inner, tracing)({"type": "lifespan"}, None, None)
    assert seen == ["lifespan"]
    assert not exporter.get_finished_spans()


async def test_an_error_of_the_package_is_a_fault_whatever_python_calls_it(
    tracing, exporter, monkeypatch
):
    class Bare(BaseException):
        pass

    async def failing(scope, receive, send):
        raise Bare

    monkeypatch.setattr("guardrail.observe.spans.GuardrailError", Bare)
    with pytest.raises(Bare):
        await around(failing, tracing)(scope_of(), None, send)
    (span,) = exporter.get_finished_spans()
    assert span.attributes["http.response.status_code"] == 500
