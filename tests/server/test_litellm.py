"""LiteLLM hears what its contract knows, and is never let through by mistake."""

from __future__ import annotations

import base64
from typing import Any

import pytest

from guardrail.decide.answers import GivenAnswers
from guardrail.errors import QueueFullError
from guardrail.guard import Guard
from guardrail.inputs.messages import to_request
from guardrail.policy import Policy
from guardrail.server.litellm import LiteLLMBody, cautioned, contents, readable
from guardrail.testing import tiny_artefact
from guardrail.types import Action, TextPart
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


@pytest.fixture
def ask_watching(llava, client_of):
    """Ask a guard that cuts all answers, or none."""
    guards = []

    async def post(cut: bool, *, policy: Any = None, **fields: Any):
        artefact = tiny_artefact(llava.model, llava.processor, tau_answer=-9 if cut else 9)
        rules = Policy(watch="answer", **(policy or {}))
        guards.append(Guard((llava.model, llava.processor), artefact, policy=rules))
        async with client_of(guards[-1]) as client:
            return await client.post(URL, json=CALL | {"input_type": "response"} | fields)

    yield post
    for guard in guards:
        guard.close()


async def test_a_watched_answer_that_is_flagged_gives_way_to_the_refusal(ask_watching):
    said = ["this is a long answer", " ", "and this is another one"]
    answer = (await ask_watching(True, texts=said, policy={"refusal_message": "No."})).json()
    assert answer["action"] == "GUARDRAIL_INTERVENED"
    assert answer["texts"] == ["No.", " ", "No."]
    assert answer["guardrail"]["reason"] == "answer"


@pytest.mark.parametrize(
    ("cut", "policy", "action"),
    [
        (False, {}, "NONE"),
        (True, {"on_flag": "raise"}, "BLOCKED"),
        (True, {"on_flag": "annotate"}, "NONE"),
        (True, {"mode": "shadow"}, "NONE"),
    ],
)
async def test_what_becomes_of_a_watched_answer(ask_watching, cut, policy, action):
    answer = await ask_watching(cut, texts=["this is a long answer"], policy=policy)
    assert answer.json()["action"] == action
    assert "texts" not in answer.json()


async def test_nothing_said_is_nothing_to_judge(ask_watching):
    assert (await ask_watching(True, texts=[])).json() == {"action": "NONE", "guardrail": None}


async def test_an_outage_of_a_watched_answer_blocks_it(ask_watching, monkeypatch):
    def broken(*_: Any) -> Any:
        raise RuntimeError("broken inside")

    monkeypatch.setattr(GivenAnswers, "decide", broken)
    answer = await ask_watching(False, texts=["this is a long answer"])
    assert answer.json()["action"] == "BLOCKED"
    assert "broken inside" not in answer.text


async def test_answers_are_not_judged_unless_the_policy_says_so(ask):
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


CHAT = [{"role": "user", "content": "hello"}]
TOOL = {"type": "function", "function": {"name": "look", "parameters": {}}}


def judged(**fields: Any) -> list[Any]:
    return contents(LiteLLMBody.model_validate({"input_type": "request"} | fields))


def parts_of(content: Any) -> list[Any]:
    (message,) = content.value
    assert message["role"] == "user"
    return message["content"]


def test_a_chat_is_judged_as_it_is_and_its_texts_are_not_judged_again():
    (content,) = judged(structured_messages=CHAT, texts=["hello"])
    assert content.value == CHAT


def test_texts_without_a_chat_are_a_prompt():
    (content,) = judged(texts=["one", "two"])
    assert parts_of(content) == [{"type": "text", "text": "one\ntwo"}]


def test_what_is_not_in_the_chat_is_judged_beside_it():
    chat, beside = judged(structured_messages=CHAT, texts=["hello", "more"], images=["data:x"])
    assert chat.value == CHAT
    assert parts_of(beside) == [
        {"type": "text", "text": "more"},
        {"type": "image_url", "image_url": {"url": "data:x"}},
    ]


def test_a_picture_in_the_chat_is_not_judged_again():
    chat = [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:x"}}]}]
    assert len(judged(structured_messages=chat, images=["data:x"])) == 1


def test_functions_go_with_the_chat_and_other_tools_as_text():
    other = {"type": "web_search", "filters": {"allowed": ["a"]}}
    (content,) = judged(structured_messages=CHAT, tools=[TOOL, other])
    assert content.tools == [TOOL]
    assert len(content.beside) == 1
    assert "web_search" in content.beside[0]


def test_what_stands_beside_a_tools_function_is_judged_too():
    (content,) = judged(structured_messages=CHAT, tools=[TOOL | {"description": "and more"}])
    assert content.tools == []
    assert "and more" in content.beside[0]


def test_a_text_is_judged_although_it_stands_where_the_guard_does_not_read():
    hidden = [{"type": "redacted_thinking", "data": "more"}, {"type": "text", "text": "hello"}]
    chat = [{"role": "assistant", "content": hidden}]
    _, beside = judged(structured_messages=chat, texts=["hello", "more"])
    assert parts_of(beside) == [{"type": "text", "text": "more"}]


def test_tools_without_a_chat_are_text():
    (content,) = judged(texts=["hello"], tools=[TOOL])
    assert "look" in parts_of(content)[0]["text"]
    assert parts_of(content)[1]["text"] == "hello"


def test_a_call_is_judged_unless_the_chat_holds_it():
    call = {"id": "c", "type": "function", "function": {"name": "look", "arguments": '{"a": 1}'}}
    (alone,) = judged(tool_calls=[call])
    assert '{\\"a\\": 1}' in parts_of(alone)[0]["text"]
    chat = [*CHAT, {"role": "assistant", "content": None, "tool_calls": [call]}]
    assert len(judged(structured_messages=chat, tool_calls=[call])) == 1


@pytest.mark.parametrize("fields", [{}, {"texts": []}, {"structured_messages": []}])
def test_a_call_without_content_needs_no_verdict(fields):
    assert judged(**fields) == []


def test_a_caution_stands_before_the_first_text():
    assert cautioned(["a", "b"], "Mind.") == ["Mind.\n\na", "b"]
    assert cautioned([], "Mind.") is cautioned(None, "Mind.") is None


def text(said: str) -> dict[str, str]:
    return {"type": "text", "text": said}


@pytest.mark.parametrize(
    "row",
    [
        {"role": "user", "content": "hello", "cache_control": {"type": "ephemeral"}},
        {"role": "user", "content": [text("hello")]},
        {"role": "assistant", "content": None, "tool_calls": [], "name": None},
        {"role": "assistant", "content": "x", "audio": {"id": "1"}},
        {"role": "assistant", "content": "x", "thinking_blocks": 7, "reasoning_content": ["y"]},
        {"role": "user", "content": [{"type": "file", "file": {"file_id": "1"}}]},
    ],
)
def test_a_row_in_the_usual_form_or_in_none_stays_as_it_is(row):
    assert readable(row) == row


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"content": "b", "reasoning_content": "a"}, ["a", "b"]),
        ({"content": None, "reasoning_content": "a"}, ["a"]),
        (
            {
                "content": [text("b")],
                "reasoning_content": "a",
                "thinking_blocks": [{"type": "thinking", "thinking": "a", "signature": "s"}],
            },
            ["a", "b"],
        ),
        (
            {"content": [{"type": "thinking", "thinking": "a", "signature": "s"}, text("b")]},
            ["a", "b"],
        ),
        ({"content": [text("b"), {"type": "redacted_thinking", "data": "x"}]}, ["b"]),
        ({"content": "b", "thinking_blocks": [{"type": "redacted_thinking", "data": "x"}]}, ["b"]),
        ({"content": [{"type": "redacted_thinking", "data": "x"}]}, [""]),
    ],
)
def test_reasoning_is_judged_as_text_once(row, said):
    request = to_request([readable({"role": "assistant"} | row)], policy=Policy())
    (message,) = request.messages
    assert message.parts == (TextPart("".join(said)),)


def test_a_reasoning_item_is_judged_but_for_what_is_encrypted():
    item = {"id": "r", "summary": [{"text": "thoughts"}], "encrypted_content": "SECRET"}
    row = readable({"role": "assistant", "content": "b", "reasoning_items": [item]})
    assert "thoughts" in row["content"][0]["text"]
    assert "SECRET" not in str(row)
    assert row["content"][1] == text("b")


def test_a_functions_result_is_a_tools():
    row = {"role": "function", "name": "f", "content": None, "tool_call_id": None}
    assert readable(row)["role"] == "tool"
    assert readable(row)["content"] == ""


def test_whether_a_tool_failed_is_no_content():
    row = {"role": "tool", "content": "x", "tool_call_id": "1", "is_error": True}
    assert readable(row) == {"role": "tool", "content": "x", "tool_call_id": "1"}
