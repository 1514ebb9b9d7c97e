"""Chats over HTTP, whole and streamed: verdict first, nothing dropped, nothing mixed up."""

from __future__ import annotations

import asyncio
import json
from types import SimpleNamespace
from typing import Any

import pytest
from pydantic import ValidationError

from guardrail.policy import Limits, Policy
from guardrail.server.answers import headers_of
from guardrail.server.chat import generate_options
from guardrail.server.errors import ApiError
from guardrail.server.keys import Caller
from guardrail.server.schemas import ChatBody
from guardrail.testing import scripted
from guardrail.types import Action

CHAT = {"model": "guarded", "messages": [{"role": "user", "content": "hello"}], "max_tokens": 4}
CALLER = Caller("r", sees_scores=True)
URL = "/v1/chat/completions"
TOOL = {"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}}
CALL = '<tool_call>{"name": "look", "arguments": {"at": "me"}}</tool_call>'


def events_of(text: str) -> list[Any]:
    """A stream's events; its end as text."""
    lines = [line.removeprefix("data: ") for line in text.split("\n\n") if line]
    return [line if line == "[DONE]" else json.loads(line) for line in lines]


def text_of(events: list[Any]) -> str:
    chunks = [event for event in events if event != "[DONE]" and event["choices"]]
    return "".join(chunk["choices"][0]["delta"].get("content") or "" for chunk in chunks)


@pytest.fixture
def ask(guard_of, client_of):
    """Post one chat to a guard that takes this action, and give the answer."""

    async def post(action: Action = Action.PASS, *, policy: Any = None, **fields: Any):
        async with client_of(guard_of(action, **(policy or {}))) as client:
            return await client.post(URL, json=CHAT | fields)

    return post


async def test_an_answer_is_the_guards_own(guard_of, client_of):
    guard = guard_of()
    expected = guard.generate("hello", max_new_tokens=4)
    async with client_of(guard) as client:
        answer = await client.post(URL, json=CHAT)
    told = answer.json()
    assert answer.status_code == 200
    assert told["choices"][0]["message"]["content"] == expected.text
    assert told["choices"][0]["finish_reason"] == "length"
    assert told["usage"]["completion_tokens"] == 4
    assert told["usage"]["prompt_tokens"] == expected.prompt_tokens
    assert told["guardrail"]["score"] == pytest.approx(expected.verdict.score)
    assert told["system_fingerprint"] == guard.artefact.artefact_id
    assert (
        headers_of(expected.verdict, CALLER).items()
        <= {name: answer.headers.get(name) for name in headers_of(expected.verdict, CALLER)}.items()
    )


async def test_a_streams_words_are_those_of_the_whole_answer(ask):
    whole = (await ask()).json()
    answer = await ask(stream=True)
    *events, done = events_of(answer.text)
    assert answer.headers["content-type"].startswith("text/event-stream")
    assert answer.headers["x-guardrail-action"] == "pass"
    assert done == "[DONE]"
    assert text_of(events) == whole["choices"][0]["message"]["content"]
    assert events[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert events[0]["guardrail"]["action"] == "pass"
    assert events[-1]["choices"][0]["finish_reason"] == "length"
    assert events[-1]["guardrail"] == events[0]["guardrail"]
    assert all("usage" not in event for event in events)
    assert len({event["id"] for event in events}) == 1


async def test_counts_come_last_in_a_stream_when_they_are_wanted(ask):
    answer = await ask(stream=True, stream_options={"include_usage": True})
    *events, last, done = events_of(answer.text)
    assert done == "[DONE]"
    assert last["choices"] == []
    assert last["usage"]["completion_tokens"] == 4
    assert last["guardrail"] == events[0]["guardrail"]
    assert all(event["usage"] is None for event in events)


@pytest.mark.parametrize("stream", [True, False])
async def test_a_flagged_chat_gets_the_refusal(ask, stream):
    answer = await ask(Action.FLAG, policy={"refusal_message": "No."}, stream=stream)
    assert answer.status_code == 200
    assert answer.headers["x-guardrail-action"] == "flag"
    if stream:
        events = events_of(answer.text)
        assert text_of(events) == "No."
        assert events[-3]["choices"][0]["delta"] == {"refusal": "No."}
        assert events[-2]["choices"][0]["finish_reason"] == "content_filter"
    else:
        choice = answer.json()["choices"][0]
        assert choice["finish_reason"] == "content_filter"
        assert choice["message"]["content"] == choice["message"]["refusal"] == "No."


@pytest.mark.parametrize("stream", [True, False])
async def test_a_flagged_chat_is_an_error_where_the_policy_raises(ask, stream):
    answer = await ask(Action.FLAG, policy={"on_flag": "raise"}, stream=stream)
    error = answer.json()["error"]
    assert answer.status_code == 400
    assert error["code"] == "content_filter"
    assert error["guardrail"]["action"] == "flag"
    assert answer.headers["x-guardrail-action"] == "flag"


async def test_a_flagged_chat_is_answered_where_the_policy_annotates(ask):
    usual = (await ask()).json()["choices"]
    answer = await ask(Action.FLAG, policy={"on_flag": "annotate"})
    assert answer.json()["guardrail"]["action"] == "flag"
    assert answer.json()["choices"] == usual


async def test_in_shadow_mode_the_headers_say_what_would_be(ask):
    answer = await ask(Action.FLAG, policy={"mode": "shadow"})
    headers = answer.headers
    assert headers["x-guardrail-action"] == "pass"
    assert headers["x-guardrail-would-be"] == "flag"
    assert headers["x-guardrail-mode"] == "shadow"
    assert float(headers["x-guardrail-score"]) == pytest.approx(
        answer.json()["guardrail"]["score"], abs=1e-4
    )


@pytest.mark.usefixtures("broken_detector")
@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("on_flag", ["refuse", "raise", "annotate"])
async def test_an_outage_is_no_refusal(ask, stream, on_flag):
    answer = await ask(policy={"on_flag": on_flag}, stream=stream)
    assert answer.status_code == 503
    assert int(answer.headers["retry-after"]) >= 1
    assert "broken inside" not in answer.text


@pytest.mark.usefixtures("broken_detector")
async def test_an_outage_is_passed_over_where_the_policy_fails_open(ask):
    answer = await ask(policy={"fail": "open"})
    assert answer.status_code == 200
    assert answer.headers["x-guardrail-reason"] == "detector_failed"
    assert "x-guardrail-score" not in answer.headers


@pytest.mark.parametrize("stream", [True, False])
async def test_tool_calls_are_told_in_their_own_field(ask, llava, stream):
    with scripted(llava.model, llava.processor, lambda _: "I look." + CALL):
        answer = await ask(tools=[TOOL], max_tokens=200, stream=stream)
    if stream:
        events = events_of(answer.text)[:-1]
        deltas = [event["choices"][0]["delta"] for event in events]
        (call,) = [call for delta in deltas for call in delta.get("tool_calls", ())]
        assert call["index"] == 0
        assert text_of(events) == "I look."
        finish = events[-1]["choices"][0]["finish_reason"]
    else:
        choice = answer.json()["choices"][0]
        (call,) = choice["message"]["tool_calls"]
        assert choice["message"]["content"] == "I look."
        finish = choice["finish_reason"]
    assert finish == "tool_calls"
    assert json.loads(call["function"]["arguments"]) == {"at": "me"}


async def test_answers_to_many_at_once_are_not_mixed_up(guard_of, client_of, llava):
    def echo(prompt: str) -> str:
        return prompt.rsplit("number ", 1)[1].split("<")[0].strip()

    async with client_of(guard_of()) as client:

        async def ask(i: int) -> tuple[int, str]:
            chat = CHAT | {"messages": [{"role": "user", "content": f"number {i}"}]}
            stream = i % 2 == 0
            answer = await client.post(URL, json=chat | {"max_tokens": 30, "stream": stream})
            if stream:
                return i, text_of(events_of(answer.text))
            return i, answer.json()["choices"][0]["message"]["content"]

        with scripted(llava.model, llava.processor, echo):
            found = await asyncio.gather(*(ask(i) for i in range(24)))
    assert all(str(i) == text.strip() for i, text in found)


def body_of(**fields: Any) -> ChatBody:
    chat = {"model": "m", "messages": [{"role": "user", "content": "hello"}]}
    return ChatBody.model_validate(chat | fields)


def options_of(*, supports_tools: bool = True, new_tokens: int = 50, **fields: Any) -> Any:
    policy = Policy(limits=Limits(new_tokens=new_tokens))
    guard: Any = SimpleNamespace(policy=policy, supports_tools=supports_tools)
    return generate_options(body_of(**fields), guard, default_tokens=20)


OTHER = {"type": "function", "function": {"name": "go"}}
NAMED = {"type": "function", "function": {"name": "look"}}
CALLED = {"tool_choice": "look"}
SCHEMA = {"schema": {"type": "array"}, "strict": True, "description": "numbers"}


def allowed(mode: str) -> Any:
    return {"type": "allowed_tools", "allowed_tools": {"mode": mode, "tools": [NAMED]}}


@pytest.mark.parametrize(
    ("fields", "option"),
    [
        ({"max_tokens": 7}, {"max_new_tokens": 7}),
        ({"max_tokens": 7, "max_completion_tokens": 9}, {"max_new_tokens": 9}),
        ({"temperature": 0}, {"temperature": 0}),
        ({"temperature": 1e-30}, {"temperature": 0.01}),
        ({"temperature": 1.5, "top_p": 0.5}, {"temperature": 1.5, "top_p": 0.5}),
        ({"top_k": 4}, {"top_k": 4}),
        ({"top_k": -1}, {"top_k": 0}),
        ({"repetition_penalty": 1.2}, {"repetition_penalty": 1.2}),
        ({"seed": -(2**63)}, {"seed": -(2**63)}),
        ({"stop": "a"}, {"stop": ["a"]}),
        ({"stop": ["a", "b"]}, {"stop": ["a", "b"]}),
        ({"tools": [TOOL], "tool_choice": "auto"}, {"tools": [TOOL]}),
        (
            {"tools": [TOOL], "tool_choice": "required"},
            {"tools": [TOOL], "tool_choice": "required"},
        ),
        ({"tools": [TOOL, OTHER], "tool_choice": NAMED}, {"tools": [TOOL, OTHER], **CALLED}),
        ({"tools": [TOOL, OTHER], "tool_choice": allowed("auto")}, {"tools": [TOOL]}),
        (
            {"tools": [TOOL, OTHER], "tool_choice": allowed("required")},
            {"tools": [TOOL], "tool_choice": "required"},
        ),
        ({"response_format": {"type": "json_object"}}, {"json_schema": {"type": "object"}}),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "n", **SCHEMA}}},
            {"json_schema": SCHEMA["schema"]},
        ),
        ({"logprobs": True}, {"logprobs": 0}),
        ({"logprobs": True, "top_logprobs": 3}, {"logprobs": 3}),
    ],
)
def test_what_the_model_can_do_is_asked_of_it(fields, option):
    assert options_of(**fields) == {"max_new_tokens": 20} | option


def test_an_answer_without_a_limit_has_the_servers_within_the_policys():
    assert options_of(new_tokens=50)["max_new_tokens"] == 20
    assert options_of(new_tokens=5)["max_new_tokens"] == 5


@pytest.mark.parametrize("fields", [{"tool_choice": "none"}, {"tools": []}, {"tools": None}])
def test_a_model_that_may_not_call_is_shown_no_tools(fields):
    assert "tools" not in options_of(**({"tools": [TOOL]} | fields))


NEUTRAL: dict[str, Any] = {
    "user": "me",
    "metadata": {"a": "b"},
    "store": True,
    "service_tier": "auto",
    "safety_identifier": "x",
    "prompt_cache_key": "x",
    "n": 1,
    "logprobs": False,
    "frequency_penalty": 0,
    "presence_penalty": 0.0,
    "logit_bias": {},
    "response_format": {"type": "text"},
    "modalities": ["text"],
    "verbosity": "medium",
    "functions": [],
    "stream": False,
    "stream_options": {"include_usage": True, "include_obfuscation": False},
    "unheard_of": None,
}


def test_defaults_that_clients_send_change_nothing():
    assert options_of(**NEUTRAL) == options_of()
    nothing = dict.fromkeys(ChatBody.model_fields.keys() - {"model", "messages"})
    assert options_of(**nothing) == options_of()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("top_logprobs", 3),
        ("frequency_penalty", 0.5),
        ("presence_penalty", -1),
        ("logit_bias", {"5": 1}),
        ("response_format", {"type": "json_schema", "json_schema": {}}),
        ("response_format", {"type": "json_schema", "json_schema": {"schema": {}, "more": 1}}),
        ("response_format", {"type": "json_object", "schema": {}}),
        ("response_format", {"type": "grammar"}),
        ("modalities", ["text", "audio"]),
        ("audio", {"voice": "a", "format": "wav"}),
        ("prediction", {"type": "content", "content": "x"}),
        ("reasoning_effort", "high"),
        ("verbosity", "low"),
        ("moderation", {"model": "x"}),
        ("web_search_options", {}),
        ("functions", [{"name": "f"}]),
        ("function_call", {"name": "f"}),
        ("tool_choice", "any"),
        ("tool_choice", {"type": "function", "function": {"name": "other"}}),
        ("tool_choice", {"type": "function", "function": {"name": "look", "more": 1}}),
        ("tool_choice", {"type": "custom", "custom": {"name": "look"}}),
        ("tool_choice", {"type": "allowed_tools", "allowed_tools": {"mode": "auto", "tools": []}}),
        ("max_tokens", 51),
        ("max_completion_tokens", 51),
        ("num_beams", 4),
        ("guided_json", {}),
        ("ignore_eos", False),
    ],
)
def test_what_would_go_unheard_is_refused_by_name(name, value):
    with pytest.raises(ApiError, match=name) as caught:
        options_of(**{name: value, "tools": [TOOL]})
    problem = caught.value.problem
    assert (problem.status, problem.param) == (400, name)


def test_tools_for_a_template_that_knows_none_are_refused():
    with pytest.raises(ApiError, match="knows no tools") as caught:
        options_of(tools=[TOOL], supports_tools=False)
    assert caught.value.problem.param == "tools"
    assert "tools" not in options_of(tools=[TOOL], tool_choice="none", supports_tools=False)


@pytest.mark.parametrize(
    "fields",
    [
        {"messages": []},
        {"messages": ["hello"]},
        {"max_tokens": 0},
        {"max_tokens": 1.5},
        {"max_tokens": 10**400},
        {"temperature": 2.1},
        {"temperature": "hot"},
        {"temperature": 10**400},
        {"top_p": 0},
        {"seed": 2**63},
        {"stop": ["a"] * 5},
        {"stop": ""},
        {"stop": [""]},
        {"stream": "yes"},
        {"stream": 1},
        {"stream_options": {"more": 1}},
        {"repetition_penalty": 1e-300},
        {"tools": ["look"]},
    ],
)
def test_values_of_another_kind_are_no_chat(fields):
    with pytest.raises(ValidationError) as caught:
        body_of(**fields)
    assert caught.value.errors()[0]["loc"][0] == next(iter(fields))
