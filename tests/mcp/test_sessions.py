"""Sessions over HTTP share a model and nothing else."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager

import anyio
import httpx
import pytest
from mcp import Client

from guardrail.mcp import address, program, transports
from tests.mcp.conftest import said
from tests.mcp.sessions import ACCEPT, ENDED, OPENING, WAYS, survives, written
from tests.mcp.test_transports import front_of, in_memory, upstream_of
from tests.waiting import auntil


@pytest.mark.parametrize("way", WAYS)
async def test_a_client_dies_and_the_others_go_on(way, tmp_path, monkeypatch):
    monkeypatch.setattr(transports, "GREETED_S", 0.5)
    async with front_of(program(written(tmp_path))) as (url, front):
        await survives(url, tmp_path, way)
        # who drops a connection may come back
        stay = way in ("is_killed", "names_no_request")
        await auntil(lambda: len(front._sessions) == stay, seconds=10)


class Stray(BaseException):
    """What stands for a cancellation of the task itself."""


FAILURES = [
    RuntimeError("a"),
    ValueError("b"),
    httpx.ConnectError("c"),
    anyio.EndOfStream(),
    anyio.BrokenResourceError(),
    BaseExceptionGroup("d", [OSError("e"), ValueError("f")]),
    Stray(),
]


@pytest.mark.parametrize("error", FAILURES, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize("when", ["at its start", "later", "at its end"])
async def test_whatever_an_upstream_fails_with_ends_one_session(error, when, everything, caplog):
    broken, starts, opened = anyio.Event(), [], in_memory(everything)

    def fail():
        if isinstance(error, Stray):
            asyncio.current_task().cancel()
        else:
            raise error

    async def fail_later():
        await broken.wait()
        if isinstance(error, Stray):
            host.cancel()
        else:
            raise error

    @asynccontextmanager
    async def upstream():
        nonlocal host
        host, second = asyncio.current_task(), len(starts) == 1
        starts.append(None)
        if second and when == "at its start":
            fail()
            await anyio.sleep(0)
        try:
            async with opened() as streams, anyio.create_task_group() as tasks:
                if second and when == "later":
                    tasks.start_soon(fail_later)
                yield streams
                tasks.cancel_scope.cancel()
        finally:
            if second and when == "at its end":
                fail()

    host = None
    async with front_of(upstream) as (url, front):
        async with Client(url) as other:
            assert said(await other.call_tool("echo", {"text": "before"})) == "before"
            await _dying(url, broken)
            await auntil(lambda: len(front._sessions) == 1, seconds=10)
            assert said(await other.call_tool("echo", {"text": "after"})) == "after"
        async with Client(url) as newcomer:
            assert said(await newcomer.call_tool("echo", {"text": "new"})) == "new"
        await auntil(lambda: not front._sessions, seconds=10)
    assert caplog.text.count("a session ended") == 1


async def _dying(url, broken):
    try:
        async with Client(url, read_timeout_seconds=5) as dying:
            assert said(await dying.call_tool("echo", {"text": "hi"})) == "hi"
            broken.set()
    except (*ENDED, BaseExceptionGroup):
        pass


async def test_an_address_that_nobody_is_at_any_more_ends_one_session(everything, caplog):
    """And the log says so in a line."""
    async with upstream_of(everything) as behind:
        places = iter([behind, "http://127.0.0.1:9/mcp?key=secret", behind])

        @asynccontextmanager
        async def upstream():
            async with address(next(places))() as streams:
                yield streams

        async with front_of(upstream) as (url, _), Client(url) as other:
            with pytest.raises((*ENDED, BaseExceptionGroup)):
                await _opened(url)
            assert said(await other.call_tool("echo", {"text": "after"})) == "after"
            assert said(await _opened(url)) == "hi"
    [line] = [record for record in caplog.records if "a session ended" in record.getMessage()]
    assert "the MCP server at http://127.0.0.1:9/mcp cannot be reached" in line.getMessage()
    assert "secret" not in line.getMessage()
    assert line.exc_info is None


async def _opened(url):
    async with Client(url) as client:
        return await client.call_tool("echo", {"text": "hi"})


async def test_a_front_that_ends_ends_its_sessions(everything):
    ended = []

    @asynccontextmanager
    async def upstream():
        try:
            async with in_memory(everything)() as streams:
                yield streams
        finally:
            ended.append(None)

    with pytest.raises((*ENDED, BaseExceptionGroup)):
        await _left_behind(upstream)
    assert ended == [None]


async def _left_behind(upstream):
    async with front_of(upstream) as (url, front):
        client = await anyio.to_thread.run_sync(httpx.Client)
        answer = await anyio.to_thread.run_sync(
            lambda: client.post(url, json=OPENING, headers=ACCEPT)
        )
        client.close()
        assert answer.status_code == 200
        assert len(front._sessions) == 1
        raise BaseExceptionGroup("the app fails", [ValueError("a")])


# ---- places


async def test_a_request_that_is_dropped_while_its_session_opens_leaves_nothing(
    everything, monkeypatch
):
    monkeypatch.setattr(transports, "MOST_SESSIONS", 1)
    opened, asked, gate = in_memory(everything), [], anyio.Event()

    @asynccontextmanager
    async def upstream():
        asked.append(None)
        if len(asked) == 1:
            await gate.wait()
        async with opened() as streams:
            yield streams

    async with front_of(upstream) as (url, front):
        async with httpx.AsyncClient() as http:
            with pytest.raises(httpx.ReadTimeout):
                await http.post(url, json=OPENING, headers=ACCEPT, timeout=0.2)
        gate.set()
        await auntil(lambda: not front._sessions, seconds=10)
        assert said(await _opened(url)) == "hi"


async def test_a_request_that_a_server_cancels_while_its_session_opens_leaves_nothing(everything):
    """Other servers than uvicorn cancel the request of a client that is gone."""
    entered = anyio.Event()

    @asynccontextmanager
    async def upstream():
        entered.set()
        await anyio.sleep_forever()
        yield

    front = transports.HttpFront(None, upstream, "here")
    body = httpx.Request("POST", "http://here/mcp", json=OPENING).content
    headers = [(b"host", b"here"), (b"content-type", b"application/json")]
    scope = {"type": "http", "method": "POST", "path": "/mcp", "headers": headers}
    scope |= {"query_string": b"", "server": ("here", 80), "scheme": "http"}

    async def receive():
        return {"type": "http.request", "body": body}

    async def send(message):
        raise AssertionError(message)

    async with front.running():
        request = asyncio.ensure_future(front(scope, receive, send))
        await entered.wait()
        request.cancel()
        with pytest.raises(asyncio.CancelledError):
            await request
        await auntil(lambda: not front._sessions, seconds=10)


async def test_a_client_that_says_nothing_after_its_first_answer_loses_its_place(
    everything, monkeypatch
):
    monkeypatch.setattr(transports, "MOST_SESSIONS", 1)
    monkeypatch.setattr(transports, "GREETED_S", 0.05)
    async with front_of(in_memory(everything)) as (url, front):
        async with httpx.AsyncClient() as http:
            answer = await http.post(url, json=OPENING, headers=ACCEPT)
        assert answer.status_code == 200
        await auntil(lambda: not front._sessions, seconds=10)
        assert said(await _opened(url)) == "hi"


async def test_what_opens_no_session_starts_no_server():
    started = []

    @asynccontextmanager
    async def upstream():
        started.append(None)
        yield

    ping = {"jsonrpc": "2.0", "id": 1, "method": "ping"}
    bodies = [ping, [OPENING], {"jsonrpc": "2.0", "method": "initialize"}, "words", None]
    async with front_of(upstream) as (url, _), httpx.AsyncClient(headers=ACCEPT) as http:
        for body in bodies:
            assert (await http.post(url, json=body)).status_code == 400
        for method in ("GET", "DELETE", "PUT"):
            assert (await http.request(method, url)).status_code == 400
        for header, status in (("host", 421), ("origin", 403)):
            answer = await http.post(url, json=OPENING, headers={header: "http://evil.example"})
            assert answer.status_code == status
    assert started == []
