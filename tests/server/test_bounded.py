from __future__ import annotations

import asyncio
import json
from types import SimpleNamespace

import pytest
from starlette.requests import ClientDisconnect

from guardrail.server import ServerSettings
from guardrail.server.bounded import Bounded
from guardrail.server.keys import Caller
from guardrail.server.lifecycle import Lifecycle
from guardrail.server.problems import AnswerCutError

START = {"type": "http.response.start", "status": 200, "headers": []}
STREAM = START | {"headers": [(b"content-type", b"text/event-stream; charset=utf-8")]}


def chunk(body, more=True):
    return {"type": "http.response.body", "body": body, "more_body": more}


class Exchange:
    """One request to `Bounded` around an app; messages come from a list, then never."""

    def __init__(self, app, *messages, headers=(), **settings):
        self.sent, self.received = [], 0
        self.left, self.client = asyncio.Event(), None
        self.life = Lifecycle(drain_s=0)
        self.path, self.takes_no_more = "/", lambda message: False
        self._messages = list(messages)
        made = ServerSettings(**settings)
        service = SimpleNamespace(settings=made, lifecycle=self.life, keys=made.keys)
        self._app = app if isinstance(app, Bounded) else Bounded(app, service=service)
        self._headers = [(k.encode(), v.encode()) for k, v in headers]

    async def run(self):
        scope = {"type": "http", "method": "POST", "path": self.path, "headers": self._headers}
        await self._app(
            scope | {"state": {"caller": Caller("x", self.client)}}, self._receive, self._send
        )

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


def body(data, more=False):
    return {"type": "http.request", "body": data, "more_body": more}


async def echo(scope, receive, send):
    data = (await receive())["body"]
    await send(START)
    await send(chunk(data, more=False))


async def test_the_app_gets_the_body_whole():
    one = Exchange(echo, body(b"ab", True), body(b"cd"), headers=[("content-length", "4")])
    await one.run()
    assert one.body == b"abcd"
    assert one.life.under_way == 0


async def test_a_body_that_says_it_is_too_large_is_not_read():
    one = Exchange(echo, body(b"x"), headers=[("content-length", "11")], max_body_bytes=10)
    await one.run()
    assert (one.status, one.error["code"], one.received) == (413, "too_large", 0)


async def test_a_body_without_a_length_is_read_as_far_as_it_may_be():
    endless = [body(b"x" * 6, True)] * 100
    one = Exchange(echo, *endless, headers=[("transfer-encoding", "chunked")], max_body_bytes=10)
    await one.run()
    assert (one.status, one.received) == (413, 2)


async def test_a_body_that_does_not_come_is_waited_for_so_long():
    one = Exchange(echo, body(b"x", True), headers=[("content-length", "9")], body_timeout_s=0.01)
    await one.run()
    assert (one.status, one.error["code"]) == (408, "body_timeout")


async def test_a_client_that_leaves_within_its_body_gets_nothing():
    gone = {"type": "http.disconnect"}
    one = Exchange(echo, body(b"x", True), gone, headers=[("content-length", "9")])
    with pytest.raises(ClientDisconnect):
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


async def test_a_request_whose_time_is_over_is_cancelled_and_told():
    ended = []
    one = Exchange(waiting(ended=ended), timeout_s=0.01)
    await one.run()
    assert (one.status, one.error["code"]) == (504, "timeout")
    assert ended == [True]


async def test_a_stream_whose_time_is_over_ends_with_an_error_and_not_as_if_it_were_whole():
    ended = []
    one = Exchange(waiting(STREAM, chunk(b"data: 1\n\n"), ended=ended), timeout_s=0.01)
    await one.run()
    *_, last = one.sent
    assert last["more_body"] is False
    assert json.loads(last["body"].removeprefix(b"data: "))["error"]["code"] == "timeout"
    assert b"[DONE]" not in one.body
    assert ended == [True]


async def test_a_client_that_takes_no_last_word_is_not_waited_for(monkeypatch):
    monkeypatch.setattr("guardrail.server.bounded._LAST_WORD_S", 0.01)
    one = Exchange(waiting(STREAM, chunk(b"data: 1\n\n"), ended=[]), timeout_s=0.01)
    one.takes_no_more = lambda message: b"timeout" in message.get("body", b"")
    with pytest.raises(AnswerCutError, match="timeout"):
        await asyncio.wait_for(one.run(), 20)
    assert one.life.under_way == 0


@pytest.mark.parametrize(
    "begun",
    [(STREAM, chunk(b"data: 1\n")), (START, chunk(b"half of ")), (START,)],
    ids=["within an event", "no stream", "no body"],
)
async def test_an_answer_that_cannot_take_an_error_is_cut(begun):
    one = Exchange(waiting(*begun, ended=[]), timeout_s=0.01)
    with pytest.raises(AnswerCutError, match="timeout"):
        await one.run()
    assert one.sent == list(begun)


async def test_a_client_that_leaves_ends_what_was_done_for_it():
    ended = []
    one = Exchange(waiting(ended=ended))
    task = asyncio.create_task(one.run())
    await asyncio.sleep(0)
    one.left.set()
    with pytest.raises(ClientDisconnect):
        await task
    assert ended == [True]
    assert one.life.under_way == 0


async def test_an_app_sees_its_client_leave():
    seen = []

    async def app(scope, receive, send):
        seen.append(await receive())
        seen.append(await receive())
        await send(START)
        await send(chunk(b"", more=False))

    one = Exchange(app, body(b"x"), headers=[("content-length", "1")])
    task = asyncio.create_task(one.run())
    await asyncio.sleep(0)
    one.left.set()
    await asyncio.gather(task, return_exceptions=True)
    assert [message["type"] for message in seen][:1] == ["http.request"]


async def test_what_an_app_does_after_its_answer_is_not_cut_short():
    done = []
    one = None

    async def app(scope, receive, send):
        await send(START)
        await send(chunk(b"", more=False))
        one.left.set()  # as servers say once the answer is out
        for _ in range(20):
            await asyncio.sleep(0)
        done.append(True)

    one = Exchange(app)
    await one.run()
    assert done == [True]


@pytest.mark.parametrize(("begun", "status"), [((), 503), ((STREAM, chunk(b"data: 1\n\n")), 200)])
async def test_the_end_of_the_server_ends_requests_in_clear(begun, status):
    ended = []
    one = Exchange(waiting(*begun, ended=ended))
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
async def test_the_end_of_the_server_is_not_put_off_by_probes(path):
    one = Exchange(waiting(ended=[]))
    one.path = path
    task = asyncio.create_task(one.run())
    await asyncio.sleep(0)
    one.life.drain()
    assert one.life.drained()
    one.left.set()
    await asyncio.wait({task}, timeout=20)


async def test_an_error_of_the_app_is_its_own():
    async def app(scope, receive, send):
        raise KeyError("x")

    with pytest.raises(KeyError):
        await Exchange(app).run()


def big(app, size, client, settings=None):
    one = Exchange(
        app, body(bytes(size), True), headers=[("content-length", "9")], **settings or {}
    )
    one.client = client
    return one


async def test_bodies_that_do_not_end_take_no_more_room_than_those_that_are_let_in():
    settings = {"max_concurrent": 3, "max_per_client": 2, "max_body_bytes": 10}
    first = big(echo, 10, "a", settings)
    under_way = [asyncio.create_task(first.run())]
    for client in ("a", "b"):
        under_way.append(asyncio.create_task(big(first._app, 9, client).run()))
    await asyncio.sleep(0)
    mine, full = big(first._app, 2, "a"), big(first._app, 3, "b")
    for refused in (mine, full):
        await refused.run()
        assert (refused.status, refused.error["code"]) == (429, "too_many_requests")
    under_way[0].cancel()
    await asyncio.gather(under_way[0], return_exceptions=True)
    again = Exchange(first._app, body(b"ab"), headers=[("content-length", "2")])
    await again.run()
    assert again.body == b"ab"
    for task in under_way:
        task.cancel()
    await asyncio.gather(*under_way, return_exceptions=True)
    assert not first._app._bytes
