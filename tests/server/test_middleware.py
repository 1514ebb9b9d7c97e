from __future__ import annotations

import asyncio
import logging
import re
from types import SimpleNamespace as Simple

import httpx
import pytest
from fastapi import APIRouter, FastAPI
from fastapi.responses import JSONResponse, StreamingResponse
from starlette.requests import ClientDisconnect

from guardrail.server import ServerSettings
from guardrail.server.errors import AnswerCutError
from guardrail.server.logs import formatter
from guardrail.server.middleware import Exchange, ExchangeMiddleware, observed, route_of
from guardrail.server.observing import Observation
from guardrail.types import Action

HELLO = {"model": "guarded", "messages": [{"role": "user", "content": "hello"}], "max_tokens": 2}


@pytest.fixture
def lines(caplog):
    caplog.set_level(logging.INFO, "guardrail.access")
    return lambda: [r for r in caplog.records if r.name == "guardrail.access"]


async def test_a_safe_id_of_the_client_is_kept(guard_of, client_of):
    async with client_of(guard_of()) as client:
        answer = await client.get("/healthz", headers={"X-Request-ID": "job-7.a_B"})
    assert answer.headers["x-request-id"] == "job-7.a_B"


@pytest.mark.parametrize("unsafe", ["a b", "a\tb", "x" * 65, "", "é", "a;b", '"', "<script>"])
async def test_an_unsafe_id_is_replaced(unsafe, guard_of, client_of):
    async with client_of(guard_of()) as client:
        answer = await client.get("/healthz", headers={"X-Request-ID": unsafe.encode()})
    assert re.fullmatch("[0-9a-f]{32}", answer.headers["x-request-id"])


async def test_two_ids_are_none(guard_of, client_of):
    async with client_of(guard_of()) as client:
        twice = [("X-Request-ID", "a"), ("X-Request-ID", "b")]
        answer = await client.get("/healthz", headers=twice)
    assert len(answer.headers["x-request-id"]) == 32


async def test_errors_have_an_id_too(guard_of, client_of):
    async with client_of(guard_of()) as client:
        for path in ("/nowhere", "/v1/chat/completions"):
            answer = await client.post(path, content=b"{")
            assert answer.status_code >= 400
            assert len(answer.headers["x-request-id"]) == 32


async def test_the_log_has_one_line_a_request_without_what_was_asked(guard_of, client_of, lines):
    async with client_of(guard_of(Action.PASS)) as client:
        answer = await client.post("/v1/chat/completions?secret=1", json=HELLO)
    [line] = lines()
    assert (line.method, line.route, line.status) == ("POST", "/v1/chat/completions", 200)
    assert line.request_id == answer.headers["x-request-id"]
    assert line.action == "pass"
    assert line.score == float(answer.headers["x-guardrail-score"])  # a number, to count with
    assert line.client is None
    assert line.seconds >= 0
    assert "secret" not in str(line.__dict__)
    assert "hello" not in str(line.__dict__)


async def test_the_log_names_no_path_that_is_no_route(guard_of, client_of, lines):
    async with client_of(guard_of()) as client:
        await client.get("/v1/my%0aprompt")
    [line] = lines()
    assert (line.route, line.status) == ("other", 404)
    assert "prompt" not in str(line.__dict__)


@pytest.mark.parametrize("wanted", [False, True])
async def test_prompts_are_logged_only_where_they_are_wanted(wanted, guard_of, client_of, caplog):
    caplog.set_level(logging.DEBUG)
    async with client_of(guard_of(), ServerSettings(log_prompts=wanted)) as client:
        messages = [{"role": "user", "content": "my very words " + "A" * 500}]
        answer = await client.post("/v1/chat/completions", json=HELLO | {"messages": messages})
    assert answer.status_code == 200
    told = [r for r in caplog.records if "my very words" in str(r.__dict__)]
    assert bool(told) is wanted
    if wanted:
        assert "<500 characters>" in told[0].body
        assert "AAAA" not in told[0].body
        assert told[0].request_id == answer.headers["x-request-id"]


START = {"type": "http.response.start", "status": 200, "headers": []}
SCOPE = {"type": "http", "method": "GET", "path": "/", "headers": []}


@pytest.fixture
def raising(around):
    def make(error, *before):
        async def app(scope, receive, send):
            for message in before:
                await send(message)
            raise error

        return around(app)

    return make


async def test_an_unexpected_error_is_told_in_general_terms(raising, caplog):
    app = raising(KeyError("SECRET"))
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://s") as client:
        answer = await client.get("/")
    assert answer.status_code == 500
    assert answer.json()["error"]["code"] == "internal_error"
    assert "SECRET" not in answer.text
    [told] = [r for r in caplog.records if r.levelno == logging.ERROR]
    line = formatter("json").format(told)
    assert "KeyError" in line
    assert "SECRET" not in line


async def test_an_answer_that_has_begun_is_cut_and_the_words_stay_inside(raising):
    with pytest.raises(AnswerCutError) as caught:
        await raising(KeyError("SECRET"), START)(dict(SCOPE), never, lambda message: _nothing())
    assert str(caught.value) == "KeyError"
    assert caught.value.__suppress_context__


async def test_a_client_that_left_is_no_error(raising, caplog):
    await raising(ClientDisconnect())(dict(SCOPE), never, lambda message: _nothing())
    told = [r for r in caplog.records if r.levelno > logging.DEBUG]
    assert [r for r in told if r.name != "guardrail.access"] == []


async def _nothing():
    pass


async def never():
    await asyncio.Event().wait()


class Refusing:
    """Answers what asks for it before it reaches a route."""

    def __init__(self, app):
        self._app = app

    async def __call__(self, scope, receive, send):
        refused = scope["type"] == "http" and scope["query_string"] == b"refuse"
        app = JSONResponse({}, 401) if refused else self._app
        await app(scope, receive, send)


@pytest.fixture
def observation():
    return Observation()


@pytest.fixture
def metrics(observation):
    return observation.metrics


@pytest.fixture
def app(around, observation):
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
    service = around(None, observation)._service
    app.add_middleware(ExchangeMiddleware, service=service)
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


async def test_a_request_given_up_before_its_answer_is_no_error_of_the_server(
    around, observation, metrics
):
    async def waits(_scope, _receive, _send):
        await asyncio.Event().wait()

    app = around(waits, observation)
    task = asyncio.create_task(app(dict(SCOPE), never, lambda message: _nothing()))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert counted(metrics) == {("other", "499"): 1}


async def test_other_connections_pass_uncounted(around, observation, metrics):
    seen = []

    async def inner(scope, _receive, _send):
        seen.append(scope["type"])

    await around(inner, observation)({"type": "lifespan"}, None, None)
    assert seen == ["lifespan"]
    assert counted(metrics) == {}


async def test_an_error_of_the_package_is_a_fault_whatever_python_calls_it(
    observation, monkeypatch
):
    class Bare(BaseException):
        pass

    monkeypatch.setattr("guardrail.server.middleware.GuardrailError", Bare)
    exchange = Exchange(dict(SCOPE), None)
    with pytest.raises(Bare), observed(exchange, observation):
        raise Bare
    text = observation.metrics.exposition(None)[0].decode()
    assert 'guardrail_requests_total{route="other",status="500"} 1.0' in text


APP = Simple(
    routes=[
        Simple(path="/plain"),
        Simple(path="/items/{name}"),
        Simple(original_router=Simple(routes=[Simple(path="/v1/inner")])),
        object(),
    ]
)


@pytest.mark.parametrize(
    ("path", "template"),
    [
        ("/plain", "/plain"),
        ("/v1/inner", "/v1/inner"),
        ("/items/zxqv", "other"),
        ("/items/{name}", "/items/{name}"),  # a client may write that; it is one value still
        ("/zxqv", "other"),
    ],
)
def test_what_no_route_answered_is_named_by_a_template_or_other(path, template):
    assert route_of({"path": path, "app": APP}) == template


def test_the_route_that_answered_names_the_request():
    scope = {"path": "/items/zxqv", "app": APP, "route": Simple(path="/items/{name}")}
    assert route_of(scope) == "/items/{name}"


def test_without_an_app_there_is_no_template():
    assert route_of({"path": "/plain"}) == "other"
