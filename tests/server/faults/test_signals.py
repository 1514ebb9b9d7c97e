"""What signals do to a server in a process of its own, while clients ask."""

from __future__ import annotations

import asyncio
import json
import os
import signal

import httpx
import pytest

from tests.waiting import auntil, until

LONG = {"model": "guarded", "messages": [{"role": "user", "content": "hello"}], "max_tokens": 900}


async def events_of(response):
    return [line.removeprefix("data: ") async for line in response.aiter_lines() if line]


async def begun(client, url, body):
    """A stream of which the first line has come."""
    response = await client.send(
        client.build_request("POST", f"{url}/v1/chat/completions", json=body | {"stream": True}),
        stream=True,
    )
    assert response.status_code == 200
    return response


HELD = """
import time
from pathlib import Path
from guardrail.model.generate import RowsCriterion
take = RowsCriterion.__call__
def held(self, *args, **options):
    done = take(self, *args, **options)
    while Path(FILE).exists():
        time.sleep(0.01)
    return done
RowsCriterion.__call__ = held
"""


async def test_sigterm_under_load_lets_answers_end_and_refuses_new_ones(start, tmp_path):
    held = tmp_path / "held"
    options = ("--drain", "120", "--max-concurrent", "32")
    server = start(*options, before=HELD.replace("FILE", repr(str(held))))
    held.touch()  # from now on the model stops behind a first token until the file is gone
    body = LONG | {"max_tokens": 100}
    async with httpx.AsyncClient(timeout=120) as client:

        async def streamed():
            return await events_of(await begun(client, server.url, body))

        first = await begun(client, server.url, body)
        streams = [asyncio.create_task(streamed()) for _ in range(3)]
        whole = [
            asyncio.create_task(client.post(f"{server.url}/v1/chat/completions", json=body))
            for _ in range(4)
        ]
        await until_under_way(client, server.url, 8)
        server.signal(signal.SIGTERM)
        ready = await until_draining(client, server.url)
        assert ready.json()["status"] == "draining"
        refused = await client.post(f"{server.url}/v1/chat/completions", json=LONG)
        assert refused.status_code == 503
        assert refused.headers["retry-after"] == "1"
        assert refused.headers["connection"] == "close"
        held.unlink()
        for events in (await events_of(first), *await asyncio.gather(*streams)):
            assert events[-1] == "[DONE]"
        answers = await asyncio.gather(*whole)
        assert {answer.status_code for answer in answers} == {200}
        assert {answer.json()["usage"]["completion_tokens"] for answer in answers} == {100}
    assert server.ended() == 0
    assert not [line for line in server.lines if line["logger"].startswith("uvicorn")]


async def until_draining(client, url):
    async def draining():
        ready = await client.get(f"{url}/readyz")
        return ready if ready.status_code == 503 else None

    return await auntil(draining)


async def until_under_way(client, url, count):
    """Until the model has so many requests: none of them is on its way to the server any more."""

    async def there():
        queue = (await client.get(f"{url}/status.json")).json()["queue"]
        return queue["waiting"] + queue["running"] == count

    await auntil(there)


async def test_answers_that_take_too_long_end_with_an_error_when_the_server_ends(start):
    server = start("--drain", "0.3")
    async with httpx.AsyncClient(timeout=60) as client:
        stream = await begun(client, server.url, LONG)
        whole = asyncio.create_task(client.post(f"{server.url}/v1/chat/completions", json=LONG))
        await until_under_way(client, server.url, 2)
        server.signal(signal.SIGTERM)
        *_, last = await events_of(stream)
        assert json.loads(last)["error"]["code"] == "draining"
        answer = await whole
        assert answer.status_code == 503
        assert answer.json()["error"]["code"] == "draining"
    assert server.ended() == 0


async def test_a_second_signal_ends_it_at_once(start):
    server = start("--drain", "60")
    async with httpx.AsyncClient(timeout=60) as client:
        stream = await begun(client, server.url, LONG)
        server.signal(signal.SIGTERM)
        await until_draining(client, server.url)
        server.signal(signal.SIGINT)
        *_, last = await events_of(stream)
        assert "error" in json.loads(last)
    assert server.ended() == 1


async def again_and_again(url, sent, answers=None):
    """Connections one after another, until nobody listens: asked on, or dropped after `sent`."""
    host, _, port = url.removeprefix("http://").partition(":")
    while True:
        try:
            reader, writer = await asyncio.open_connection(host, int(port))
        except ConnectionRefusedError:
            return
        except OSError:  # reset on the way
            continue
        try:
            writer.write(sent)
            while answers is not None:
                answers.append(await reader.readuntil(b"}"))
                writer.write(sent)
        except (OSError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.transport.abort()


@pytest.mark.parametrize(
    "number", [0, *(pytest.param(n, marks=pytest.mark.slow) for n in range(1, 50))]
)
async def test_a_storm_of_connections_and_probes_does_not_put_the_end_off(number, start):
    server = start("--drain", "600")  # for answers, and none of these is one
    health = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n"
    answers = []
    storm = [again_and_again(server.url, health, answers) for _ in range(40)]
    storm += [again_and_again(server.url, health[:cut]) for cut in range(0, 40, 2)]
    going = asyncio.gather(*storm)
    await auntil(lambda: len(answers) > 50 + 10 * number)
    server.signal(signal.SIGTERM)
    ended = asyncio.create_task(asyncio.to_thread(server.ended))
    await asyncio.wait({ended}, timeout=120)
    in_time = ended.done()
    going.cancel()  # it may end now
    assert await ended == 0
    assert in_time


SLOW = """
import sys, time
import guardrail.model.load as loading
load = loading.load_model
def slow(*args, **options):
    print("LOADING", file=sys.stderr, flush=True)
    time.sleep(SECONDS)
    return load(*args, **options)
loading.load_model = slow
"""


@pytest.fixture
def begin(zygote, files, tmp_path):
    """`begin(word, seconds)`: the process of a server, its socket and its log with this word."""
    log, socket = tmp_path / "log", tmp_path / "socket"

    def begin(word, seconds):
        args = [str(files.model), "-a", str(files.first), "--unix-socket", str(socket)]
        before = SLOW.replace("SECONDS", str(seconds))
        pid = zygote.told(args=args, log=str(log), before=before)
        until_told(log, word)
        return pid, socket, log

    return begin


def until_told(log, word):
    until(lambda: log.exists() and word in log.read_text())


def test_sigterm_ends_a_server_that_still_loads_its_model(begin, zygote):
    pid, socket, log = begin("LOADING", 60)
    os.kill(pid, signal.SIGTERM)
    assert zygote.told(wait=pid) == 0  # of a handler: the first process of a container needs one
    assert "serving" not in log.read_text()
    assert not socket.exists()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_right_after_the_address_is_told_ends_it_in_order(number, begin, zygote):
    pid, socket, _ = begin('"serving"', 0)
    os.kill(pid, number)
    assert zygote.told(wait=pid) == 0
    assert not socket.exists()


def test_sighup_while_the_model_loads_is_heeded_later(begin, zygote):
    pid, _, log = begin("LOADING", 1)
    os.kill(pid, signal.SIGHUP)
    until_told(log, '"reloaded"')
    os.kill(pid, signal.SIGTERM)
    assert zygote.told(wait=pid) == 0
