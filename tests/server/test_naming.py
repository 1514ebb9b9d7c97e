from __future__ import annotations

import logging
import re

import pytest

from guardrail.server import ServerSettings
from guardrail.types import Action

HELLO = {"model": "guarded", "messages": [{"role": "user", "content": "hello"}], "max_tokens": 2}


@pytest.fixture
def lines(caplog):
    caplog.set_level(logging.INFO, "guardrail.access")
    return lambda: [r for r in caplog.records if r.name == "guardrail.access"]


async def test_a_safe_id_of_the_client_is_kept(guard_of, client_of):
    async with client_of(guard_of()) as client:
        answer = await client.get("/healthz", headers={"X-Request-ID": "job-7.a_B"})
    assert answer.headers["x-request-id"] == "job-7.a_B"


@pytest.mark.parametrize("unsafe", ["a b", "a\tb", "x" * 65, "", "é", "a;b", '"', "<script>"])
async def test_an_unsafe_id_is_replaced(unsafe, guard_of, client_of):
    async with client_of(guard_of()) as client:
        answer = await client.get("/healthz", headers={"X-Request-ID": unsafe.encode()})
    assert re.fullmatch("[0-9a-f]{32}", answer.headers["x-request-id"])


async def test_two_ids_are_none(guard_of, client_of):
    async with client_of(guard_of()) as client:
        twice = [("X-Request-ID", "a"), ("X-Request-ID", "b")]
        answer = await client.get("/healthz", headers=twice)
    assert len(answer.headers["x-request-id"]) == 32


async def test_errors_have_an_id_too(guard_of, client_of):
    async with client_of(guard_of()) as client:
        for path in ("/nowhere", "/v1/chat/completions"):
            answer = await client.post(path, content=b"{")
            assert answer.status_code >= 400
            assert len(answer.headers["x-request-id"]) == 32


async def test_the_log_has_one_line_a_request_without_what_was_asked(guard_of, client_of, lines):
    async with client_of(guard_of(Action.PASS)) as client:
        answer = await client.post("/v1/chat/completions?secret=1", json=HELLO)
    [line] = lines()
    assert (line.method, line.route, line.status) == ("POST", "/v1/chat/completions", 200)
    assert line.request_id == answer.headers["x-request-id"]
    assert line.action == "pass"
    assert line.score == float(answer.headers["x-guardrail-score"])  # a number, to count with
    assert line.client is None
    assert line.seconds >= 0
    assert "secret" not in str(line.__dict__)
    assert "hello" not in str(line.__dict__)


async def test_the_log_names_no_path_that_is_no_route(guard_of, client_of, lines):
    async with client_of(guard_of()) as client:
        await client.get("/v1/my%0aprompt")
    [line] = lines()
    assert (line.route, line.status) == ("other", 404)
    assert "prompt" not in str(line.__dict__)


@pytest.mark.parametrize("wanted", [False, True])
async def test_prompts_are_logged_only_where_they_are_wanted(wanted, guard_of, client_of, caplog):
    caplog.set_level(logging.DEBUG)
    async with client_of(guard_of(), ServerSettings(log_prompts=wanted)) as client:
        messages = [{"role": "user", "content": "my very words " + "A" * 500}]
        answer = await client.post("/v1/chat/completions", json=HELLO | {"messages": messages})
    assert answer.status_code == 200
    told = [r for r in caplog.records if "my very words" in str(r.__dict__)]
    assert bool(told) is wanted
    if wanted:
        assert "<500 characters>" in told[0].body
        assert "AAAA" not in told[0].body
        assert told[0].request_id == answer.headers["x-request-id"]
