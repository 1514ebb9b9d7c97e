"""Bodies come whole and within their bounds; one means the same to all readers, or is refused."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import httpx
import pytest
from fastapi import APIRouter, FastAPI, Request
from pydantic import BaseModel

from guardrail.server.bodies import StrictRoute
from guardrail.server.errors import AnswerCutError
from guardrail.server.keys import keys_from_text

START = {"type": "http.response.start", "status": 200, "headers": []}
STREAM = START | {"headers": [(b"content-type", b"text/event-stream; charset=utf-8")]}


def chunk(body, more=True):
    return {"type": "http.response.body", "body": body, "more_body": more}


class One:
    """One request to an app behind the middleware; messages come from a list, then never."""

    def __init__(self, app, *messages, headers=()):
        self.sent, self.received = [], 0
        self.left, self.life = asyncio.Event(), app._service.lifecycle
        self.path, self.takes_no_more = "/", lambda message: False
        self._messages, self._app = list(messages), app
        self._headers = [(k.encode(), v.encode()) for k, v in headers]

    async def run(self):
        scope = {"type": "http", "method": "POST", "path": self.path, "headers": self._headers}
        await self._app(scope, self._receive, self._send)

    async def _receive(self):
        if self._messages:
            self.received += 1
            return self._messages.pop(0)
        await self.left.wait()
        return {"type": "http.disconnect"}

    async def _send(self, message):
        if self.takes_no_more(message):
            await asyncio.Event().wait()
        self.sent.append(message)

    @property
    def status(self):
        return self.sent[0]["status"]

    @property
    def body(self):
        return b"".join(message.get("body", b"") for message in self.sent)

    @property
    def error(self):
        return json.loads(self.body)["error"]


@pytest.fixture
def one_of(around):
    """`one_of(app, *messages, headers=(), timeout_s=1)`."""

    def make(app, *messages, headers=(), **settings):
        return One(around(app, **settings), *messages, headers=headers)

    return make


def body(data, more=False):
    return {"type": "http.request", "body": data, "more_body": more}


async def echo(scope, receive, send):
    data = (await receive())["body"]
    await send(START)
    await send(chunk(data, more=False))


async def test_the_app_gets_the_body_whole(one_of):
    one = one_of(echo, body(b"ab", True), body(b"cd"), headers=[("content-length", "4")])
    await one.run()
    assert one.body == b"abcd"
    assert one.life.under_way == 0


async def test_a_body_that_says_it_is_too_large_is_not_read(one_of):
    one = one_of(echo, body(b"x"), headers=[("content-length", "11")], max_body_bytes=10)
    await one.run()
    assert (one.status, one.error["code"], one.received) == (413, "too_large", 0)


async def test_a_body_without_a_length_is_read_as_far_as_it_may_be(one_of):
    endless = [body(b"x" * 6, True)] * 100
    one = one_of(echo, *endless, headers=[("transfer-encoding", "chunked")], max_body_bytes=10)
    await one.run()
    assert (one.status, one.received) == (413, 2)


async def test_a_body_that_does_not_come_is_waited_for_so_long(one_of):
    one = one_of(echo, body(b"x", True), headers=[("content-length", "9")], body_timeout_s=0.01)
    await one.run()
    assert (one.status, one.error["code"]) == (408, "body_timeout")


async def test_a_client_that_leaves_within_its_body_gets_nothing(one_of):
    gone = {"type": "http.disconnect"}
    one = one_of(echo, body(b"x", True), gone, headers=[("content-length", "9")])
    await one.run()
    assert one.sent == []


def waiting(*before, ended):
    async def app(scope, receive, send):
        for message in before:
            await send(message)
        try:
            await asyncio.Event().wait()
        finally:
            ended.append(True)

    return app


async def test_a_request_whose_time_is_over_is_cancelled_and_told(one_of):
    ended = []
    one = one_of(waiting(ended=ended), timeout_s=0.01)
    await one.run()
    assert (one.status, one.error["code"]) == (504, "timeout")
    assert ended == [True]


async def test_a_stream_whose_time_is_over_ends_with_an_error_and_not_as_if_it_were_whole(one_of):
    ended = []
    one = one_of(waiting(STREAM, chunk(b"data: 1\n\n"), ended=ended), timeout_s=0.01)
    await one.run()
    *_, last = one.sent
    assert last["more_body"] is False
    assert json.loads(last["body"].removeprefix(b"data: "))["error"]["code"] == "timeout"
    assert b"[DONE]" not in one.body
    assert ended == [True]


async def test_a_client_that_takes_no_last_word_is_not_waited_for(one_of, monkeypatch):
    monkeypatch.setattr("guardrail.server.middleware._LAST_WORD_S", 0.01)
    one = one_of(waiting(STREAM, chunk(b"data: 1\n\n"), ended=[]), timeout_s=0.01)
    one.takes_no_more = lambda message: b"timeout" in message.get("body", b"")
    with pytest.raises(AnswerCutError, match="timeout"):
        await asyncio.wait_for(one.run(), 20)
    assert one.life.under_way == 0


@pytest.mark.parametrize(
    "begun",
    [(STREAM, chunk(b"data: 1\n")), (START, chunk(b"half of ")), (START,)],
    ids=["within an event", "no stream", "no body"],
)
async def test_an_answer_that_cannot_take_an_error_is_cut(one_of, begun):
    one = one_of(waiting(*begun, ended=[]), timeout_s=0.01)
    with pytest.raises(AnswerCutError, match="timeout"):
        await one.run()
    assert one.sent == list(begun)


async def test_a_client_that_leaves_ends_what_was_done_for_it(one_of):
    ended = []
    one = one_of(waiting(ended=ended))
    task = asyncio.create_task(one.run())
    await asyncio.sleep(0)
    one.left.set()
    await task
    assert one.sent == []
    assert ended == [True]
    assert one.life.under_way == 0


async def test_an_app_sees_its_client_leave(one_of):
    seen = []

    async def app(scope, receive, send):
        seen.append(await receive())
        seen.append(await receive())
        await send(START)
        await send(chunk(b"", more=False))

    one = one_of(app, body(b"x"), headers=[("content-length", "1")])
    task = asyncio.create_task(one.run())
    await asyncio.sleep(0)
    one.left.set()
    await asyncio.gather(task, return_exceptions=True)
    assert [message["type"] for message in seen][:1] == ["http.request"]


async def test_what_an_app_does_after_its_answer_is_not_cut_short(one_of):
    done = []
    one = None

    async def app(scope, receive, send):
        await send(START)
        await send(chunk(b"", more=False))
        one.left.set()  # as servers say once the answer is out
        for _ in range(20):
            await asyncio.sleep(0)
        done.append(True)

    one = one_of(app)
    await one.run()
    assert done == [True]


@pytest.mark.parametrize(("begun", "status"), [((), 503), ((STREAM, chunk(b"data: 1\n\n")), 200)])
async def test_the_end_of_the_server_ends_requests_in_clear(one_of, begun, status):
    ended = []
    one = one_of(waiting(*begun, ended=ended))
    task = asyncio.create_task(one.run())
    await asyncio.sleep(0)
    one.life.drain()
    one.life.drained()
    await task
    assert one.status == status
    assert b'"code": "draining"' in one.body.replace(b'":"', b'": "')
    assert ended == [True]
    assert one.life.drained()


@pytest.mark.parametrize("path", ["/healthz", "/readyz"])
async def test_the_end_of_the_server_is_not_put_off_by_probes(one_of, path):
    one = one_of(waiting(ended=[]))
    one.path = path
    task = asyncio.create_task(one.run())
    await asyncio.sleep(0)
    one.life.drain()
    assert one.life.drained()
    one.left.set()
    await asyncio.wait({task}, timeout=20)


async def test_an_error_of_the_app_is_its_own(one_of):
    async def app(scope, receive, send):
        raise KeyError("x")

    one = one_of(app)
    await one.run()
    assert (one.status, one.error["code"]) == (500, "internal_error")


def big(app, size, client):
    headers = [("content-length", "9"), ("authorization", f"Bearer {client * 16}")]
    return One(app, body(bytes(size), True), headers=headers)


async def test_bodies_that_do_not_end_take_no_more_room_than_those_that_are_let_in(around):
    keys = keys_from_text(f"a:{'a' * 16},b:{'b' * 16}", source="x")
    app = around(echo, max_concurrent=3, max_per_client=2, max_body_bytes=10, keys=keys)
    first = big(app, 10, "a")
    under_way = [asyncio.create_task(first.run())]
    for client in ("a", "b"):
        under_way.append(asyncio.create_task(big(app, 9, client).run()))
    await asyncio.sleep(0)
    mine, full = big(app, 2, "a"), big(app, 3, "b")
    for refused in (mine, full):
        await refused.run()
        assert (refused.status, refused.error["code"]) == (429, "too_many_requests")
    under_way[0].cancel()
    await asyncio.gather(under_way[0], return_exceptions=True)
    headers = [("content-length", "2"), ("authorization", f"Bearer {'a' * 16}")]
    again = One(app, body(b"ab"), headers=headers)
    await again.run()
    assert again.body == b"ab"
    for task in under_way:
        task.cancel()
    await asyncio.gather(*under_way, return_exceptions=True)
    assert not app._bodies._bytes


class Named(BaseModel):
    name: str


router = APIRouter(route_class=StrictRoute)


@router.post("/named")
async def named(body: Named, request: Request) -> dict[str, Any]:
    return {"name": body.name, "same": (await request.json()) is (await request.json())}


@router.get("/plain")
async def plain() -> dict[str, bool]:
    return {"ok": True}


@pytest.fixture
def client() -> httpx.AsyncClient:
    app = FastAPI()
    app.include_router(router)
    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://server")


async def post(client: httpx.AsyncClient, data: bytes, kind: str | None = "application/json"):
    headers = {} if kind is None else {"Content-Type": kind}
    async with client:
        return await client.post("/named", content=data, headers=headers)


@pytest.mark.parametrize("kind", ["application/json", "application/json; charset=utf-8"])
async def test_json_is_read_once(client, kind):
    answer = await post(client, b'{"name": "a"}', kind)
    assert answer.json() == {"name": "a", "same": True}


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{",
        b"nothing",
        b'{"name": "a", "name": "b"}',
        b'{"name": NaN}',
        b'{"name": 1e999}',
        b'{"name": ' + b"9" * 5_000 + b"}",
        b"[" * 200_000 + b"]" * 200_000,
        b'{"name": "\xff"}',
        b'\xef\xbb\xbf{"name": "a"}',
        '{"name": "a"}'.encode("utf-16"),
    ],
)
async def test_what_two_readers_may_read_differently_is_malformed(client, data):
    answer = await post(client, data)
    assert answer.status_code == 400


@pytest.mark.parametrize(
    "kind",
    [
        None,
        "text/plain",
        "application/x-www-form-urlencoded",
        "multipart/form-data; boundary=x",
        "application/json; charset=latin-1",
        "nonsense",
    ],
)
async def test_other_types_are_not_read_as_json(client, kind):
    assert (await post(client, b'{"name": "a"}', kind)).status_code == 415


async def test_what_curl_sends_by_itself_is_told_what_to_send_instead(client):
    answer = await post(client, b'{"name": "a"}', "application/x-www-form-urlencoded")
    assert "x-www-form-urlencoded' is not read here; send application/json" in answer.text
    assert "multipart" not in answer.text  # which this route does not read either


async def test_a_body_in_a_coding_is_not_read(client):
    headers = {"Content-Type": "application/json", "Content-Encoding": "gzip"}
    async with client:
        answer = await client.post("/named", content=b"{}", headers=headers)
    assert answer.status_code == 415


@pytest.mark.parametrize("data", [b"[]", b'"a"', b"null", b'{"name": 3}', b"{}"])
async def test_json_of_another_shape_is_told_apart_from_malformed_json(client, data):
    assert (await post(client, data)).status_code == 422


async def test_a_route_without_a_body_needs_no_type(client):
    async with client:
        assert (await client.get("/plain")).json() == {"ok": True}


MANY = b"1," * 200_000 + b"1"


@pytest.mark.parametrize(
    "data",
    [
        b'{"name": [' + MANY + b"]}",
        b'{"name": [' + b'["", ""],' * 70_000 + b"{}]}",
        b"{" + b",".join(b'"%d": 1' % number for number in range(10_001)) + b"}",
        b'{"name": [' + b"1," * 1_000_001 + b"no JSON",  # refused unread
    ],
)
async def test_more_values_than_can_be_looked_at_are_too_large(client, data):
    assert (await post(client, data)).status_code == 413


async def test_a_long_text_is_one_value(client):
    answer = await post(client, b'{"name": "' + MANY + b'"}')
    assert answer.json()["name"] == MANY.decode()
