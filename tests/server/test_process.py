from __future__ import annotations

import asyncio
import os
import signal
import ssl
import subprocess
import sys

import httpx
import pytest

from guardrail.server import create_app
from guardrail.server.listening import bound_socket
from guardrail.server.process import Server, config_of, starting
from guardrail.server.settings import Listening
from tests.waiting import auntil

# in another process: connections of this one go to the loopback address only
ASK = """
import socket, sys
with socket.socket(socket.AF_UNIX) as asking:
    asking.connect(sys.argv[1])
    asking.sendall(b"GET /healthz HTTP/1.1\\r\\nHost: localhost\\r\\nConnection: close\\r\\n\\r\\n")
    print(asking.makefile("rb").read().decode())
"""


class Reloads:
    def __init__(self):
        self.count = 0

    async def reload(self):
        self.count += 1
        return True


@pytest.fixture
def running(guard_of):
    """`server, task, listener = await running(listening)`, ended with the test."""
    ends = []

    async def start(listening=None, reloader=None):
        where = listening or Listening(port=0)
        app = create_app(guard_of())
        server = Server(config_of(app, where), app, reloader, where.unix_socket)
        bound = bound_socket(where)
        listener = bound.__enter__()
        task = asyncio.create_task(server.serve([listener]))
        ends.append(bound)
        await auntil(lambda: server.started or task.done())
        return server, task, listener

    yield start
    for bound in ends:
        bound.__exit__(None, None, None)


def url_of(listener):
    return f"http://127.0.0.1:{listener.getsockname()[1]}"


async def ended(server, task):
    server.handle_exit(signal.SIGTERM, None)
    await asyncio.wait_for(task, 20)


async def test_an_idle_server_ends_with_the_first_signal(running):
    server, task, listener = await running()
    async with httpx.AsyncClient(base_url=url_of(listener)) as client:
        answer = await client.get("/healthz")
        assert "server" not in answer.headers
    await ended(server, task)
    assert not server.force_exit


async def test_a_second_signal_does_not_wait_for_what_ends_slowly(running, monkeypatch, tmp_path):
    codes, path = [], tmp_path / "socket"
    monkeypatch.setattr(os, "_exit", codes.append)
    server, task, _ = await running(Listening(unix_socket=path))
    slow, go_on = asyncio.Event(), asyncio.Event()
    real = server.lifespan.shutdown

    async def shutdown():
        slow.set()
        await go_on.wait()
        await real()

    monkeypatch.setattr(server.lifespan, "shutdown", shutdown)
    server.handle_exit(signal.SIGTERM, None)
    await asyncio.wait_for(slow.wait(), 20)
    assert (codes, path.exists()) == ([], True)
    server.handle_exit(signal.SIGTERM, None)
    assert (codes, path.exists()) == ([1], False)
    go_on.set()
    await asyncio.wait_for(task, 20)


async def test_what_a_proxy_says_of_the_client_is_not_believed(running):
    server, task, listener = await running()
    seen = []
    inner = server.config.app

    async def watching(scope, receive, send):
        if scope["type"] == "http":
            seen.append((scope["client"][0], scope["scheme"]))
        await inner(scope, receive, send)

    server.config.loaded_app = watching
    async with httpx.AsyncClient(base_url=url_of(listener)) as client:
        told = {"X-Forwarded-For": "10.1.1.1", "X-Forwarded-Proto": "https"}
        await client.get("/healthz", headers=told)
    await ended(server, task)
    assert seen == [("127.0.0.1", "http")]


async def test_sighup_asks_for_one_reload(running):
    reloader = Reloads()
    server, task, _ = await running(reloader=reloader)
    server.ask_reload()
    await auntil(lambda: reloader.count)
    await ended(server, task)
    assert reloader.count == 1


async def test_a_unix_socket_is_answered(running, tmp_path):
    path = tmp_path / "socket"
    server, task, _ = await running(Listening(unix_socket=path))
    asking = await asyncio.create_subprocess_exec(
        sys.executable, "-c", ASK, str(path), stdout=asyncio.subprocess.PIPE
    )
    told, _ = await asking.communicate()
    assert told.startswith(b"HTTP/1.1 200")
    await ended(server, task)


async def test_tls_is_spoken_with_a_certificate(running, tmp_path):
    cert, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    make = "openssl req -x509 -newkey rsa:2048 -nodes -days 1 -subj /CN=localhost"
    names = ["-addext", "subjectAltName=IP:127.0.0.1"]
    command = [*make.split(), *names, "-keyout", str(key), "-out", str(cert)]
    try:
        subprocess.run(command, check=True, capture_output=True)
    except FileNotFoundError:
        pytest.skip("openssl makes the certificate")
    where = Listening(port=0, tls_cert=cert, tls_key=key)
    server, task, listener = await running(where)
    url = url_of(listener).replace("http", "https")
    trusting = ssl.create_default_context(cafile=str(cert))
    async with httpx.AsyncClient(verify=trusting, base_url=url) as client:
        assert (await client.get("/healthz")).status_code == 200
    await ended(server, task)


def test_signals_before_there_is_a_server(monkeypatch):
    codes = []
    monkeypatch.setattr(os, "_exit", codes.append)
    numbers = (signal.SIGTERM, signal.SIGHUP)
    before = [signal.getsignal(number) for number in numbers]
    with starting() as start:
        assert not start.reload_asked
        signal.raise_signal(signal.SIGHUP)
        assert start.reload_asked
        assert codes == []
        signal.raise_signal(signal.SIGTERM)
        assert codes == [0]
    assert [signal.getsignal(number) for number in numbers] == before
