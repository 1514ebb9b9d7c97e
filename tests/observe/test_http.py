from __future__ import annotations

import asyncio

import httpx
import pytest
from fastapi import APIRouter, FastAPI
from fastapi.responses import JSONResponse, StreamingResponse

from guardrail.observe.http import MetricsMiddleware
from guardrail.observe.metrics import Metrics


class Refusing:
    """Answers what asks for it before it reaches a route."""

    def __init__(self, app):
        self._app = app

    async def __call__(self, scope, receive, send):
        refused = scope["type"] == "http" and scope["query_string"] == b"refuse"
        app = JSONResponse({}, 401) if refused else self._app
        await app(scope, receive, send)


@pytest.fixture
def metrics():
    return Metrics()


@pytest.fixture
def app(metrics):
    router = APIRouter(prefix="/v1")

    @router.get("/items/{name}")
    async def item(name: str) -> str:
        return name

    @router.post("/plain")
    async def plain() -> str:
        return "ok"

    @router.get("/broken")
    async def broken() -> None:
        raise RuntimeError("boom")

    @router.get("/stream")
    async def stream() -> StreamingResponse:
        async def events():
            yield b"data: 1\n\n"
            yield b"data: 2\n\n"

        return StreamingResponse(events(), media_type="text/event-stream")

    app = FastAPI()
    app.include_router(router)
    app.add_middleware(Refusing)
    app.add_middleware(MetricsMiddleware, metrics=metrics)
    return app


async def ask(app, *requests):
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://server") as client:
        for method, path in requests:
            await client.request(method, path)


def counted(metrics):
    """Pairs of route and status, with their counts."""
    return {
        (sample.labels["route"], sample.labels["status"]): sample.value
        for family in metrics.registry.collect()
        for sample in family.samples
        if sample.name == "guardrail_requests_total"
    }


async def test_routes_are_templates_and_unknown_paths_are_other(app, metrics):
    names = [("GET", f"/v1/items/{i}") for i in range(3)]
    await ask(app, *names, ("GET", "/no/such/page"), ("GET", "/v1/items/a/b"))
    assert counted(metrics) == {("/v1/items/{name}", "200"): 3, ("other", "404"): 2}


async def test_what_is_refused_before_a_route_is_counted_for_it(app, metrics):
    await ask(app, ("POST", "/v1/plain?refuse"), ("POST", "/nowhere?refuse"), ("GET", "/v1/plain"))
    assert counted(metrics) == {
        ("/v1/plain", "401"): 1,
        ("other", "401"): 1,
        ("/v1/plain", "405"): 1,
    }


async def test_an_unexpected_error_is_a_500(app, metrics):
    await ask(app, ("GET", "/v1/broken"))
    assert counted(metrics) == {("/v1/broken", "500"): 1}


async def test_only_streams_have_a_time_to_their_first_bytes(app, metrics):
    await ask(app, ("POST", "/v1/plain"), ("GET", "/v1/stream"))

    def value(name, route):
        return metrics.registry.get_sample_value(name, {"route": route})

    assert value("guardrail_http_first_byte_seconds_count", "/v1/stream") == 1
    assert value("guardrail_http_first_byte_seconds_count", "/v1/plain") is None
    whole = value("guardrail_http_request_seconds_sum", "/v1/stream")
    assert 0 < value("guardrail_http_first_byte_seconds_sum", "/v1/stream") <= whole


async def test_a_request_given_up_before_its_answer_is_no_error_of_the_server(metrics):
    async def never(_scope, _receive, _send):
        await asyncio.Event().wait()

    app = MetricsMiddleware(never, metrics=metrics)
    task = asyncio.create_task(app({"type": "http", "path": "/x"}, None, None))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert counted(metrics) == {("other", "499"): 1}


async def test_other_connections_pass_uncounted(metrics):
    seen = []

    async def inner(scope, _receive, _send):
        seen.append(scope["type"])

    await MetricsMiddleware(inner, metrics=metrics)({"type": "lifespan"}, None, None)
    assert seen == ["lifespan"]
    assert counted(metrics) == {}


async def test_an_error_of_the_package_is_a_fault_whatever_python_calls_it(metrics, monkeypatch):
    class Bare(BaseException):
        pass

    async def failing(scope, receive, send):
        raise Bare

    monkeypatch.setattr("guardrail.observe.http.GuardrailError", Bare)
    scope = {"type": "http", "method": "GET", "path": "/", "headers": []}
    with pytest.raises(Bare):
        await MetricsMiddleware(failing, metrics=metrics)(scope, None, None)
    text = metrics.exposition(None)[0].decode()
    assert 'guardrail_requests_total{route="other",status="500"} 1.0' in text
