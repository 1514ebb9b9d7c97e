"""Addresses in requests: nothing is fetched that the operator did not allow."""

from __future__ import annotations

import asyncio
import socket
from contextlib import asynccontextmanager

import httpx
import pytest

from guardrail.server import ServerSettings

CHAT = "/v1/chat/completions"


def with_picture(hello, url):
    picture = {"type": "image_url", "image_url": {"url": url}}
    content = [picture, {"type": "text", "text": "what is this?"}]
    return hello | {"messages": [{"role": "user", "content": content}]}


@asynccontextmanager
async def watched(answer=b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n"):
    """A port that counts who connects."""
    hits = []

    async def serve(reader, writer):
        hits.append(await reader.readline())
        writer.write(answer)
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        yield server.sockets[0].getsockname()[1], hits


async def refused(client, hello, address):
    answer = await client.post(CHAT, json=with_picture(hello, address))
    assert answer.status_code == 422, address
    assert "x-guardrail-score" not in answer.headers
    return answer


async def test_no_address_and_no_file_is_opened(served, guard_of, right_again, hello, tmp_path):
    secret = tmp_path / "secret.png"
    secret.write_bytes(b"SECRET")
    async with (
        watched() as (port, hits),
        served(guard_of(allowed_hosts={"127.0.0.1"})) as url,  # the server must say so, too
        httpx.AsyncClient(base_url=url) as client,
    ):
        before = await right_again(url)
        for address in (
            f"http://127.0.0.1:{port}/",
            f"http://localhost:{port}/",
            f"http://[::ffff:127.0.0.1]:{port}/",
            f"http://2130706433:{port}/",
            f"http://user@127.0.0.1:{port}/",
            "http://169.254.169.254/latest/meta-data/",
            "http://metadata.google.internal/",
            f"file://{secret}",
            str(secret),
            "/etc/passwd",
            "/nowhere/at/all.png",
            "gopher://127.0.0.1/",
            "ftp://127.0.0.1/a.png",
            "data:text/html,<p>",
        ):
            answer = await refused(client, hello, address)
            assert "SECRET" not in answer.text
            assert "No such file" not in answer.text
        assert hits == []
        assert await right_again(url) == before


async def test_a_redirect_leads_nowhere_else(served, guard_of, right_again, hello):
    async with watched() as (inner, inner_hits):
        away = f"HTTP/1.1 302 Found\r\nLocation: http://localhost:{inner}/\r\n\r\n".encode()
        guard = guard_of(allowed_hosts={"127.0.0.1"})
        async with (
            watched(away) as (port, hits),
            served(guard, ServerSettings(fetch_urls=True)) as url,
            httpx.AsyncClient(base_url=url) as client,
        ):
            answer = await refused(client, hello, f"http://127.0.0.1:{port}/a.png")
            assert answer.json()["error"]["code"] == "url_not_allowed"
            assert str(inner) not in answer.text
            assert len(hits) == 1
            assert inner_hits == []
            assert (await right_again(url))[0] == 200


@pytest.mark.parametrize("private", ["10.0.0.5", "127.0.0.1", "169.254.169.254", "::1"])
async def test_a_name_that_leads_into_the_network_is_not_followed(
    private, served, guard_of, right_again, hello, monkeypatch
):
    real = socket.getaddrinfo

    def resolve(host, port, *args, **more):
        if host != "pictures.example":
            return real(host, port, *args, **more)
        family = socket.AF_INET6 if ":" in private else socket.AF_INET
        return [(family, socket.SOCK_STREAM, 6, "", (private, port))]

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    guard = guard_of(allowed_hosts={"pictures.example"})
    async with (
        served(guard, ServerSettings(fetch_urls=True)) as url,
        httpx.AsyncClient(base_url=url) as client,
    ):
        answer = await refused(client, hello, "http://pictures.example/a.png")
        assert answer.json()["error"]["code"] == "url_not_allowed"  # not: nobody was there
        assert private not in answer.text  # where a name leads is the network's own affair
        assert (await right_again(url))[0] == 200
