"""LiteLLM hears what its contract knows, and is never let through by mistake."""

from __future__ import annotations

import base64
from typing import Any

import pytest

from guardrail.errors import QueueFullError
from guardrail.types import Action
from tests.picture_zoo import TWO_WAYS

URL = "/beta/litellm_basic_guardrail_api"
CALL = {
    "input_type": "request",
    "texts": ["hello"],
    "images": None,
    "structured_messages": [{"role": "user", "content": "hello"}],
    "tools": None,
    "tool_calls": None,
    "litellm_call_id": "1",
    "litellm_trace_id": None,
    "request_data": {"user_api_key_alias": "a"},
    "request_headers": {"host": "x"},
    "litellm_version": "1",
    "additional_provider_specific_params": {"mode": "shadow"},
    "model": "any",
}


@pytest.fixture
def ask(guard_of, client_of):
    async def post(action: Action = Action.PASS, *, policy: Any = None, **fields: Any):
        async with client_of(guard_of(action, **(policy or {}))) as client:
            return await client.post(URL, json=CALL | fields)

    return post


async def test_a_call_passes_as_it_is(ask):
    answer = await ask()
    assert answer.status_code == 200
    assert answer.json()["action"] == "NONE"
    assert "texts" not in answer.json()
    assert answer.json()["guardrail"]["action"] == "pass"
    assert answer.headers["x-guardrail-action"] == "pass"


async def test_a_flagged_call_is_blocked(ask):
    answer = await ask(Action.FLAG, policy={"refusal_message": "No."})
    assert answer.status_code == 200
    assert answer.json()["action"] == "BLOCKED"
    assert answer.json()["blocked_reason"] == "No."


@pytest.mark.parametrize("policy", [{"mode": "shadow"}, {"on_flag": "annotate"}])
async def test_a_flagged_call_passes_where_the_policy_lets_it(ask, policy):
    answer = await ask(Action.FLAG, policy=policy)
    assert answer.json()["action"] == "NONE"
    assert answer.json()["guardrail"]["would_be"] == "flag"


@pytest.mark.parametrize(
    ("unsteerable", "action", "texts"),
    [
        ("caution", "GUARDRAIL_INTERVENED", ["Mind.\n\nhello", "more"]),
        ("flag", "BLOCKED", None),
        ("pass", "NONE", None),
    ],
)
async def test_a_model_elsewhere_cannot_be_steered(ask, unsteerable, action, texts):
    policy = {"unsteerable": unsteerable, "caution_prompt": "Mind."}
    answer = await ask(Action.STEER, policy=policy, texts=["hello", "more"])
    assert answer.json()["action"] == action
    assert answer.json().get("texts") == texts


async def test_without_a_place_for_a_caution_the_call_is_blocked(ask):
    answer = await ask(Action.STEER, texts=[])
    assert answer.json()["action"] == "BLOCKED"


async def test_nobody_weakens_the_policy_from_outside(ask):
    params = {"mode": "shadow", "on_flag": "annotate", "actions": []}
    answer = await ask(Action.FLAG, additional_provider_specific_params=params)
    assert answer.json()["action"] == "BLOCKED"


async def test_pictures_are_judged(ask, picture_url):
    answer = await ask(structured_messages=None, images=[picture_url])
    assert answer.headers["x-guardrail-modality"] == "image"


async def test_a_picture_that_the_model_may_read_otherwise_is_refused(ask):
    coded = base64.b64encode(TWO_WAYS["png with zero alpha"]()).decode()
    answer = await ask(images=[f"data:image/png;base64,{coded}"])
    assert answer.status_code == 422
    assert "8-bit RGB PNG" in answer.text


@pytest.mark.parametrize("source", ["/etc/passwd", "http://127.0.0.1/a.png", "data:image/png,x"])
async def test_what_cannot_be_read_is_no_pass(ask, source):
    answer = await ask(images=[source])
    assert answer.status_code == 422
    assert "action" not in answer.json()


async def test_answers_are_not_judged(ask):
    answer = await ask(Action.FLAG, input_type="response", texts=["an answer"])
    assert answer.json() == {"action": "NONE", "guardrail": None}


@pytest.mark.parametrize(
    ("policy", "action"),
    [({}, "BLOCKED"), ({"fail": "open"}, "NONE"), ({"mode": "shadow"}, "NONE")],
)
@pytest.mark.usefixtures("broken_detector")
async def test_an_outage_blocks_unless_the_policy_fails_open(ask, policy, action):
    answer = await ask(policy=policy)
    assert answer.json()["action"] == action
    assert "broken inside" not in answer.text


async def test_a_full_queue_is_told_as_such(guard_of, client_of, monkeypatch):
    guard = guard_of()

    def full(*_args: Any, **_options: Any) -> Any:
        raise QueueFullError("full")

    monkeypatch.setattr(guard._engine.worker, "submit", full)
    async with client_of(guard) as client:
        answer = await client.post(URL, json=CALL)
    assert answer.status_code == 429
    assert answer.headers["retry-after"]


@pytest.mark.parametrize("fields", [{"input_type": "other"}, {"texts": "hello"}, {"images": [1]}])
async def test_another_contract_is_refused(ask, fields):
    assert (await ask(**fields)).status_code == 422
