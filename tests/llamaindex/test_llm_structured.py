"""Structured output: a refusal is no object, an empty one least of all."""

from __future__ import annotations

import asyncio
import inspect
import json
from typing import Any, Literal

import pytest
from guardrail_llamaindex import GuardedVLM
from guardrail_llamaindex.llm import _TEXT_STREAMS
from llama_index.core.llms import ChatMessage
from llama_index.core.prompts import PromptTemplate
from llama_index.core.tools import FunctionTool
from pydantic import BaseModel, Field

from guardrail.errors import DetectorError, GuardrailViolation
from guardrail.policy import REFUSAL, Policy
from guardrail.testing import scripted
from guardrail.types import Action
from tests.waiting import at_rest, until

METHODS = (
    "structured_predict",
    "astructured_predict",
    "stream_structured_predict",
    "astream_structured_predict",
)
PROMPT = PromptTemplate("what is {this}")
PASS, STEER, FLAG = Action.PASS, Action.STEER, Action.FLAG


class Animal(BaseModel):
    """An animal in a picture."""

    name: str | None = None
    legs: int = 0


def text(**arguments: Any) -> str:
    """An object as it is written: as text, or in a call where objects are streamed as calls."""
    written = json.dumps(arguments)
    if _TEXT_STREAMS:
        return written
    return f'<tool_call>\n{{"name": "Animal", "arguments": {written}}}\n</tool_call>'


class Look(BaseModel):
    """Look there."""

    where: Literal["up", "down"]


def look(where: str) -> str:
    """Look there."""
    return where


def ask(
    llm: GuardedVLM, method: str, seen: list[Any] | None = None, cls: Any = Animal, **kwargs: Any
) -> list[Any]:
    """Every object, each also put into `seen` as it comes."""
    found: list[Any] = [] if seen is None else seen

    async def awaited() -> None:
        answer = await getattr(llm, method)(cls, PROMPT, this="a dog", **kwargs)
        if inspect.isasyncgen(answer):
            async for item in answer:
                found.append(item)
        else:
            found.append(answer)

    if method.startswith("a"):
        asyncio.run(awaited())
    else:
        answer = getattr(llm, method)(cls, PROMPT, this="a dog", **kwargs)
        found.extend(answer if inspect.isgenerator(answer) else [answer])
    return found


@pytest.mark.parametrize("method", METHODS)
def test_what_passes_comes_as_objects(guard_on, llava, method):
    llm = GuardedVLM(guard=guard_on())
    with scripted(llava.model, llava.processor, lambda _: text(name="dog", legs=4)):
        assert ask(llm, method)[-1] == Animal(name="dog", legs=4)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("on_flag", ["refuse", "raise"])
def test_a_flagged_request_raises_before_any_object(guard_on, llava, method, on_flag):
    llm, seen = GuardedVLM(guard=guard_on(FLAG, on_flag=on_flag)), []
    with (
        scripted(llava.model, llava.processor, lambda _: text(name="dog", legs=4)),
        pytest.raises(GuardrailViolation) as caught,
    ):
        ask(llm, method, seen)
    assert seen == []
    assert caught.value.verdict.action is FLAG


@pytest.mark.parametrize("method", METHODS)
def test_an_outage_is_no_finding(guard_on, monkeypatch, method):
    guard, seen = guard_on(), []

    def broken(*_: Any) -> None:
        raise RuntimeError("no detector")

    monkeypatch.setattr(guard._engine._detector, "decide", broken)
    with pytest.raises(DetectorError):
        ask(GuardedVLM(guard=guard), method, seen)
    assert seen == []


@pytest.mark.parametrize("method", METHODS)
def test_an_annotated_request_is_answered(guard_on, llava, method):
    llm = GuardedVLM(guard=guard_on(FLAG, on_flag="annotate"))
    with scripted(llava.model, llava.processor, lambda _: text(name="dog", legs=4)):
        assert ask(llm, method)[-1] == Animal(name="dog", legs=4)


@pytest.mark.parametrize("method", METHODS)
def test_a_flagged_request_raises_where_no_tools_are_known(toolless, method):
    _, _, guard = toolless
    policy = guard.policy.model_dump()
    policy["thresholds"] = {name: {"steer": -1e9, "flag": -1e9} for name in ("text", "image")}
    with guard.with_policy(Policy.model_validate(policy)) as strict:
        try:
            with pytest.raises(GuardrailViolation):
                ask(GuardedVLM(guard=strict), method, seen := [])
        except NotImplementedError:
            pytest.skip("this LlamaIndex streams no structured output as text")
    assert seen == []


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("mode", ["default", "function"])
def test_an_object_that_is_cut_off_is_none(guard_on, method, mode):
    llm = GuardedVLM(guard=guard_on(), pydantic_program_mode=mode)
    with pytest.raises(ValueError, match="cut off before its form was complete"):
        ask(llm, method, llm_kwargs={"max_new_tokens": 2})


class Toy(BaseModel):
    """A toy."""

    kind: Literal["ball", "mouse"]


class Pet(BaseModel):
    """A pet."""

    name: Literal["Tom", "Mia"]
    legs: int = Field(ge=0, le=99)
    toys: list[Toy] = Field(max_length=2)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(("mode", "action"), [("default", STEER), ("function", PASS)])
def test_random_weights_and_steered_ones_make_valid_objects(guard_on, method, mode, action):
    llm = GuardedVLM(guard=guard_on(action), pydantic_program_mode=mode, max_new_tokens=400)
    found = ask(llm, method, cls=Pet)
    assert isinstance(found[-1], Pet)
    if mode == "default" and "stream" in method and _TEXT_STREAMS:
        assert len(found) > 5  # parts of it come as they are written


def test_a_call_that_is_required_comes(guard_on):
    tool = FunctionTool.from_defaults(look, fn_schema=Look)
    llm = GuardedVLM(guard=guard_on(STEER), max_new_tokens=200)
    whole = llm.chat_with_tools([tool], user_msg="hi", tool_required=True)
    named = llm.chat_with_tools([tool], user_msg="hi", tool_choice="look")
    *_, last = llm.stream_chat_with_tools([tool], user_msg="hi", tool_required=True)
    for response in (whole, named, last):
        (selected,) = llm.get_tool_calls_from_response(response)
        assert selected.tool_name == "look"
        assert selected.tool_kwargs["where"] in ("up", "down")
    assert llm.predict_and_call([tool], user_msg="hi", tool_required=True).response in (
        "up",
        "down",
    )


def test_logprobs_stand_in_llamaindexs_own_place(guard_on):
    llm = GuardedVLM(guard=guard_on(), max_new_tokens=3, logprobs=2)
    found = llm.complete("hi").logprobs
    assert [len(token) for token in found] == [3, 3, 3]
    assert found[0][0].logprob == found[0][1].logprob < 0
    assert GuardedVLM(guard=guard_on(), max_new_tokens=3).complete("hi").logprobs is None


def test_asking_for_objects_leaves_other_requests_their_refusals(guard_on):
    llm = GuardedVLM(guard=guard_on(FLAG))
    with pytest.raises(GuardrailViolation):
        ask(llm, "stream_structured_predict")
    message = [ChatMessage(content="what is this")]
    assert llm.chat(message).message.content == REFUSAL
    assert list(llm.stream_chat(message))[-1].message.content == REFUSAL


def test_a_structured_llm_streams_no_empty_object_for_a_refusal(guard_on):
    llm = GuardedVLM(guard=guard_on(FLAG)).as_structured_llm(Animal)
    with pytest.raises(GuardrailViolation):
        list(llm.stream_chat([ChatMessage(content="what is this")]))


@pytest.mark.skipif(not _TEXT_STREAMS, reason="an object that is a call comes as a whole")
def test_an_abandoned_stream_of_objects_ends_its_request(guard_on, passes):
    guard = guard_on()
    stream = GuardedVLM(guard=guard, max_new_tokens=1000).stream_structured_predict(
        Animal, PROMPT, this="a dog"
    )
    next(stream)
    passes.hold()
    until(passes.held)
    before = passes.begun
    stream.close()
    passes.go_on()
    until(lambda: at_rest(guard))
    assert passes.begun == before
