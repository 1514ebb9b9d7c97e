"""Chats over HTTP, whole and streamed: verdict first, nothing dropped, nothing mixed up."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from guardrail.server.keys import Caller
from guardrail.server.verdicts import headers_of
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
