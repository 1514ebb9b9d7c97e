"""A guard's results as LlamaIndex's responses."""

from __future__ import annotations

import pytest
from guardrail_llamaindex.messages import tool_calls
from guardrail_llamaindex.replies import as_completion, whole
from llama_index.core.base.llms import types

from guardrail.types import Action, Modality, Result, ToolCall, Verdict

VERDICT = Verdict(
    action=Action.PASS,
    would_be=Action.STEER,
    score=0.25,
    tau_steer=0.4,
    tau_flag=0.9,
    layers=(1, 2),
    modality=Modality.TEXT,
    artefact_id="guard-test",
)
CALLS = (ToolCall(name="look", arguments={"where": "a"}, id="c1"), ToolCall(name="b", arguments={}))


def result(**changes):
    base = {"text": "Hi", "verdict": VERDICT, "finish_reason": "stop"}
    return Result(**base | {"prompt_tokens": 7, "completion_tokens": 2} | changes)


def test_the_figures_are_in_both_places():
    response = whole(result(), delta="")
    usage = {"prompt_tokens": 7, "completion_tokens": 2, "total_tokens": 9}
    assert response.raw == {
        "verdict": VERDICT.to_dict(),
        "finish_reason": "stop",
        "usage": usage,
        "refused_by_guard": False,
    }
    assert response.additional_kwargs == {**usage, "verdict": VERDICT.to_dict()}
    assert (response.message.role.value, response.delta) == ("assistant", "")


def test_history_stays_free_of_verdicts():
    assert whole(result()).message.additional_kwargs == {}


def test_calls_are_where_every_version_looks_for_them():
    message = whole(result(text="", tool_calls=CALLS)).message
    assert [c["function"]["name"] for c in message.additional_kwargs["tool_calls"]] == ["look", "b"]
    assert message.additional_kwargs["tool_calls"][0]["function"]["arguments"] == '{"where": "a"}'
    kinds = [block.block_type for block in message.blocks]
    assert kinds == (["tool_call"] * 2 if hasattr(types, "ToolCallBlock") else [])
    assert len(tool_calls(message)) == 2


def test_one_call_may_be_enough():
    assert len(tool_calls(whole(result(tool_calls=CALLS), single_call=True).message)) == 1


@pytest.mark.parametrize("text", ["Hi", ""])
def test_a_completion_has_the_same_words_and_figures(text):
    response = whole(result(text=text), delta="x")
    completion = as_completion(response)
    assert (completion.text, completion.delta) == (text, "x")
    assert (completion.raw, completion.additional_kwargs) == (
        response.raw,
        response.additional_kwargs,
    )
