"""Requests that try to write headers and log lines of their own."""

from __future__ import annotations

import asyncio
import logging

import httpx
import pytest

from guardrail.server.logs import formatter

EVIL = 'x\r\nX-Evil: 1\r\n{"event": "INJECTED"}\x1b[2J\u2028\u0085'


async def raw(url, text):
    host, _, port = url.removeprefix("http://").partition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(text)
    told = await asyncio.wait_for(reader.read(), 20)
    writer.close()
    await writer.wait_closed()
    return told


@pytest.mark.parametrize(
    "head",
    [
        b"X-Request-ID: a\rX-Evil: 1",
        b"X-Request-ID: a\r\n X-Evil: 1",
        b"X-Request-ID: a\nX-Evil: 1",
        b"X-Request-ID: a%0d%0aX-Evil:1",
        b"X-Request-ID: a\x00b",
        b"X-Request-ID: \xe5\x98\x8a\xe5\x98\x8dX-Evil: 1",
    ],
)
async def test_no_header_of_a_request_becomes_one_of_the_answer(
    head, served, guard_of, right_again
):
    async with served(guard_of()) as url:
        told = await raw(
            url, b"GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n" + head + b"\r\n\r\n"
        )
        assert told.startswith((b"HTTP/1.1 200", b"HTTP/1.1 400"))
        assert b"evil" not in told.lower()
        assert (await right_again(url))[0] == 200


async def test_two_lengths_or_a_length_beside_chunks_are_no_request(served, guard_of, right_again):
    async with served(guard_of()) as url:
        for head in (
            b"Content-Length: 5\r\nContent-Length: 6",
            b"Content-Length: 5\r\nTransfer-Encoding: chunked",
            b"Content-Length: 5\r\nTransfer-Encoding: gzip, chunked",
            b"Transfer-Encoding: xchunked",
            b"Content-Length: -1",
        ):
            told = await raw(url, b"POST /v1/checks HTTP/1.1\r\nHost: x\r\n" + head + b"\r\n\r\n")
            assert told.startswith((b"HTTP/1.1 400", b"HTTP/1.1 501"))
        assert (await right_again(url))[0] == 200


@pytest.mark.parametrize("style", ["json", "text"])
async def test_nothing_of_a_request_becomes_a_line_of_the_log(
    style, served, guard_of, right_again, hello, caplog
):
    caplog.set_level(logging.DEBUG)
    async with served(guard_of()) as url, httpx.AsyncClient(base_url=url) as client:
        tool = {"type": "function", "function": {"name": EVIL, "parameters": {}}}
        for body in (
            hello | {"model": EVIL},
            hello | {"messages": [{"role": EVIL, "content": "x"}]},
            hello | {"messages": [{"role": "user", "content": [{"type": EVIL}]}]},
            hello | {"tools": [tool]},
            hello | {EVIL: EVIL},
            hello | {"messages": [{"role": "user", "content": EVIL}]},
        ):
            answer = await client.post("/v1/chat/completions", json=body)
            assert answer.status_code < 500
            assert "x-evil" not in answer.headers
        await client.get("/%0d%0aINJECTED?q=%0aINJECTED")
        assert (await right_again(url))[0] == 200
    own = [r for r in caplog.records if r.name.startswith(("guardrail", "uvicorn"))]
    lines = [formatter(style).format(record) for record in own]
    assert len(lines) >= 8
    assert all(line.isprintable() and line.isascii() for line in lines)
    assert not any("INJECTED" in line for line in lines)
