"""Answers have the OpenAI form, and their verdict."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from guardrail.server.completions import form_of
from guardrail.server.keys import Caller
from guardrail.testing import FakeGuard
from guardrail.types import Result, ToolCall, Verdict

VERDICT: Verdict = FakeGuard().check("hello")
RESULT = Result(
    text="Well.", verdict=VERDICT, finish_reason="stop", prompt_tokens=3, completion_tokens=2
)
CALLER = Caller("r", sees_scores=True)
CALLS = (
    ToolCall(name="look", arguments={"at": "é"}, id="call_1"),
    ToolCall(name="go", arguments="not json", id=""),
)


def whole(result: Result, **options: Any) -> Any:
    return form_of(VERDICT, "m", CALLER, **({"parallel_calls": None} | options)).whole(result)


def test_a_whole_answer_says_all_there_is_to_say():
    told = whole(RESULT)
    assert told["object"] == "chat.completion"
    assert told["model"] == "m"
    assert told["system_fingerprint"] == VERDICT.artefact_id
    assert told["usage"] == {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}
    assert told["guardrail"] == VERDICT.to_dict()
    assert told["choices"] == [
        {
            "index": 0,
            "message": {"role": "assistant", "content": "Well.", "refusal": None},
            "finish_reason": "stop",
            "logprobs": None,
        }
    ]


def test_answers_have_ids_of_their_own():
    assert whole(RESULT)["id"] != whole(RESULT)["id"]


def test_a_refusal_of_the_guards_is_content_and_refusal():
    refused = replace(RESULT, finish_reason="flag", refused_by_guard=True)
    choice = whole(refused)["choices"][0]
    assert choice["finish_reason"] == "content_filter"
    assert choice["message"]["content"] == choice["message"]["refusal"] == "Well."


def test_calls_are_told_as_text_and_end_the_turn():
    choice = whole(replace(RESULT, text="", tool_calls=CALLS))["choices"][0]
    first, second = choice["message"]["tool_calls"]
    assert choice["finish_reason"] == "tool_calls"
    assert choice["message"]["content"] is None
    assert first["id"] == "call_1"
    assert first["type"] == "function"
    assert json.loads(first["function"]["arguments"]) == {"at": "é"}
    assert second["id"].startswith("call_")
    assert second["function"] == {"name": "go", "arguments": "not json"}


def test_an_answer_that_was_cut_does_not_end_in_calls():
    cut = replace(RESULT, finish_reason="length", tool_calls=CALLS)
    assert whole(cut)["choices"][0]["finish_reason"] == "length"


def test_words_beside_a_call_stay():
    message = whole(replace(RESULT, tool_calls=CALLS))["choices"][0]["message"]
    assert message["content"] == "Well."


def test_without_parallel_calls_the_first_one_is_told():
    told = whole(replace(RESULT, tool_calls=CALLS), parallel_calls=False)
    assert len(told["choices"][0]["message"]["tool_calls"]) == 1


@pytest.mark.parametrize("usage", [True, False])
def test_a_streams_end_says_why_and_has_the_verdict_once(usage):
    form = form_of(VERDICT, "m", CALLER, parallel_calls=None)
    chunks = form.last_chunks(RESULT, usage=usage)
    finish = chunks[0]
    assert finish["choices"][0]["finish_reason"] == "stop"
    assert [("guardrail" in chunk) for chunk in chunks] == [False] * (len(chunks) - 1) + [True]
    assert len({chunk["id"] for chunk in chunks}) == 1
    if usage:
        assert finish["usage"] is None
        assert chunks[-1]["choices"] == []
        assert chunks[-1]["usage"]["total_tokens"] == 5
    else:
        assert len(chunks) == 1
        assert "usage" not in finish


def test_a_streams_calls_are_numbered():
    form = form_of(VERDICT, "m", CALLER, parallel_calls=None)
    *calls, finish = form.last_chunks(replace(RESULT, tool_calls=CALLS), usage=False)
    told = [chunk["choices"][0]["delta"]["tool_calls"][0] for chunk in calls]
    assert [(call["index"], call["function"]["name"]) for call in told] == [(0, "look"), (1, "go")]
    assert finish["choices"][0]["finish_reason"] == "tool_calls"
