"""Toolsets behind a guard: what is not called, what is withheld, what goes on."""

from __future__ import annotations

from typing import Any

import pytest
from guardrail_pydantic_ai import guard_toolset
from pydantic_ai import Agent, ApprovalRequired, BinaryContent, DeferredToolRequests, ModelRetry
from pydantic_ai.messages import ToolReturn, ToolReturnPart
from pydantic_ai.toolsets import FunctionToolset

from guardrail.errors import ConfigurationError, GuardrailViolation, UnsupportedContentError
from guardrail.front.chats import CALL_WITHHELD, RESULT_CAUTION, RESULT_WITHHELD
from guardrail.policy import Policy
from guardrail.testing import FakeGuard

CALLED = ("look", '{"where": "there"}')


def toolset(answer: Any, *, guard: Any = None, made: Any = None, **options: Any) -> Any:
    """A guarded tool `look` that gives this, or raises it."""

    def look(where: str) -> Any:
        if made is not None:
            made.append(where)
        if isinstance(answer, Exception):
            raise answer
        return answer

    return guard_toolset(FunctionToolset([look]), guard=guard or FakeGuard(), **options)


async def results(model: Any, tools: Any) -> list[Any]:
    """The results that a model was sent."""
    done = await Agent(model, toolsets=[tools]).run("hi")
    assert done.output == "fine"
    parts = [part for message in model.seen[-1][0] for part in message.parts]
    return [part.content for part in parts if isinstance(part, ToolReturnPart)]


async def test_a_harmless_call_is_made_and_its_result_handed_on(other_model):
    made = []
    assert await results(other_model(CALLED), toolset({"a": 1}, made=made)) == [{"a": 1}]
    assert made == ["there"]


async def test_a_flagged_call_is_not_made(other_model):
    made, model = [], other_model(("look", '{"where": "a bad place"}'))
    assert await results(model, toolset("here", made=made)) == [CALL_WITHHELD]
    assert made == []


@pytest.mark.parametrize(
    "poisoned",
    [
        "a bad thing",
        {"text": "a bad thing"},
        ["fine", "a bad thing"],
        ToolReturn("fine", content="a bad thing"),
        ToolReturn("fine", tools=["a bad thing"]),
        ModelRetry("a bad thing"),
    ],
    ids=["text", "object", "list", "beside", "tools", "retry"],
)
async def test_a_poisoned_result_is_withheld(other_model, poisoned):
    model = other_model(CALLED)
    assert await results(model, toolset(poisoned)) == [RESULT_WITHHELD]
    assert "a bad thing" not in model.said()


@pytest.mark.parametrize("which", ["arguments", "result"])
async def test_under_raise_the_run_ends(other_model, which):
    called = ("look", '{"where": "a bad place"}') if which == "arguments" else CALLED
    with pytest.raises(GuardrailViolation):
        await results(other_model(called), toolset("a bad thing", on_flag="raise"))


async def test_only_the_sides_that_are_asked_for_are_judged(other_model):
    tools = toolset("a bad thing", check="arguments")
    assert await results(other_model(CALLED), tools) == ["a bad thing"]
    called = ("look", '{"where": "a bad place"}')
    assert await results(other_model(called), toolset("here", check="result")) == ["here"]


@pytest.mark.parametrize("options", [{"on_flag": "annotate"}, {"mode": "shadow"}])
async def test_where_nothing_is_stopped_the_result_goes_on(other_model, options):
    guard = FakeGuard(policy=Policy(**options))
    tools = toolset("a bad thing", guard=guard)
    assert await results(other_model(CALLED), tools) == ["a bad thing"]


@pytest.mark.parametrize(
    ("odd", "sent"),
    [
        ("an odd thing", f"{RESULT_CAUTION}\n\nan odd thing"),
        (["an odd thing", 1], [RESULT_CAUTION, "an odd thing", 1]),
        (ToolReturn("an odd thing"), f"{RESULT_CAUTION}\n\nan odd thing"),
        ({"text": "an odd thing"}, RESULT_WITHHELD),
    ],
    ids=["text", "list", "ToolReturn", "no place for it"],
)
async def test_what_would_be_steered_gets_a_caution_where_there_is_a_place(other_model, odd, sent):
    assert await results(other_model(CALLED), toolset(odd)) == [sent]


async def test_what_no_guard_can_read_is_an_error(other_model):
    sound = BinaryContent(b"RIFF", media_type="audio/wav")
    with pytest.raises(UnsupportedContentError, match=r"the result of look .*audio/wav"):
        await results(other_model(CALLED), toolset(sound))


async def test_a_harmless_wish_to_be_called_again_stays_one(other_model):
    model = other_model(CALLED)
    tools = toolset(ModelRetry("say where exactly"))
    await Agent(model, toolsets=[tools], retries=3).run("hi")
    assert "say where exactly" in model.said()


async def test_a_call_that_waits_for_approval_still_does(other_model):
    agent = Agent(
        other_model(CALLED),
        toolsets=[toolset(ApprovalRequired())],
        output_type=[str, DeferredToolRequests],
    )
    output = (await agent.run("hi")).output
    assert [call.tool_name for call in output.approvals] == ["look"]


async def test_nothing_said_is_not_judged(other_model):
    guard = FakeGuard()
    await results(other_model(CALLED), toolset("", guard=guard, check="result"))
    assert guard.seen == []


@pytest.mark.parametrize("check", ["both", []])
def test_a_side_that_a_call_does_not_have_is_an_error(check):
    with pytest.raises(ConfigurationError):
        toolset("x", check=check)
