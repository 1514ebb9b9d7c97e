"""The upstream is asked for its models and its health now and then, and never for liveness."""

from __future__ import annotations

import asyncio

import pytest

from guardrail.server.proxy.reach import Kept

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
    monkeypatch.setattr("guardrail.server.proxy.reach._PROBE_S", 0.3)
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
