"""Verdicts over HTTP: one by itself, many in their places, errors beside them."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from guardrail.policy import Limits
from guardrail.server import ServerSettings, create_app
from guardrail.types import Action

URL = "/v1/checks"
TOOL = {"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}}


@pytest.fixture
def check(guard_of, client_of):
    """Post one body to a guard that takes this action, and give the answer."""

    async def post(body: Any, action: Action = Action.PASS, *, settings: Any = None, **policy: Any):
        async with client_of(guard_of(action, **policy), settings) as client:
            return await client.post(URL, json=body)

    return post


async def test_a_verdict_is_the_guards_own(guard_of, client_of):
    guard = guard_of()
    expected = guard.check("hello")
    async with client_of(guard) as client:
        answer = await client.post(URL, json={"input": "hello", "model": "guarded"})
    told = answer.json()
    assert told["object"] == "check"
    assert told["model"] == "guarded"
    assert told["verdict"] == expected.to_dict() | {"score": pytest.approx(expected.score)}
    assert answer.headers["x-guardrail-action"] == "pass"
    assert answer.headers["x-guardrail-artefact"] == expected.artefact_id


async def test_a_prompt_is_the_same_in_all_forms(check):
    forms = [
        {"input": "hello"},
        {"input": [{"type": "text", "text": "hello"}]},
        {"messages": [{"role": "user", "content": "hello"}]},
    ]
    scores = [(await check(form)).json()["verdict"]["score"] for form in forms]
    assert scores == pytest.approx([scores[0]] * 3, abs=1e-5)


async def test_tools_are_judged_along(check):
    alone = await check({"input": "hello"})
    beside = await check({"input": "hello", "tools": [TOOL]})
    assert beside.json()["verdict"]["score"] != pytest.approx(alone.json()["verdict"]["score"])


@pytest.mark.parametrize("on_flag", ["refuse", "raise", "annotate"])
async def test_a_flag_is_no_error(check, on_flag):
    answer = await check({"input": "hello"}, Action.FLAG, on_flag=on_flag)
    assert answer.status_code == 200
    assert answer.json()["verdict"]["action"] == "flag"


async def test_many_are_answered_in_order_with_errors_in_their_places(guard_of, client_of):
    guard = guard_of()
    words = ["one", "two", "three", "four"]
    inputs: list[dict[str, Any]] = [{"input": word} for word in words]
    inputs.insert(1, {"input": [{"type": "image_url", "image_url": {"url": "/etc/passwd"}}]})
    inputs.insert(3, {"something": "else"})
    async with client_of(guard) as client:
        answer = await client.post(URL, json={"inputs": inputs})
    told = answer.json()
    assert answer.status_code == 200
    assert told["object"] == "list"
    assert [item["index"] for item in told["data"]] == list(range(6))
    assert [item["status"] for item in told["data"]] == [200, 422, 200, 422, 200, 200]
    scores = [item["verdict"]["score"] for item in told["data"] if item["status"] == 200]
    assert scores == pytest.approx([guard.check(word).score for word in words], abs=1e-4)
    assert told["data"][1]["error"]["code"] == "unsupported_content"
    assert "something" in told["data"][3]["error"]["message"] + told["data"][3]["error"]["param"]


async def test_a_batch_may_be_larger_than_the_queue(check):
    answer = await check({"inputs": [{"input": "hello"}] * 20}, limits=Limits(queue=3, batch=2))
    assert {item["status"] for item in answer.json()["data"]} == {200}


async def test_a_batch_has_a_bound(check):
    settings = ServerSettings(max_checks=2)
    answer = await check({"inputs": [{"input": "hello"}] * 3}, settings=settings)
    assert answer.status_code == 413
    assert answer.json()["error"]["param"] == "inputs"


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"input": None},
        {"input": "a", "messages": []},
        {"input": "a", "inputs": [{"input": "b"}]},
        {"inputs": []},
        {"inputs": [{"input": "b"}], "tools": [TOOL]},
        {"input": ["a", "b"]},
        {"input": "a", "extra": 1},
        {"messages": []},
        {"messages": [{"role": "user"}]},
    ],
)
async def test_what_is_no_check_is_refused(check, body):
    answer = await check(body)
    assert answer.status_code == 422
    assert answer.json()["error"]["type"] == "invalid_request_error"


@pytest.mark.parametrize(
    ("body", "told"),
    [
        ({"inputs": ["a"]}, "inputs.0: must be a JSON object"),
        (["a"], "the body: must be a JSON object"),
        ({"inptu": "a"}, "inptu: there is no such field here"),
    ],
)
async def test_what_is_wrong_with_a_check_is_told_in_words_of_json(check, body, told):
    assert (await check(body)).json()["error"]["message"] == told


async def test_another_model_is_not_found(check):
    assert (await check({"input": "a", "model": "other"})).status_code == 404


@pytest.mark.usefixtures("broken_detector")
async def test_an_outage_is_an_error_and_no_verdict(check):
    alone = await check({"input": "hello"})
    among = await check({"inputs": [{"input": "hello"}]})
    assert alone.status_code == 503
    assert alone.headers["retry-after"]
    assert among.json()["data"][0]["status"] == 503
    assert "broken inside" not in alone.text + among.text


@pytest.mark.usefixtures("broken_detector")
async def test_an_outage_is_told_in_the_verdict_where_the_policy_fails_open(check):
    verdict = (await check({"input": "hello"}, fail="open")).json()["verdict"]
    assert (verdict["action"], verdict["reason"]) == ("pass", "detector_failed")


async def test_a_violation_of_one_is_told_in_its_place_although_it_is_no_exception(
    guard_of, monkeypatch, bare_violation
):
    app = create_app(guard_of())
    real = app.state.service.guard.acheck

    async def checked(value, **options):
        if value == "bad":
            raise bare_violation
        return await real(value, **options)

    monkeypatch.setattr(app.state.service.guard, "acheck", checked)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://s") as client:
        body = {"inputs": [{"input": "bad"}, {"input": "hello"}]}
        answer = await client.post("/v1/checks", json=body)
    assert [each["status"] for each in answer.json()["data"]] == [400, 200]
