"""An upstream that fails shows as one, and is asked again only where that is safe."""

from __future__ import annotations

import asyncio
import json

import pytest

from guardrail.errors import ConfigurationError
from guardrail.server import ServerSettings
from guardrail.server.proxy import UpstreamSettings
from guardrail.server.proxy.upstream import Kept, Upstream
from tests.waiting import auntil

PATH = "/v1/chat/completions"
KEY = "sk-very-secret"


async def status(seen, number, data=b'{"error": {"message": "no"}}', **headers):
    await seen.head(
        number, content_type="application/json", content_length=str(len(data)), **headers
    )
    await seen.send(data)


def answering(number, **headers):
    async def script(seen):
        await status(seen, number, **headers)

    return script


async def asked(proxy, wire, **more):
    answer = await proxy.post(PATH, json={**wire.CHAT, **more})
    # judged in any case, so the verdict is there in any case
    assert answer.headers["x-guardrail-action"] == "pass"
    return answer


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("number", "headers", "told", "code"),
    [
        (401, {}, 502, "upstream_auth"),
        (403, {}, 502, "upstream_auth"),
        (407, {}, 502, "upstream_auth"),
        (408, {}, 504, "upstream_timeout"),
        (429, {}, 429, "upstream_rate_limit"),
        (429, {"retry_after": "7"}, 429, "upstream_rate_limit"),
        (500, {}, 502, "upstream_failed"),
        (501, {}, 502, "upstream_failed"),
        (502, {}, 502, "upstream_failed"),
        (503, {}, 503, "upstream_unavailable"),
        (503, {"retry_after": "9"}, 503, "upstream_unavailable"),
        (504, {}, 504, "upstream_timeout"),
        (204, {}, 502, "upstream_failed"),
        (301, {"location": "http://127.0.0.1:9/"}, 502, "upstream_broken"),
        (307, {"location": "/v1/elsewhere"}, 502, "upstream_broken"),
    ],
)
async def test_a_status_is_told_as_what_it_means_here(
    proxy_of, upstream, wire, number, headers, told, code, stream
):
    async def script(seen):
        data = b"" if number == 204 else b'{"error": {"message": "no"}}'
        await status(seen, number, data, **headers)

    upstream.script = script
    answer = await asked(proxy_of(), wire, stream=stream)
    assert answer.status_code == told
    assert answer.json()["error"]["code"] == code
    assert answer.headers.get("retry-after") == headers.get("retry_after")
    assert len(upstream.seen) == 1


@pytest.mark.parametrize("number", [400, 404, 409, 413, 422])
async def test_a_mistake_of_the_client_is_told_in_the_upstreams_words(
    proxy_of, upstream, wire, number
):
    error = {"message": "too long", "type": "bad", "param": "messages", "code": "context_length"}
    upstream.says({"error": error}, number)
    answer = await asked(proxy_of(), wire)
    assert answer.status_code == number
    assert answer.json() == {"error": error}


@pytest.mark.parametrize(
    "data", [b"<html>no</html>", b"[1]", b'{"error": 5}', b"{" * 100_000, b"", b"x" * 200_000]
)
async def test_an_error_in_another_form_becomes_one_of_ours(proxy_of, upstream, wire, data):
    upstream.bytes(data, status=400)
    answer = await asked(proxy_of(), wire)
    assert answer.status_code == 400
    assert "refused" in answer.json()["error"]["message"]
    assert set(answer.json()["error"]) == {"message", "type", "param", "code"}


@pytest.mark.parametrize("number", [200, 400, 401, 500])
async def test_the_key_does_not_come_back(proxy_of, upstream, wire, number):
    upstream.says({"error": {"message": f"bad key {KEY}", "code": KEY}}, number)
    answer = await asked(proxy_of(key=KEY), wire)
    assert upstream.seen[0].headers["authorization"] == f"Bearer {KEY}"
    assert KEY not in answer.text + str(answer.headers)


@pytest.mark.parametrize("stream", [False, True])
async def test_a_key_that_is_a_word_is_not_cut_out_of_answers(proxy_of, upstream, wire, stream):
    if stream:
        upstream.streams(wire.told(wire.piece({"content": "an ollama"})), *wire.LAST)
    else:
        upstream.says({**wire.ANSWER, "model": "an ollama"})
    answer = await asked(proxy_of(key="ollama"), wire, stream=stream)
    assert "an ollama" in answer.text


async def test_an_upstream_that_is_not_there_is_a_bad_gateway(proxy_of, unused_port, wire):
    proxy = proxy_of(url=f"http://127.0.0.1:{unused_port}")
    answer = await asked(proxy, wire)
    assert answer.status_code == 502
    assert answer.json()["error"]["code"] == "upstream_unreachable"
    assert str(unused_port) not in answer.text


@pytest.fixture
def unused_port():
    import socket

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound and not listening: refused, and nobody else's
        yield taken.getsockname()[1]


@pytest.mark.parametrize("where", ["before the status", "inside the body", "inside an error"])
@pytest.mark.parametrize("limit", ["without a byte", "in sum", "of the server"])
async def test_an_upstream_that_is_slow_is_a_timeout(proxy_of, upstream, wire, where, limit):
    async def script(seen):
        if where != "before the status":
            number = 200 if where == "inside the body" else 400
            await seen.head(number, content_type="application/json", content_length="99")
            await seen.send(b"{")
        while not seen.reader.at_eof():
            if limit != "without a byte" and where != "before the status":
                await seen.send(b" ")  # each of them in time
            await asyncio.sleep(0.01)

    upstream.script = script
    slow = {"without a byte": "read_timeout_s", "in sum": "timeout_s"}.get(limit)
    settings = None if slow else ServerSettings(timeout_s=0.2)
    proxy = proxy_of(None, settings, **({slow: 0.2} if slow else {}))
    answer = await proxy.post(PATH, json=wire.CHAT)
    silent = where == "inside an error" and limit == "without a byte"
    assert answer.status_code == (400 if silent else 504)
    upstream.says(wire.ANSWER)
    for _ in range(20):  # its time is as short
        if (answer := await proxy.post(PATH, json=wire.CHAT)).status_code == 200:
            break
    assert answer.json()["choices"] == wire.ANSWER["choices"]


async def script_garbage(seen):
    await seen.send(b"SSH-2.0-OpenSSH_9.6\r\n")


async def script_nothing(seen):
    pass


async def script_cut(seen):
    await seen.head(content_type="application/json", content_length="1000")
    await seen.send(b'{"id": "x"')


async def script_huge_head(seen):
    await seen.send(b"HTTP/1.1 200 OK\r\n" + b"a: b\r\n" * 100_000)


@pytest.mark.parametrize("script", [script_garbage, script_nothing, script_cut, script_huge_head])
async def test_an_answer_that_is_none_or_is_cut_is_a_bad_gateway(proxy_of, upstream, wire, script):
    upstream.script = script
    proxy = proxy_of(retries=2)
    answer = await asked(proxy, wire)
    assert answer.status_code == 502
    assert len(upstream.seen) == 1  # it may have been begun, so it is not sent again
    upstream.says(wire.ANSWER)
    assert (await asked(proxy, wire)).status_code == 200


@pytest.mark.parametrize(
    ("data", "headers"),
    [
        (b"nothing", {}),
        (b"[]", {}),
        (b'{"a": NaN}', {}),
        (b'{"a": 1, "a": 2}', {}),
        (b'{"a":' * 100_000, {}),
        (b'{"a": "\xff"}', {}),
        (b'{"a": 1}', {"content_type": "text/html"}),
        (b"data: {}\n\n", {"content_type": "text/event-stream"}),
        (b'{"a": 1}', {"content_encoding": "gzip"}),
    ],
)
async def test_garbage_is_a_bad_gateway(proxy_of, upstream, wire, data, headers):
    upstream.bytes(data, **headers)
    answer = await asked(proxy_of(), wire)
    assert answer.status_code == 502
    assert answer.json()["error"]["code"] == "upstream_broken"


async def test_an_answer_larger_than_allowed_is_not_read_to_its_end(proxy_of, upstream, wire):
    sent = 0

    async def script(seen):
        nonlocal sent
        await seen.head(content_type="application/json")
        while True:  # ends when the proxy hangs up
            await seen.send(b" " * 10_000)
            sent += 10_000

    upstream.script = script
    answer = await asked(proxy_of(max_answer_bytes=50_000), wire)
    assert answer.status_code == 502
    assert "too large" in answer.json()["error"]["message"]
    assert sent < 50_000_000


@pytest.mark.parametrize(
    "script", [answering(429, retry_after="0"), answering(503, retry_after="0")]
)
async def test_what_was_certainly_not_begun_is_sent_again(proxy_of, upstream, wire, script):
    async def fine(seen):
        await status(seen, 200, json.dumps(wire.ANSWER).encode())

    upstream.in_turn(script, script, fine)
    answer = await asked(proxy_of(retries=2), wire)
    assert answer.status_code == 200
    assert [seen.json for seen in upstream.seen] == [wire.CHAT] * 3


@pytest.mark.parametrize(
    "script",
    [
        answering(429),
        answering(503),
        answering(429, retry_after="60"),
        answering(503, retry_after="Wed, 21 Oct 2026 07:28:00 GMT"),
        answering(500),
        answering(502),
        answering(504),
        answering(400),
        answering(401),
    ],
)
async def test_what_may_have_been_begun_is_not_sent_again(proxy_of, upstream, wire, script):
    upstream.script = script
    await asked(proxy_of(retries=2), wire)
    assert len(upstream.seen) == 1


async def test_a_connection_that_was_not_made_is_tried_again(app_of, upstream, wire, monkeypatch):
    import httpx

    app, failures = app_of(retries=2), [httpx.ConnectError("no"), httpx.ConnectTimeout("no")]
    client = app.state.service.answerer._upstream._client()
    send = client.send

    async def failing(request, **options):
        if failures:
            raise failures.pop()
        return await send(request, **options)

    monkeypatch.setattr(client, "send", failing)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://p") as proxy:
        answer = await asked(proxy, wire)
    assert answer.status_code == 200
    assert failures == []


async def test_waits_between_attempts_end_with_the_requests_time(proxy_of, upstream, wire):
    upstream.script = answering(503, retry_after="3")
    answer = await asked(proxy_of(None, ServerSettings(timeout_s=2), retries=9), wire)
    assert answer.status_code == 503  # at once: the wait would be longer than what is left
    assert answer.headers["retry-after"] == "3"
    assert len(upstream.seen) == 1


async def test_when_all_connections_are_taken_clients_are_told_to_wait(
    proxy_of, upstream, wire, monkeypatch
):
    release = asyncio.Event()

    async def script(seen):
        await release.wait()
        await status(seen, 200, json.dumps(wire.ANSWER).encode())

    upstream.script = script
    proxy = proxy_of(connections=1, pool_timeout_s=0.1)
    first = asyncio.create_task(asked(proxy, wire))
    await auntil(lambda: upstream.seen)
    second = await asked(proxy, wire)
    release.set()
    assert second.status_code == 503
    assert second.headers["retry-after"] == "1"
    assert (await first).status_code == 200


async def test_one_client_is_used_for_all_and_closed(app_of, wire, upstream):
    import httpx

    app = app_of()
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://p") as proxy:
        await asked(proxy, wire)
        client = app.state.service.answerer._upstream._client()
        await asked(proxy, wire)
        assert app.state.service.answerer._upstream._client() is client
    await app.state.service.aclose()
    assert client.is_closed


async def test_a_proxy_in_the_environment_is_not_used_unless_asked(
    proxy_of, upstream, wire, monkeypatch, unused_port
):
    monkeypatch.setenv("HTTP_PROXY", f"http://127.0.0.1:{unused_port}")
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.delenv("no_proxy", raising=False)
    assert (await asked(proxy_of(), wire)).status_code == 200
    assert (await asked(proxy_of(trust_env=True), wire)).status_code == 502


def test_authorities_that_cannot_be_read_are_an_error_at_the_start(tmp_path):
    (tmp_path / "ca.pem").write_text("nothing")
    for name in ("ca.pem", "none.pem"):
        with pytest.raises(ConfigurationError, match=name):
            Upstream(UpstreamSettings(url="https://h", ca_file=tmp_path / name))


ESCAPED = "".join(f"\\u{ord(letter):04x}" for letter in KEY)


async def test_a_key_that_an_answer_writes_in_escapes_is_not_told(proxy_of, upstream, wire):
    data = json.dumps({**wire.ANSWER, "a key": "a key", "list": ["a key"]})
    upstream.bytes(data.replace("a key", ESCAPED).encode(), x_request_id=KEY)
    answer = await asked(proxy_of(key=KEY), wire)
    assert answer.status_code == 200
    assert KEY not in json.dumps(answer.json(), ensure_ascii=False)
    assert KEY not in str(answer.headers)
    assert answer.json()["***"] == "***"
    assert answer.json()["choices"] == wire.ANSWER["choices"]


async def test_a_key_that_a_stream_writes_in_escapes_is_not_told(proxy_of, upstream, wire):
    echo = wire.told(wire.piece({"content": "a key"})).replace(b"a key", ESCAPED.encode())
    upstream.streams(wire.WORDS[0], wire.WORDS[1], echo, *wire.LAST)
    answer = await asked(proxy_of(key=KEY), wire, stream=True)
    assert KEY not in json.dumps(wire.events(answer.content))
    assert wire.WORDS[1] in answer.content  # what holds no key goes on byte for byte
    assert wire.events(answer.content)[2]["choices"][0]["delta"] == {"content": "***"}


MODELS = {
    "object": "list",
    "data": [
        {"id": "a", "object": "model", "created": 1, "owned_by": "o", "root": "/srv/weights"},
        {"id": "b", "permission": [{"id": "x"}]},
        {"name": "no id"},
        5,
    ],
}


async def test_models_are_those_of_the_upstream_without_what_else_it_says(proxy_of, upstream):
    upstream.says(MODELS)
    proxy = proxy_of()
    for _ in range(3):
        listed = (await proxy.get("/v1/models")).json()
    assert listed == {
        "object": "list",
        "data": [{"id": "a", "object": "model", "created": 1, "owned_by": "o"}, {"id": "b"}],
    }
    assert [seen.path for seen in upstream.seen] == ["/v1/models"]


async def test_models_that_cannot_be_had_are_an_error_and_asked_for_again(proxy_of, upstream):
    upstream.says({"data": 5})
    proxy = proxy_of()
    answer = await proxy.get("/v1/models")
    assert answer.status_code == 502
    assert answer.json()["error"]["type"] == "server_error"
    upstream.says(MODELS)
    assert (await proxy.get("/v1/models")).status_code == 200


async def test_models_are_asked_for_again_where_nothing_was_said(proxy_of, upstream, wire):
    async def unsure(seen):
        await seen.head(502, content_length="0")

    async def fine(seen):
        upstream.says(MODELS)
        await upstream.script(seen)

    upstream.in_turn(unsure, fine)
    assert (await proxy_of(retries=1).get("/v1/models")).status_code == 200


@pytest.mark.parametrize(
    ("status", "ready"),
    [(200, 200), (404, 200), (405, 200), (401, 503), (500, 503), (503, 503), (302, 503)],
)
async def test_readiness_tells_whether_the_upstream_answers(proxy_of, upstream, status, ready):
    upstream.says({}, status)
    proxy = proxy_of()
    for _ in range(3):
        assert (await proxy.get("/readyz")).status_code == ready
        assert (await proxy.get("/healthz")).status_code == 200
    assert len(upstream.seen) == 1


async def test_an_upstream_that_is_slow_does_not_hold_up_readiness(proxy_of, upstream, monkeypatch):
    async def script(seen):
        await seen.reader.read()

    upstream.script = script
    monkeypatch.setattr("guardrail.server.proxy.upstream._PROBE_S", 0.3)
    proxy = proxy_of()
    answers = await asyncio.gather(*(proxy.get("/readyz") for _ in range(5)))
    assert {answer.status_code for answer in answers} == {503}
    assert len(upstream.seen) == 1


async def test_a_closed_guard_is_told_before_the_upstream_is_asked(app_of, upstream):
    app = app_of()
    app.state.service.guard.closed = True
    assert "closed" in await app.state.service.answerer.trouble()
    assert upstream.seen == []


async def test_a_value_is_kept_for_its_time_and_a_failure_is_not():
    asked, fails = [], [True]

    async def ask():
        asked.append(1)
        if fails.pop() if fails else False:
            raise ValueError
        return len(asked)

    kept = Kept(ask, 60)
    with pytest.raises(ValueError):  # noqa: PT011  # its own
        await kept.get()
    assert await asyncio.gather(kept.get(), kept.get()) == [2, 2]
    assert await Kept(ask, 0).get() == 3
