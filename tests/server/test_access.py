from __future__ import annotations

import asyncio
import base64

import httpx
import pytest

from guardrail.server import ServerSettings, create_app
from guardrail.server.keys import keys_from_text

TOKEN, OTHER = "sesame-open-1234567", "sesame-shut-1234567"
KEYS = keys_from_text(f"web:{TOKEN}\nbatch:{OTHER}", source="x")
HELLO = {"model": "guarded", "messages": [{"role": "user", "content": "hello"}], "max_tokens": 2}


def bearer(token=TOKEN):
    return {"Authorization": f"Bearer {token}"}


@pytest.fixture
def client(guard_of, client_of):
    return client_of(guard_of(), ServerSettings(keys=KEYS))


async def test_a_request_with_a_key_is_answered_and_named(client, caplog):
    caplog.set_level("INFO", "guardrail.access")
    async with client:
        answer = await client.post("/v1/chat/completions", json=HELLO, headers=bearer(OTHER))
    assert answer.status_code == 200
    [line] = [r for r in caplog.records if r.name == "guardrail.access"]
    assert line.client == "batch"
    assert OTHER not in caplog.text


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Authorization": ""},
        {"Authorization": TOKEN},
        {"Authorization": "Bearer"},
        {"Authorization": f"Bearer {TOKEN}x"},
        {"Authorization": f"Basic {base64.b64encode(f'x:{TOKEN}'.encode()).decode()}"},
        {"X-Api-Key": TOKEN + "x"},
        {"X-Api-Key": TOKEN, "Authorization": "Bearer x"},
        [("Authorization", f"Bearer {TOKEN}"), ("Authorization", "Bearer x")],
    ],
)
async def test_other_requests_are_refused_in_the_openai_form(headers, client):
    async with client:
        answer = await client.post("/v1/chat/completions", json=HELLO, headers=headers)
    assert answer.status_code == 401
    assert answer.headers["www-authenticate"].startswith("Bearer")
    assert answer.json()["error"]["code"] == "invalid_api_key"
    assert TOKEN not in answer.text
    assert "hello" not in answer.text


@pytest.mark.parametrize(
    "path", ["/", "/metrics", "/v1/models", "/openapi.json", "/nowhere", "//healthz"]
)
async def test_all_but_health_needs_a_key(path, client):
    async with client:
        assert (await client.get(path)).status_code == 401
        assert (await client.get(path, headers=bearer())).status_code != 401


@pytest.mark.parametrize("path", ["/healthz", "/readyz"])
async def test_health_needs_none(path, client):
    async with client:
        assert (await client.get(path)).status_code == 200


async def test_without_a_key_nothing_is_read_of_a_body(guard_of, client_of):
    settings = ServerSettings(keys=KEYS[:1], max_concurrent=1)
    async with client_of(guard_of(), settings) as client:
        for method in ("POST", "PUT", "DELETE"):
            answer = await client.request(method, "/healthz", content=never())
            assert answer.status_code == 401
        answer = await client.request("GET", "/healthz", content=bytes(2000))
        assert answer.status_code == 413


async def never():
    """A body, of which nothing may be asked."""
    yield pytest.fail("the body of a request without a key was read")


async def test_a_path_with_a_slash_too_many_leads_nowhere(client):
    async with client:
        told = bearer() | {"Host": "evil.example"}
        answer = await client.post("/v1/chat/completions/", json=HELLO, headers=told)
    assert answer.status_code == 404
    assert answer.json()["error"]["code"] == "not_found"


async def test_metrics_and_status_can_be_opened(guard_of, client_of):
    settings = ServerSettings(keys=KEYS, open_metrics=True, open_status=True)
    async with client_of(guard_of(), settings) as client:
        for path in ("/metrics", "/"):
            assert (await client.get(path)).status_code == 200
        assert (await client.get("/v1/models")).status_code == 401


async def test_a_browser_may_send_the_key_as_a_password_for_the_status_page_only(client):
    async with client:
        asked = await client.get("/")
        assert asked.headers["www-authenticate"].startswith("Basic")
        assert (await client.get("/", auth=("anyone", TOKEN))).status_code == 200
        assert (await client.get("/", auth=("anyone", "x"))).status_code == 401
        assert (await client.get("/", headers={"Authorization": "Basic ???"})).status_code == 401
        assert (await client.get("/v1/models", auth=("anyone", TOKEN))).status_code == 401


async def test_keys_can_be_put_in_the_place_of_others(guard_of):
    app = create_app(guard_of(), ServerSettings(keys=KEYS[:1]))
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://s") as client:
        assert (await client.get("/v1/models", headers=bearer())).status_code == 200
        app.state.service.keys = KEYS[1:]
        assert (await client.get("/v1/models", headers=bearer())).status_code == 401
        assert (await client.get("/v1/models", headers=bearer(OTHER))).status_code == 200


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("localhost", 200),
        ("LOCALHOST:8000", 200),
        ("[::1]:8000", 200),
        ("evil.example", 421),
        ("localhost.evil.example", 421),
        ("", 421),
    ],
)
async def test_only_known_names_are_answered(host, status, guard_of, client_of):
    names = frozenset({"localhost", "::1"})
    async with client_of(guard_of(), ServerSettings(hostnames=names)) as client:
        answer = await client.get("/v1/models", headers={"Host": host})
    assert answer.status_code == status


async def test_a_draining_server_refuses_and_says_that_it_is_not_ready(guard_of):
    app = create_app(guard_of())
    app.state.service.lifecycle.drain()
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://s") as client:
        answer = await client.post("/v1/chat/completions", json=HELLO)
        assert answer.status_code == 503
        assert answer.json()["error"]["code"] == "draining"
        assert answer.headers["retry-after"] == "1"
        assert answer.headers["connection"] == "close"
        ready = await client.get("/readyz")
        assert (ready.status_code, ready.json()["status"]) == (503, "draining")
        assert (await client.get("/healthz")).status_code == 200


async def test_pages_of_other_sites_may_ask_only_when_they_are_named(guard_of, client_of):
    asked = {"Origin": "https://app.example", "Access-Control-Request-Method": "POST"}
    async with client_of(guard_of(), ServerSettings(keys=KEYS)) as client:
        answer = await client.options("/v1/chat/completions", headers=asked)
        assert answer.status_code == 401
        assert "access-control-allow-origin" not in answer.headers
    settings = ServerSettings(keys=KEYS, cors_origins=("https://app.example",))
    async with client_of(guard_of(), settings) as client:
        answer = await client.options("/v1/chat/completions", headers=asked)
        assert answer.status_code == 200
        assert answer.headers["access-control-allow-origin"] == "https://app.example"
        other = await client.get("/healthz", headers={"Origin": "https://evil.example"})
        assert "access-control-allow-origin" not in other.headers


CLIENTS = {"a": "0123456789abcdef", "b": "fedcba9876543210"}


def keys_of(*names):
    return keys_from_text(",".join(f"{name}:{CLIENTS[name]}" for name in names), source="x")


class Slow:
    """An app that answers when it is let go on."""

    def __init__(self):
        self.go, self.inside = asyncio.Event(), 0

    async def __call__(self, scope, receive, send):
        self.inside += 1
        await self.go.wait()
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b""})


@pytest.fixture
async def tried(around):
    made = []

    def make(*, known=("a",), **settings):
        slow = Slow()
        app = around(slow, keys=keys_of(*known), **settings)
        slow.service = app._service
        client = httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://s")
        made.append(client)

        def ask(name="a", method="POST"):
            return asyncio.create_task(client.request(method, "/", headers=bearer(CLIENTS[name])))

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
    slow, ask = tried(known=("a", "b"), max_concurrent=4, max_per_client=2)
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
    slow.service.keys = keys_of("a", "b")
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
