"""A model behind a guard: what is answered, refused, cautioned, told."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from guardrail_pydantic_ai import GuardedModel, Guardrail
from pydantic import BaseModel
from pydantic_ai import Agent, NativeOutput, PromptedOutput
from pydantic_ai.messages import (
    ModelRequest,
    ModelResponse,
    SystemPromptPart,
    TextPart,
    UserPromptPart,
)
from pydantic_ai.models import ModelRequestContext, ModelRequestParameters
from pydantic_ai.models.batch import BatchRequest
from pydantic_ai.models.fallback import FallbackModel
from pydantic_ai.models.openai import OpenAICompaction
from pydantic_ai.models.test import TestModel

from guardrail.errors import ConfigurationError, DetectorError, GuardrailViolation
from guardrail.policy import CAUTION, REFUSAL, Policy
from guardrail.testing import FakeGuard

STREAMED = pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])


class Answer(BaseModel):
    text: str


async def run(agent: Agent[Any, Any], prompt: str, stream: bool) -> tuple[Any, ModelResponse]:
    """The output, and the last answer of the model."""
    if not stream:
        result = await agent.run(prompt)
        return result.output, result.response
    async with agent.run_stream(prompt) as streamed:
        chunks = [chunk async for chunk in streamed.stream_output(debounce_by=None)]
        return chunks[-1], streamed.response


def guarded(model: Any, *, policy: Any = None, **options: Any) -> Agent[Any, Any]:
    return Agent(GuardedModel(model, guard=FakeGuard(policy=policy), **options))


@STREAMED
async def test_an_answer_tells_its_verdict(other_model, stream):
    output, response = await run(guarded(other_model()), "hello", stream)
    assert output == "fine"
    assert response.metadata["guardrail"]["action"] == "pass"


@STREAMED
async def test_a_flagged_request_is_answered_with_the_refusal(other_model, stream):
    model = other_model()
    output, response = await run(guarded(model), "a bad thing", stream)
    assert output == REFUSAL
    assert response.finish_reason == "content_filter"
    assert response.metadata["guardrail"]["action"] == "flag"
    assert model.seen == []


@STREAMED
async def test_under_raise_it_is_a_violation(other_model, stream):
    model = other_model()
    with pytest.raises(GuardrailViolation):
        await run(guarded(model, on_flag="raise"), "a bad thing", stream)
    assert model.seen == []


@STREAMED
@pytest.mark.parametrize("output_type", [Answer, NativeOutput(Answer), PromptedOutput(Answer)])
async def test_where_an_object_must_come_it_is_a_violation_always(stream, output_type):
    model = GuardedModel(TestModel(), guard=FakeGuard())
    with pytest.raises(GuardrailViolation):
        await run(Agent(model, output_type=output_type), "a bad thing", stream)


@pytest.mark.parametrize("output_type", [Answer, [Answer, str]])
async def test_objects_come_through(output_type):
    model = GuardedModel(TestModel(custom_output_args={"text": "fine"}), guard=FakeGuard())
    output, _ = await run(Agent(model, output_type=output_type), "hello", False)
    assert output == Answer(text="fine")


async def test_where_text_may_come_beside_objects_the_refusal_does():
    model = GuardedModel(TestModel(), guard=FakeGuard())
    output, _ = await run(Agent(model, output_type=[Answer, str]), "a bad thing", False)
    assert output == REFUSAL


@STREAMED
@pytest.mark.parametrize(
    ("on_flag", "mode"), [("annotate", "enforce"), ("refuse", "shadow"), ("raise", "shadow")]
)
async def test_where_nothing_is_stopped_the_verdict_is_told(other_model, stream, on_flag, mode):
    agent = guarded(other_model(), policy=Policy(mode=mode), on_flag=on_flag)
    output, response = await run(agent, "a bad thing", stream)
    assert output == "fine"
    assert response.metadata["guardrail"]["would_be"] == "flag"


@STREAMED
async def test_what_would_be_steered_goes_on_with_a_caution(other_model, stream):
    model = other_model()
    agent = Agent(GuardedModel(model, guard=FakeGuard()), instructions="be kind")
    output, _ = await run(agent, "an odd thing", stream)
    assert output == "fine"
    [request] = model.seen[0][0]
    assert isinstance(request.parts[0], SystemPromptPart)
    assert request.parts[0].content == CAUTION


@pytest.mark.parametrize(("unsteerable", "asked"), [("flag", 0), ("pass", 1)])
async def test_the_policy_says_what_becomes_of_it(other_model, unsteerable, asked):
    model = other_model()
    await run(guarded(model, policy=Policy(unsteerable=unsteerable)), "an odd thing", False)
    assert len(model.seen) == asked
    assert CAUTION not in model.said()


async def test_a_history_does_not_keep_the_caution(other_model):
    agent = guarded(other_model())
    first = await agent.run("an odd thing")
    assert CAUTION not in repr(first.all_messages())


async def test_an_outage_is_no_answer(other_model):
    model = other_model()
    assert (await run(guarded(model), "outage", False))[0] == REFUSAL
    with pytest.raises(DetectorError):
        await run(guarded(model, on_flag="raise"), "outage", False)
    assert model.seen == []
    assert (await run(guarded(model, policy=Policy(fail="open")), "outage", False))[0] == "fine"


async def test_no_fallback_answers_what_was_refused(other_model):
    second = other_model()
    first = GuardedModel(other_model(), guard=FakeGuard(), on_flag="raise")
    with pytest.raises(GuardrailViolation):
        await Agent(FallbackModel(first, second)).run("a bad thing")
    assert second.seen == []


async def test_what_comes_beside_is_judged_once_for_all(other_model):
    guard = FakeGuard()

    def look(where: str) -> str:
        return where

    agent = Agent(
        other_model(), instructions="be kind", tools=[look], capabilities=[Guardrail(guard)]
    )
    first = await agent.run("hello")
    assert len(guard.seen) == 3  # the message, the instructions, the tool
    await agent.run("hello", message_history=first.all_messages())
    assert len(guard.seen) == 4


async def test_a_run_with_another_model_is_guarded_by_the_capability(other_model):
    inner = other_model()
    agent = Agent(other_model(), capabilities=[Guardrail(FakeGuard())])
    assert (await agent.run("a bad thing", model=inner)).output == REFUSAL
    assert inner.seen == []


async def test_a_batchs_requests_are_judged(other_model):
    model = GuardedModel(other_model(), guard=FakeGuard())

    def asked(words: str) -> BatchRequest:
        return BatchRequest(
            custom_id="1",
            messages=[ModelRequest(parts=[UserPromptPart(words)])],
            model_request_parameters=ModelRequestParameters(),
        )

    assert (await model.batch_encode(asked("hello"))).custom_id == "1"
    with pytest.raises(GuardrailViolation):
        await model.batch_encode(asked("a bad thing"))


async def test_the_audit_is_told_once_a_request(other_model):
    told = []
    agent = guarded(other_model(), audit=lambda verdict, about: told.append(about["done"]))
    for words in ("hello", "an odd thing", "a bad thing"):
        await agent.run(words)
    assert told == ["pass", "caution", "flag"]


async def test_a_name_is_a_model_as_pydantic_ai_knows_it():
    agent = Agent(GuardedModel("test", guard=FakeGuard()))
    result = await agent.run("hello")
    assert result.output == "success (no tool calls)"
    assert isinstance(result.response.parts[0], TextPart)


def test_a_setting_that_means_nothing_is_an_error(other_model):
    with pytest.raises(ConfigurationError):
        GuardedModel(other_model(), guard=FakeGuard(), on_flag="refused")
    with pytest.raises(ConfigurationError):
        Guardrail(FakeGuard(), check=["inputs"])


async def test_what_a_durable_run_sums_up_is_refused(other_model):
    """There the model that sums up is another one than the one that a capability guards."""
    guardrail = Guardrail(FakeGuard())
    context: Any = SimpleNamespace(root_capability=OpenAICompaction(), in_durable_context=True)
    request = ModelRequestContext(
        model=other_model(),
        messages=[],
        model_settings=None,
        model_request_parameters=ModelRequestParameters(),
    )
    with pytest.raises(ConfigurationError, match="GuardedModel"):
        await guardrail.prepare_model_request(context, request)
    context.root_capability = guardrail  # nothing sums up
    assert await guardrail.prepare_model_request(context, request) is request
    assert not isinstance(request.model, GuardedModel)


def test_a_model_is_put_behind_the_same_guard_once(other_model):
    guardrail = Guardrail(FakeGuard())
    guarded_once = guardrail.get_wrapper_model(other_model())
    assert isinstance(guarded_once, GuardedModel)
    assert guardrail.get_wrapper_model(guarded_once) is None
