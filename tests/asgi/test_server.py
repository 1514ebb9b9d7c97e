"""The middleware behind a real server on this machine."""

from __future__ import annotations

import asyncio
import json
import socket
from contextlib import asynccontextmanager

import httpx
import pytest
import uvicorn
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse, StreamingResponse
from starlette.routing import Route

from guardrail.asgi import GuardrailASGIMiddleware
from tests.waiting import LONG_S, auntil

HELLO = {"messages": [{"role": "user", "content": "hello"}]}


@asynccontextmanager
async def served(app):
    config = uvicorn.Config(app, log_level="error", lifespan="on", ws="none")
    server = uvicorn.Server(config)
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        task = asyncio.create_task(server.serve([listening]))
        await auntil(lambda: server.started or task.done())
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
        server.should_exit = True
        await asyncio.wait_for(task, 20)


def app_of(endpoint, guard, **options):
    app = Starlette(routes=[Route("/chat", endpoint, methods=["POST"])])
    app.add_middleware(GuardrailASGIMiddleware, guard=guard, routes=["/chat"], **options)
    return app


async def test_an_answer_arrives_chunk_by_chunk(word_guard):
    may_go_on = asyncio.Event()

    async def endpoint(request):
        async def chunks():
            yield b"first"
            await asyncio.wait_for(may_go_on.wait(), LONG_S)
            yield b"second"

        return StreamingResponse(chunks())

    app = app_of(endpoint, word_guard(), header="x-guardrail-action")
    async with (
        served(app) as url,
        httpx.AsyncClient() as client,
        client.stream("POST", f"{url}/chat", json=HELLO) as response,
    ):
        assert response.headers["x-guardrail-action"] == "pass"
        chunks = response.aiter_raw()
        assert await anext(chunks) == b"first"
        may_go_on.set()
        assert await anext(chunks) == b"second"


async def test_a_client_that_hangs_up_during_the_check_frees_its_place(word_guard):
    guard = word_guard()
    guard.slow = True
    app = app_of(lambda request: PlainTextResponse("reached"), guard)
    async with served(app) as url:
        with pytest.raises(httpx.ReadTimeout):
            async with httpx.AsyncClient(timeout=0.5) as client:
                await client.post(f"{url}/chat", json=HELLO)
        [child] = guard.children
        await auntil(lambda: child.cancelled)
    assert child.closed


async def test_a_client_that_hangs_up_during_the_answer_is_seen_by_the_app(word_guard):
    seen = asyncio.Event()

    async def endpoint(request):
        async def chunks():
            try:
                while not await request.is_disconnected():
                    yield b"more"
                    await asyncio.sleep(0.01)
            finally:
                seen.set()

        return StreamingResponse(chunks())

    async with served(app_of(endpoint, word_guard())) as url:
        async with (
            httpx.AsyncClient() as client,
            client.stream("POST", f"{url}/chat", json=HELLO) as response,
        ):
            assert await anext(response.aiter_raw())
        await asyncio.wait_for(seen.wait(), LONG_S)


@pytest.mark.parametrize(("word", "status"), [("hello", 200), ("bad", 400)])
async def test_a_chunked_body_is_checked_and_echoed(word_guard, word, status):
    async def endpoint(request):
        return PlainTextResponse(await request.body())

    body = json.dumps({"prompt": word}).encode()

    async def chunks():
        for start in range(0, len(body), 5):
            yield body[start : start + 5]
            await asyncio.sleep(0.002)

    kind = {"content-type": "application/json"}
    async with served(app_of(endpoint, word_guard())) as url, httpx.AsyncClient() as client:
        response = await client.post(f"{url}/chat", content=chunks(), headers=kind)
        assert response.status_code == status
        assert (response.content == body) is (status == 200)


async def test_a_body_that_is_too_large_is_refused_and_the_server_goes_on(word_guard):
    async def endpoint(request):
        return PlainTextResponse("reached")

    async def endless():
        for _ in range(64):
            yield b" " * 65_536

    kind = {"content-type": "application/json"}
    app = app_of(endpoint, word_guard(), max_body_bytes=100_000)
    async with served(app) as url, httpx.AsyncClient() as client:
        try:
            response = await client.post(f"{url}/chat", content=endless(), headers=kind)
            assert response.status_code == 413
        except httpx.WriteError:
            pass  # the server had hung up before the client looked for the answer
        assert (await client.post(f"{url}/chat", json=HELLO)).text == "reached"
