"""Clients that hold a connection without asking, and more of them than there is room for."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack, asynccontextmanager

import httpx
import pytest
from starlette.responses import StreamingResponse

from guardrail.server import ServerSettings, create_app
from guardrail.server.keys import keys_from_text
from tests.waiting import auntil


@asynccontextmanager
async def connected(url, local=None):
    host, _, port = url.removeprefix("http://").partition(":")
    reader, writer = await asyncio.open_connection(host, int(port), local_addr=local)
    try:
        yield reader, writer
    finally:
        writer.close()
        await asyncio.wait({asyncio.ensure_future(writer.wait_closed())})


async def all_of(reader):
    try:
        return await asyncio.wait_for(reader.read(), 20)
    except ConnectionResetError:
        return b""


@pytest.mark.parametrize("begun", [b"", b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\n"])
async def test_headers_that_do_not_end_are_waited_for_so_long(begun, served, guard_of, right_again):
    async with served(guard_of(), header_timeout_s=0.3) as url:
        async with connected(url) as (reader, writer):
            writer.write(begun)
            answer = asyncio.create_task(all_of(reader))
            while not answer.done():  # a header now and then keeps no connection open
                writer.write(b"X-A: b\r\n" if begun else b"")
                await asyncio.sleep(0.05)
            assert (await answer).startswith(b"HTTP/1.1 408")
        assert (await right_again(url))[0] == 200


async def test_a_second_request_on_a_connection_is_bounded_too(served, guard_of):
    async with served(guard_of(), header_timeout_s=0.5) as url:
        async with connected(url) as (reader, writer):
            writer.write(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
            head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 20)
            assert head.startswith(b"HTTP/1.1 200")
            writer.write(b"GET /healthz HTTP/1.1\r\n")
            assert b"HTTP/1.1 408" in await all_of(reader)


async def test_a_long_answer_is_not_cut_by_the_time_for_headers(
    served, guard_of, hello, monkeypatch
):
    app = create_app(guard_of())
    guard = app.state.service.guard  # the one that requests use
    real, waited = guard.agenerate, []

    async def slow(*args, **options):
        await asyncio.sleep(0.3)
        waited.append(True)
        return await real(*args, **options)

    monkeypatch.setattr(guard, "agenerate", slow)
    async with (
        served(None, app=app, header_timeout_s=0.1) as url,
        httpx.AsyncClient(timeout=30) as client,
    ):
        answer = await client.post(f"{url}/v1/chat/completions", json=hello)
    assert answer.status_code == 200
    assert waited


async def test_a_body_that_trickles_in_is_waited_for_so_long(served, guard_of, right_again):
    settings = ServerSettings(body_timeout_s=0.3)
    async with served(guard_of(), settings, header_timeout_s=0.3) as url:
        async with connected(url) as (reader, writer):
            writer.write(
                b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\n"
                b"Content-Type: application/json\r\nContent-Length: 1000\r\n\r\n"
            )
            answer = asyncio.create_task(all_of(reader))
            while not answer.done():
                writer.write(b" ")
                await asyncio.sleep(0.05)
            told = await answer
            assert told.startswith(b"HTTP/1.1 408")
            assert b"body_timeout" in told
        assert (await right_again(url))[0] == 200


async def test_a_refused_client_that_goes_on_sending_is_cut_off(served, guard_of):
    settings = ServerSettings(keys=keys_from_text("web:0123456789abcdef", source="x"))
    async with served(guard_of(), settings, header_timeout_s=0.3) as url:
        async with connected(url) as (reader, writer):
            writer.write(b"POST /nowhere HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n")
            answer = asyncio.create_task(all_of(reader))
            while not answer.done():
                writer.write(b"1\r\n \r\n")
                await asyncio.sleep(0.05)
            await answer  # it has ended because the connection has, not because time was over
        async with connected(url) as (reader, writer):
            writer.write(b"GET /healthz HTTP/1.0\r\n\r\n")
            assert (await all_of(reader)).startswith(b"HTTP/1.1 200")


HALF = b"GET /healthz HTTP/1.1\r\nHost: x\r\n"
HALF_BODY = (
    b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\n"
    b"Content-Type: application/json\r\nContent-Length: 1000\r\n\r\n{"
)


async def healthy(url):
    async with httpx.AsyncClient(timeout=30) as client:
        return (await client.get(f"{url}/healthz")).status_code == 200


@pytest.mark.parametrize("begun", [b"", HALF, HALF_BODY])
async def test_connections_that_only_begin_to_ask_keep_nobody_out(
    begun, served, guard_of, right_again
):
    settings = ServerSettings(body_timeout_s=60.0)
    async with (
        served(guard_of(), settings, max_connections=4, header_timeout_s=60.0) as url,
        AsyncExitStack() as stack,
    ):
        readers = []
        for _ in range(10):
            reader, writer = await stack.enter_async_context(connected(url))
            writer.write(begun)
            await writer.drain()
            readers.append(reader)
        assert await healthy(url)
        assert (await right_again(url))[0] == 200
        assert b"200 OK" not in await all_of(readers[0])  # who waited longest gave way


async def test_half_sent_bodies_hold_no_places(served, guard_of, right_again):
    settings = ServerSettings(body_timeout_s=60.0, max_concurrent=2)
    async with served(guard_of(), settings) as url, AsyncExitStack() as stack:
        for _ in range(5):
            reader, writer = await stack.enter_async_context(connected(url))
            writer.write(HALF_BODY.replace(b"\r\n\r\n{", b"\r\nExpect: 100-continue\r\n\r\n"))
            assert b"100" in await reader.readline()  # the body is waited for now
        assert (await right_again(url))[0] == 200


async def test_who_holds_most_connections_gives_way_first(served, guard_of):
    async with (
        served(guard_of(), max_connections=3, header_timeout_s=60.0) as url,
        connected(url, ("127.0.0.2", 0)) as (reader, writer),
        connected(url) as (first, _),
        connected(url),
        connected(url),
    ):
        assert b"408" in await all_of(first)
        writer.write(b"GET /healthz HTTP/1.0\r\n\r\n")
        assert b"200" in await all_of(reader)


async def test_connections_beyond_the_bound_are_told_so(
    served, guard_of, right_again, hello, monkeypatch
):
    app = create_app(guard_of())
    guard, go, inside = app.state.service.guard, asyncio.Event(), []
    real = guard.agenerate

    async def slow(*args, **options):
        inside.append(True)
        await go.wait()
        return await real(*args, **options)

    monkeypatch.setattr(guard, "agenerate", slow)
    async with served(None, app=app, max_connections=2) as url:
        async with httpx.AsyncClient(timeout=30) as client:
            asked = [
                asyncio.create_task(client.post(f"{url}/v1/chat/completions", json=hello))
                for _ in range(2)
            ]
            await auntil(lambda: len(inside) == 2)
            async with connected(url) as (reader, _):
                told = await all_of(reader)
            assert told.startswith(b"HTTP/1.1 503")
            assert b"Retry-After: 1" in told
            go.set()
            assert [(await each).status_code for each in asked] == [200, 200]
            assert (await right_again(url))[0] == 200  # an idle connection gives way


async def test_a_client_that_takes_nothing_of_its_answer_is_cut_off(served, guard_of):
    app, ended = create_app(guard_of()), asyncio.Event()

    @app.get("/endless")
    async def endless():
        async def blocks():
            try:
                while True:
                    yield bytes(1 << 20)
                    await asyncio.sleep(0)
            finally:
                ended.set()

        return StreamingResponse(blocks())

    async with served(None, app=app, stall_timeout_s=0.3) as url, connected(url) as (_, writer):
        writer.write(b"GET /endless HTTP/1.1\r\nHost: x\r\n\r\n")
        await asyncio.wait_for(ended.wait(), 20)
