from __future__ import annotations

import asyncio
from types import SimpleNamespace

import httpx
import pytest

from guardrail.server import ServerSettings
from guardrail.server.admission import Admission
from guardrail.server.keys import keys_from_text


class Slow:
    """An app that answers when it is let go on; the client's name is in a header."""

    def __init__(self, settings):
        self.go, self.inside = asyncio.Event(), 0
        self.service = SimpleNamespace(settings=settings, keys=settings.keys)
        self.app = Admission(self._answer, service=self.service)

    async def _answer(self, scope, receive, send):
        self.inside += 1
        await self.go.wait()
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    async def __call__(self, scope, receive, send):
        name = dict(scope["headers"]).get(b"x-name", b"").decode()
        scope["state"] = {"caller": SimpleNamespace(client=name)}
        await self.app(scope, receive, send)


@pytest.fixture
async def tried():
    made = []

    def make(**settings):
        slow = Slow(ServerSettings(**settings))
        client = httpx.AsyncClient(transport=httpx.ASGITransport(slow), base_url="http://s")
        made.append(client)

        def ask(name="a", method="POST"):
            return asyncio.create_task(client.request(method, "/", headers={"x-name": name}))

        return slow, ask

    yield make
    for client in made:
        await client.aclose()


async def until(slow, inside):
    for _ in range(1000):
        if slow.inside == inside:
            return
        await asyncio.sleep(0)
    raise AssertionError(f"{slow.inside} inside, not {inside}")


async def test_requests_beyond_the_bound_are_told_to_come_back(tried):
    slow, ask = tried(max_concurrent=2)
    under_way = [ask(), ask()]
    await until(slow, 2)
    refused = await ask()
    assert refused.status_code == 429
    assert refused.headers["retry-after"] == "1"
    assert refused.json()["error"]["code"] == "too_many_requests"
    slow.go.set()
    assert [answer.status_code for answer in await asyncio.gather(*under_way)] == [200, 200]
    assert (await ask()).status_code == 200


async def test_one_client_leaves_places_to_others(tried):
    slow, ask = tried(max_concurrent=4, max_per_client=2)
    under_way = [ask("a"), ask("a")]
    await until(slow, 2)
    assert (await ask("a")).status_code == 429
    under_way.append(ask("b"))
    await until(slow, 3)
    slow.go.set()
    assert [answer.status_code for answer in await asyncio.gather(*under_way)] == [200] * 3


async def test_a_client_has_less_once_there_is_a_second_one(tried):
    slow, ask = tried(max_concurrent=2)
    under_way = [ask("a")]
    await until(slow, 1)
    slow.service.keys = keys_from_text("a:0123456789abcdef,b:fedcba9876543210", source="x")
    assert (await ask("a")).status_code == 429
    under_way.append(ask("b"))
    await until(slow, 2)
    slow.go.set()
    assert [answer.status_code for answer in await asyncio.gather(*under_way)] == [200] * 2


async def test_a_cancelled_request_leaves_its_place(tried):
    slow, ask = tried(max_concurrent=1)
    task = ask()
    await until(slow, 1)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    slow.go.set()
    assert (await ask()).status_code == 200


async def test_what_costs_nothing_is_not_counted(tried):
    slow, ask = tried(max_concurrent=1)
    under_way = [ask(), ask(method="GET")]
    await until(slow, 2)
    slow.go.set()
    assert [answer.status_code for answer in await asyncio.gather(*under_way)] == [200, 200]
