"""Guardrails in the SDK's own forms: what trips, what is withheld, what goes on."""

from __future__ import annotations

from typing import Any

import pytest
from agents import (
    Agent,
    FunctionTool,
    InputGuardrailTripwireTriggered,
    ModelRefusalError,
    ModelResponse,
    OutputGuardrailTripwireTriggered,
    RunErrorDetails,
    Runner,
    SQLiteSession,
    ToolOutputGuardrailTripwireTriggered,
    ToolOutputImage,
    function_tool,
)
from guardrail_agents import (
    GuardedModel,
    guard_tool,
    guarded_agent,
    input_guardrail,
    output_guardrail,
    tool_guardrails,
)
from pydantic import BaseModel

from guardrail.errors import ConfigurationError, GuardrailViolation, UnsupportedContentError
from guardrail.front.chats import CALL_WITHHELD, RESULT_CAUTION, RESULT_WITHHELD
from guardrail.policy import CAUTION, REFUSAL, Policy
from guardrail.testing import FakeGuard

STREAMED = pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])


async def run(agent: Agent[Any], items: Any = "hi", stream: bool = False, **options: Any) -> Any:
    if not stream:
        return await Runner.run(agent, items, **options)
    result = Runner.run_streamed(agent, items, **options)
    result.events = [event async for event in result.stream_events()]
    return result


def giving(value: Any) -> FunctionTool:
    """A tool called `look` that gives this."""

    def look(where: str = "") -> Any:
        return value

    return function_tool(look)


def outputs(model: Any) -> list[Any]:
    """The tools' outputs that a model was sent in the end."""
    items = model.seen[-1][1]
    return [item["output"] for item in items if item.get("type") == "function_call_output"]


class Answer(BaseModel):
    text: str


# ---- input


@STREAMED
async def test_a_flagged_input_trips_before_the_model_is_asked(other_model, stream):
    model, guard = other_model(), FakeGuard()
    agent = Agent("a", model=model, input_guardrails=[input_guardrail(guard)])
    with pytest.raises(InputGuardrailTripwireTriggered) as tripped:
        await run(agent, "a bad thing", stream)
    told = tripped.value.guardrail_result.output.output_info
    assert (told["action"], told["score"]) == ("flag", 1.0)
    assert model.seen == []
    assert isinstance(tripped.value.run_data, RunErrorDetails)


@STREAMED
async def test_a_harmless_input_goes_on_and_the_verdict_is_told(other_model, stream):
    agent = Agent("a", model=other_model(), input_guardrails=[input_guardrail(FakeGuard())])
    result = await run(agent, "hello", stream)
    assert result.final_output == "fine"
    assert result.input_guardrail_results[0].output.output_info["action"] == "pass"


@pytest.mark.parametrize(
    "options", [{"on_flag": "annotate"}, {"policy": {"mode": "shadow"}}], ids=["annotate", "shadow"]
)
async def test_where_nothing_is_stopped_the_verdict_is_told(other_model, options):
    guard = FakeGuard(policy=Policy(**options.pop("policy", {})))
    agent = Agent("a", model=other_model(), input_guardrails=[input_guardrail(guard, **options)])
    result = await run(agent, "a bad thing")
    assert result.final_output == "fine"
    assert result.input_guardrail_results[0].output.output_info["would_be"] == "flag"


@pytest.mark.parametrize(("unsteerable", "trips"), [("caution", 1), ("flag", 1), ("pass", 0)])
async def test_a_guardrail_alone_has_no_place_for_a_caution(other_model, unsteerable, trips):
    guard = FakeGuard(policy=Policy(unsteerable=unsteerable))
    agent = Agent("a", model=other_model(), input_guardrails=[input_guardrail(guard)])
    if trips:
        with pytest.raises(InputGuardrailTripwireTriggered):
            await run(agent, "an odd thing")
    else:
        assert (await run(agent, "an odd thing")).final_output == "fine"


async def test_a_guardrail_alone_wants_pictures_of_one_reading(other_model, two_ways, data_url):
    agent = Agent("a", model=other_model(), input_guardrails=[input_guardrail(FakeGuard())])
    shown = {"type": "input_image", "image_url": two_ways, "detail": "auto"}
    with pytest.raises(UnsupportedContentError, match="two ways"):
        await run(agent, [{"role": "user", "content": [shown]}])
    await run(agent, [{"role": "user", "content": [shown | {"image_url": data_url}]}])


async def test_an_outage_trips_where_the_policy_fails_closed(other_model):
    for fail, stops in (("closed", True), ("open", False)):
        guard = FakeGuard(policy=Policy(fail=fail))
        agent = Agent("a", model=other_model(), input_guardrails=[input_guardrail(guard)])
        if stops:
            with pytest.raises(InputGuardrailTripwireTriggered):
                await run(agent, "outage")
        else:
            assert (await run(agent, "outage")).final_output == "fine"


async def test_in_shadow_mode_not_even_what_cannot_be_read_stops_a_run(other_model, caplog):
    guard = FakeGuard(policy=Policy(mode="shadow"))
    agent = guarded_agent(Agent("a", model=other_model()), guard=guard)
    odd = [{"role": "user", "content": [{"type": "input_file", "file_id": "f1"}]}]
    assert (await run(agent, odd)).final_output == "fine"
    assert "could not be checked" in caplog.text


# ---- the model


@STREAMED
async def test_what_would_be_steered_goes_on_with_a_caution(other_model, stream):
    model = other_model()
    agent = guarded_agent(Agent("a", model=model, instructions="be kind"), guard=FakeGuard())
    result = await run(agent, "an odd thing", stream)
    assert result.final_output == "fine"
    assert model.seen[0][0] == f"{CAUTION}\n\nbe kind"


@STREAMED
@pytest.mark.parametrize("output_type", [None, Answer])
async def test_a_later_turn_that_is_flagged_is_a_refusal(other_model, stream, output_type):
    model, guard = other_model(("look", "{}")), FakeGuard()
    agent = Agent("a", model=model, tools=[giving("a bad thing")], output_type=output_type)
    with pytest.raises(ModelRefusalError) as refused:
        await run(guarded_agent(agent, guard=guard, check=["input"]), stream=stream)
    assert refused.value.refusal == REFUSAL
    assert len(model.seen) == 1


async def test_a_stream_of_a_refusal_has_the_events_of_one(other_model):
    result, events = Runner.run_streamed(refusing(other_model()), "a bad thing"), []

    async def read() -> None:
        async for event in result.stream_events():
            events.append(event)

    with pytest.raises(ModelRefusalError):
        await read()
    raw = [event.data for event in events if event.type == "raw_response_event"]
    assert [each.type.removeprefix("response.") for each in raw] == [
        "created",
        "output_item.added",
        "content_part.added",
        "refusal.delta",
        "refusal.done",
        "content_part.done",
        "output_item.done",
        "completed",
    ]
    assert raw[3].delta == raw[-1].response.output[0].content[0].refusal == REFUSAL
    assert [each.sequence_number for each in raw] == list(range(8))


def refusing(model: Any) -> Agent[Any]:
    return Agent("a", model=GuardedModel(model, guard=FakeGuard()))


async def test_the_sdks_handler_of_refusals_answers(other_model):
    agent = refusing(other_model())
    handlers = {"model_refusal": lambda given: f"refused: {given.error.refusal}"}
    result = await run(agent, "a bad thing", error_handlers=handlers)
    assert result.final_output == f"refused: {REFUSAL}"


@STREAMED
async def test_under_raise_a_later_turn_is_a_violation(other_model, stream):
    model = other_model(("look", "{}"))
    agent = Agent("a", model=model, tools=[giving("a bad thing")])
    guarded = guarded_agent(agent, guard=FakeGuard(), check=["input"], on_flag="raise")
    with pytest.raises(GuardrailViolation):
        await run(guarded, stream=stream)
    assert len(model.seen) == 1


async def test_a_first_turn_is_judged_once_and_what_comes_beside_it_once_for_all(other_model):
    guard, told = FakeGuard(), []
    agent = Agent("a", model=other_model(), instructions="be kind", tools=[giving("a cat")])
    agent = guarded_agent(agent, guard=guard, audit=lambda verdict, about: told.append(about))
    await run(agent, "hello")
    assert len(guard.seen) == 3  # the input, the instructions, the tool
    await run(agent, "hello")
    assert len(guard.seen) == 4
    assert [each["done"] for each in told] == ["pass", "pass"]


async def test_a_name_of_a_model_is_looked_up_where_it_is_said(other_model):
    asked, inner = [], other_model()

    class Provider:
        def get_model(self, name: str) -> Any:
            asked.append(name)
            return inner

    agent = guarded_agent(Agent("a", model="big-one"), guard=FakeGuard(), provider=Provider())
    with pytest.raises(InputGuardrailTripwireTriggered):
        await run(agent, "a bad thing")
    assert asked == []
    assert (await run(agent)).final_output == "fine"
    assert set(asked) == {"big-one"}


async def test_the_agent_itself_stays_as_it_was(other_model):
    tool, model = giving("a bad thing"), other_model(("look", "{}"))
    agent = Agent("a", model=model, tools=[tool])
    guarded_agent(agent, guard=FakeGuard())
    assert (await run(agent)).final_output == "fine"
    assert outputs(model) == ["a bad thing"]
    assert not tool.tool_output_guardrails


async def test_a_session_goes_on_after_a_tripwire_once_the_item_is_taken_out(other_model):
    session = SQLiteSession("s")
    agent = guarded_agent(Agent("a", model=other_model()), guard=FakeGuard())
    await run(agent, "hello", session=session)
    with pytest.raises(InputGuardrailTripwireTriggered):
        await run(agent, "a bad thing", session=session)
    with pytest.raises(InputGuardrailTripwireTriggered):
        await run(agent, "hello again", session=session)
    items = await session.get_items()
    await session.clear_session()
    await session.add_items([item for item in items if "bad" not in str(item)])
    assert (await run(agent, "and now?", session=session)).final_output == "fine"
    session.close()


# ---- tools


@STREAMED
async def test_a_poisoned_result_is_withheld(other_model, stream):
    model = other_model(("look", '{"where": "there"}'))
    agent = guarded_agent(Agent("a", model=model, tools=[giving("a bad thing")]), guard=FakeGuard())
    result = await run(agent, stream=stream)
    assert result.final_output == "fine"
    assert outputs(model) == [RESULT_WITHHELD]
    assert "a bad thing" not in model.said()
    found = result.tool_output_guardrail_results[0].output
    assert found.output_info["action"] == "flag"
    assert result.tool_input_guardrail_results[0].output.output_info["action"] == "pass"


async def test_a_flagged_call_is_not_made(other_model):
    made = []
    model = other_model(("look", '{"where": "a bad place"}'))

    def look(where: str) -> str:
        made.append(where)
        return "here"

    tool = guard_tool(function_tool(look), guard=FakeGuard())
    await run(Agent("a", model=model, tools=[tool]))
    assert made == []
    assert outputs(model) == [CALL_WITHHELD]


async def test_under_raise_a_result_ends_the_run(other_model):
    model = other_model(("look", "{}"))
    tool = guard_tool(giving("a bad thing"), guard=FakeGuard(), on_flag="raise")
    with pytest.raises(ToolOutputGuardrailTripwireTriggered) as tripped:
        await run(Agent("a", model=model, tools=[tool]))
    assert tripped.value.output.output_info["action"] == "flag"


async def test_a_text_gets_a_caution_and_a_list_of_parts_has_no_place_for_one(other_model):
    model = other_model(("look", "{}"))
    await run(
        Agent("a", model=model, tools=[guard_tool(giving("an odd thing"), guard=FakeGuard())])
    )
    assert outputs(model) == [f"{RESULT_CAUTION}\n\nan odd thing"]
    model = other_model(("look", "{}"))
    parts = [{"type": "text", "text": "an odd thing"}]
    await run(Agent("a", model=model, tools=[guard_tool(giving(parts), guard=FakeGuard())]))
    assert outputs(model) == [RESULT_WITHHELD]


async def test_a_picture_that_a_tool_brings_is_judged(other_model, picture_guard, data_url):
    for guard, kept in ((FakeGuard(), True), (picture_guard(), False)):
        model = other_model(("look", "{}"))
        tool = guard_tool(giving(ToolOutputImage(image_url=data_url)), guard=guard)
        await run(Agent("a", model=model, tools=[tool]))
        assert (data_url in model.said()) is kept
        assert kept or outputs(model) == [RESULT_WITHHELD]


async def test_a_tool_that_gives_nothing_or_is_told_nothing_is_not_judged(other_model):
    guard, model = FakeGuard(), other_model(("look", "{}"))
    await run(Agent("a", model=model, tools=[guard_tool(giving(""), guard=guard)]))
    assert guard.seen == []


def test_tool_guardrails_are_those_of_the_sides_that_are_asked_for():
    assert list(map(len, tool_guardrails(FakeGuard()))) == [1, 1]
    assert list(map(len, tool_guardrails(FakeGuard(), check="result"))) == [0, 1]
    for refused in ("both", []):
        with pytest.raises(ConfigurationError):
            tool_guardrails(FakeGuard(), check=refused)
    with pytest.raises(ConfigurationError, match="function tool"):
        guard_tool(object(), guard=FakeGuard())
    with pytest.raises(ConfigurationError):
        guarded_agent(Agent("a"), guard=FakeGuard(), check=["inputs"])


# ---- output


@pytest.mark.parametrize("output_type", [None, Answer])
async def test_a_flagged_output_trips(other_model, output_type):
    said = '{"text": "a bad thing"}' if output_type else "a bad thing"
    agent = Agent(
        "a",
        model=other_model(said),
        output_type=output_type,
        output_guardrails=[output_guardrail(FakeGuard())],
    )
    with pytest.raises(OutputGuardrailTripwireTriggered):
        await run(agent)


async def test_an_output_is_judged_as_an_answer_where_answers_are_watched(other_model):
    guard = FakeGuard(policy=Policy(watch="answer"))
    agent = Agent(
        "a", model=other_model("a bad thing"), output_guardrails=[output_guardrail(guard)]
    )
    with pytest.raises(OutputGuardrailTripwireTriggered) as tripped:
        await run(agent)
    assert tripped.value.guardrail_result.output.output_info["reason"] == "answer"


async def test_another_output_does_not_trip(other_model):
    agent = Agent("a", model=other_model(), output_guardrails=[output_guardrail(FakeGuard())])
    result = await run(agent)
    assert result.output_guardrail_results[0].output.output_info["action"] == "pass"
    assert isinstance(result.raw_responses[0], ModelResponse)
