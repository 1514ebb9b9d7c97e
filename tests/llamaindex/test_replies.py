"""A guard's results as LlamaIndex's responses.

Tools offered, calls read, and answers that must have a form.
"""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from guardrail_llamaindex import GuardedVLM
from guardrail_llamaindex.messages import tool_calls
from guardrail_llamaindex.replies import as_completion, offer, selections, whole
from llama_index.core.base.llms import types
from llama_index.core.llms import ChatMessage, ChatResponse
from llama_index.core.prompts import PromptTemplate
from llama_index.core.tools import FunctionTool
from pydantic import BaseModel

from guardrail.errors import (
    ConfigurationError,
    DetectorError,
    GuardrailViolation,
    UnsupportedModelError,
)
from guardrail.policy import REFUSAL
from guardrail.testing import scripted
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
        "verdict": VERDICT.to_dict(words=False),
        "finish_reason": "stop",
        "usage": usage,
        "refused_by_guard": False,
    }
    assert response.additional_kwargs == {**usage, "verdict": VERDICT.to_dict(words=False)}
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


FLAG = Action.FLAG

METHODS = (
    "chat_with_tools",
    "achat_with_tools",
    "stream_chat_with_tools",
    "astream_chat_with_tools",
)


def look(where: str) -> str:
    """Look somewhere."""
    return f"a dog {where}"


def listen(what: str) -> str:
    """Listen to something."""
    return f"a bark of {what}"


class Animal(BaseModel):
    """An animal in a picture."""

    name: str
    legs: int


TOOLS = [FunctionTool.from_defaults(look), FunctionTool.from_defaults(listen)]


def call(name: str, /, **arguments: Any) -> str:
    written = json.dumps({"name": name, "arguments": arguments})
    return f"<tool_call>\n{written}\n</tool_call>"


def ask(llm: GuardedVLM, method: str, **kwargs: Any) -> list[ChatResponse]:
    async def awaited() -> list[ChatResponse]:
        answer = await getattr(llm, method)(TOOLS, **kwargs)
        return [a async for a in answer] if "stream" in method else [answer]

    if method.startswith("a"):
        return asyncio.run(awaited())
    answer = getattr(llm, method)(TOOLS, **kwargs)
    return list(answer) if "stream" in method else [answer]


@pytest.mark.parametrize("method", METHODS)
def test_a_call_is_read_and_its_markup_is_no_text(guard_on, llava, method):
    llm = GuardedVLM(guard=guard_on())
    with scripted(llava.model, llava.processor, lambda _: "I look." + call("look", where="here")):
        responses = ask(llm, method, user_msg="what is this")
    (chosen,) = llm.get_tool_calls_from_response(responses[-1])
    assert (chosen.tool_name, chosen.tool_kwargs) == ("look", {"where": "here"})
    assert chosen.tool_id
    assert responses[-1].message.content == "I look."
    assert not any("tool_call>" in (r.message.content or "") for r in responses)
    assert all(not llm.get_tool_calls_from_response(r, False) for r in responses[:-1])
    json.dumps(responses[-1].message.additional_kwargs)
    if hasattr(types, "ToolCallBlock"):
        block = responses[-1].message.blocks[-1]
        assert (block.tool_name, block.tool_kwargs) == ("look", {"where": "here"})


def test_tools_are_part_of_the_prompt_and_of_the_verdict(guard_on):
    guard = guard_on()
    llm = GuardedVLM(guard=guard, max_new_tokens=2)
    history = [ChatMessage(role="system", content="Be brief.")]
    response = llm.chat_with_tools(TOOLS[:1], user_msg="what is this", chat_history=history)
    chat = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "what is this"},
    ]
    function = {
        "name": "look",
        "description": TOOLS[0].metadata.description,
        "parameters": TOOLS[0].metadata.get_parameters_dict(),
    }
    wanted = guard.check(chat, tools=[{"type": "function", "function": function}])
    assert response.raw["verdict"]["score"] == pytest.approx(wanted.score, abs=1e-5)
    assert abs(wanted.score - guard.check(chat).score) > 1e-4


def test_an_answer_can_be_sent_back_as_history(guard_on, llava):
    guard = guard_on()
    llm = GuardedVLM(guard=guard)
    with scripted(llava.model, llava.processor, lambda _: call("look", where="here")):
        message = llm.chat_with_tools(TOOLS, user_msg="what is this").message
    prompts: list[str] = []
    result = ChatMessage(role="tool", content="a dog", additional_kwargs={"tool_call_id": "x"})
    with scripted(llava.model, llava.processor, lambda prompt: prompts.append(prompt) or "Done."):
        said = llm.chat([ChatMessage(content="what is this"), message, result])
    assert said.message.content == "Done."
    assert prompts[0].count("<tool_call>") == 1
    assert call("look", where="here") in prompts[0]


@pytest.mark.parametrize("method", METHODS)
def test_without_parallel_calls_the_first_one_counts(guard_on, llava, method):
    llm = GuardedVLM(guard=guard_on())
    both = call("look", where="here") + call("listen", what="dogs")
    with scripted(llava.model, llava.processor, lambda _: both):
        alone = ask(llm, method, user_msg="a", allow_parallel_tool_calls=False)[-1]
        several = ask(llm, method, user_msg="a", allow_parallel_tool_calls=True)[-1]
    named = [[c.tool_name for c in selections(r, required=True)] for r in (alone, several)]
    assert named == [["look"], ["look", "listen"]]


def test_predict_and_call_calls_the_tool(guard_on, llava):
    llm = GuardedVLM(guard=guard_on())
    with scripted(llava.model, llava.processor, lambda _: call("look", where="here")):
        assert llm.predict_and_call(TOOLS, user_msg="what is this").response == "a dog here"


@pytest.mark.parametrize(
    ("choice", "word"),
    [
        (None, None),
        ("auto", None),
        ("any", "required"),
        ("required", "required"),
        ("none", "none"),
        ("listen", "listen"),
        ({"type": "function", "function": {"name": "look"}}, "look"),
    ],
)
def test_a_tool_choice_says_what_must_be_called(choice, word):
    options = {"tools": TOOLS, "tool_choice": choice, "seed": 1}
    found = offer(options)
    assert [tool["function"]["name"] for tool in found.tools] == ["look", "listen"]
    assert found.choice == word
    assert options == {"seed": 1}


def test_a_tool_choice_that_is_not_there_is_an_error():
    with pytest.raises(ConfigurationError, match="'smell'; the tools are look, listen"):
        offer({"tools": TOOLS, "tool_choice": "smell"})


def test_tools_for_a_model_without_them_are_a_clear_error(toolless):
    _, _, guard = toolless
    llm = GuardedVLM(guard=guard)
    assert not llm.metadata.is_function_calling_model
    with pytest.raises(UnsupportedModelError, match="template knows no tools"):
        llm.chat_with_tools(TOOLS, user_msg="what is this")


def test_an_answer_without_a_wanted_call_is_an_error(guard_on):
    llm = GuardedVLM(guard=guard_on(), max_new_tokens=2)
    response = llm.chat_with_tools(TOOLS, user_msg="what is this")
    assert llm.get_tool_calls_from_response(response, error_on_no_tool_call=False) == []
    with pytest.raises(ValueError, match="expected a tool call"):
        llm.get_tool_calls_from_response(response)


def test_a_refusal_where_a_call_is_wanted_is_raised_with_its_verdict(guard_on):
    guard = guard_on(FLAG)
    llm = GuardedVLM(guard=guard)
    response = llm.chat_with_tools(TOOLS, user_msg="what is this")
    assert response.message.content == REFUSAL
    assert llm.get_tool_calls_from_response(response, error_on_no_tool_call=False) == []
    with pytest.raises(GuardrailViolation) as caught:
        llm.get_tool_calls_from_response(response)
    assert caught.value.verdict.to_dict(words=False) == response.raw["verdict"]
    assert caught.value.verdict.action is FLAG


def test_an_outage_where_a_call_is_wanted_is_no_finding(guard_on):
    llm = GuardedVLM(guard=guard_on(FLAG))
    response = llm.chat_with_tools(TOOLS, user_msg="what is this")
    response.raw["verdict"] |= {"reason": "detector_failed", "score": None}
    with pytest.raises(DetectorError):
        llm.get_tool_calls_from_response(response)


def test_arguments_that_are_no_object_are_an_error():
    function = {"name": "look", "arguments": "[1]"}
    message = ChatMessage(
        role="assistant", additional_kwargs={"tool_calls": [{"id": "a", "function": function}]}
    )
    with pytest.raises(ValueError, match="must be an object, not list"):
        selections(ChatResponse(message=message), required=False)


# --- structured output ----------------------------------------------------------------------------


def test_structured_output_comes_through_a_call_where_the_mode_says_so(guard_on, llava):
    llm = GuardedVLM(guard=guard_on(), pydantic_program_mode="function")
    prompt = PromptTemplate("what is {this}")
    with scripted(llava.model, llava.processor, lambda _: call("Animal", name="dog", legs=4)):
        assert llm.structured_predict(Animal, prompt, this="a dog") == Animal(name="dog", legs=4)
        streamed = list(llm.stream_structured_predict(Animal, prompt, this="a dog"))
        assert streamed[-1] == Animal(name="dog", legs=4)


def test_structured_output_comes_as_text_where_no_tools_are_known(toolless):
    model, processor, guard = toolless
    llm = GuardedVLM(guard=guard)
    prompts: list[str] = []

    def script(prompt: str) -> str:
        prompts.append(prompt)
        return '{"name": "dog", "legs": 4}'

    with scripted(model, processor, script):
        found = llm.structured_predict(Animal, PromptTemplate("what is {this}"), this="a dog")
    assert found == Animal(name="dog", legs=4)
    assert "legs" in prompts[0]


def test_a_flagged_structured_request_raises(guard_on):
    llm = GuardedVLM(guard=guard_on(FLAG))
    with pytest.raises(GuardrailViolation):
        llm.structured_predict(Animal, PromptTemplate("what is {this}"), this="a dog")
