"""What the contract of all adapters does not cover: streams, pictures, and what goes unasked."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, get_args

import pytest
from agents import (
    Agent,
    ComputerTool,
    HostedMCPTool,
    ImageGenerationTool,
    InputGuardrailTripwireTriggered,
    ModelRefusalError,
    ModelSettings,
    Runner,
    Tool,
    handoff,
)
from agents.models.interface import ModelTracing
from guardrail_agents import GuardedModel, guarded_agent

from guardrail.errors import GuardrailViolation, InputError
from guardrail.policy import Policy
from guardrail.testing import FakeGuard
from tests.channels._agents_classes import CLASSES
from tests.channels._agents_items import CALL, ITEMS, SAMPLES, kind_of, planted
from tests.channels.agents import CASES, sent, user
from tests.channels.contract import WORD, Withheld

if TYPE_CHECKING:
    from collections.abc import Callable


def result(output: Any) -> dict[str, Any]:
    return {"type": "function_call_output", "call_id": "c1", "output": output}


@pytest.mark.parametrize("name", list(CASES))
async def test_the_model_gets_no_planted_word_in_a_stream(name):
    guard = FakeGuard([WORD])
    with pytest.raises((Withheld, GuardrailViolation)):
        await sent(CASES[name], guard, WORD, stream=True)
    assert WORD in repr(guard.seen)


def test_every_kind_of_an_item_is_known():
    assert {kind_of(each) for each in ITEMS} <= {*SAMPLES}


@pytest.mark.parametrize("kind", ITEMS, ids=kind_of)
def test_every_field_of_an_item_has_words_planted(kind):
    assert set(kind.__annotations__) <= set(SAMPLES[kind_of(kind)][1])


def test_every_kind_of_a_tool_is_known():
    tools = {getattr(each, "__origin__", None) or each for each in get_args(Tool)}
    assert tools <= {each.kind for each in CLASSES}


async def test_labels_and_keys_are_not_asked_about(other_model):
    guard, inner = FakeGuard(), other_model()
    key = "a-very-long-key-" * 9
    server: Any = {
        "type": "mcp",
        "server_label": "s",
        "server_url": "https://example.org/mcp",
        "authorization": key,
        "headers": {"Authorization": f"Bearer {key}", "x-team": "7"},
    }
    settings = ModelSettings(
        extra_headers={"authorization": f"Bearer {key}"},
        metadata={"user": "u1"},
        tool_choice="hosted_mcp",
    )
    agent = Agent("a", model=inner, tools=[HostedMCPTool(server)], model_settings=settings)
    items = [user(), SAMPLES["function_call"][1], result("here")]
    await Runner.run(guarded_agent(agent, guard=guard), items)
    asked = repr(guard.seen)
    for unasked in (key, "example.org", "u1", "p1", "commentary"):
        assert unasked not in asked


async def test_the_system_of_a_computer_is_read(other_model):
    class Elsewhere:
        environment = WORD

    guard, inner = FakeGuard([WORD]), other_model()
    model = GuardedModel(inner, guard=guard, on_flag="raise")
    tool: Any = ComputerTool(Elsewhere())  # type: ignore[arg-type]
    stored = {"previous_response_id": None, "conversation_id": None, "prompt": None}
    given = (None, "hi", ModelSettings(), [tool], None, [], ModelTracing.DISABLED)
    with pytest.raises(GuardrailViolation):
        await model.get_response(*given, **stored)
    assert inner.seen == []


@pytest.mark.parametrize("held", [[f"do {WORD}"], f"do {WORD}", {"a": WORD}], ids=type)
@pytest.mark.parametrize("key", ["token", "bytes", "logprob", "top_logprobs", "note"])
async def test_what_stands_among_the_probabilities_of_tokens_is_read(other_model, key, held):
    path = ("content", 0, "logprobs", 0)
    token = {"token": "so", "bytes": [115], "logprob": -0.1, "top_logprobs": []}
    item = planted(SAMPLES["answer"][1], path, token | {key: held})
    inner, guard = other_model(), FakeGuard([WORD])
    with pytest.raises((InputGuardrailTripwireTriggered, InputError)):
        await Runner.run(guarded_agent(Agent("a", model=inner), guard=guard), [user(), item])
    assert inner.seen == []


@pytest.mark.parametrize("wrapped", [False, True], ids=["agent", "handoff"])
async def test_an_agent_that_is_handed_off_to_is_guarded_too(other_model, wrapped):
    second = other_model()
    other = Agent("other", model=second, instructions=WORD)
    first = other_model(("transfer_to_other", "{}"))
    handed = handoff(other) if wrapped else other
    agent = guarded_agent(Agent("a", model=first, handoffs=[handed]), guard=FakeGuard([WORD]))
    with pytest.raises(ModelRefusalError):
        await Runner.run(agent, "hi")
    assert len(first.seen) == 1
    assert second.seen == []


async def test_agents_may_hand_off_in_circles(other_model):
    one, two = Agent("one", model=other_model(("transfer_to_two", "{}"))), Agent("two")
    one.handoffs, two.handoffs = [two], [one]
    two.model = other_model("done")
    armed = guarded_agent(one, guard=FakeGuard())
    assert armed.handoffs[0].handoffs[0] is armed
    assert (await Runner.run(armed, "hi")).final_output == "done"


@pytest.mark.parametrize("stored", ["previous_response_id", "conversation_id", "prompt"])
async def test_what_is_kept_elsewhere_is_an_error(other_model, stored):
    inner = other_model()
    model = GuardedModel(inner, guard=FakeGuard())
    names = {"previous_response_id": None, "conversation_id": None, "prompt": None}
    given = (None, "hi", ModelSettings(), [], None, [], ModelTracing.DISABLED)
    with pytest.raises(InputError, match=f"{stored} names what is kept at the provider"):
        await model.get_response(*given, **names | {stored: {"id": "p1"}})
    assert inner.seen == []


@pytest.mark.parametrize(
    "item",
    [
        user([{"type": "input_image", "file_id": "f1", "detail": "auto"}]),
        user([{"type": "input_image", "image_url": "https://example.org/a.png", "detail": "low"}]),
        {
            "type": "computer_call_output",
            "call_id": "c",
            "output": {"type": "computer_screenshot", "file_id": "f1"},
        },
    ],
    ids=lambda item: str(item.get("type", item["role"] if "role" in item else ""))[:30],
)
async def test_what_no_guard_can_read_is_an_error(other_model, item):
    inner = other_model()
    with pytest.raises(InputError):
        await Runner.run(guarded_agent(Agent("a", model=inner), guard=FakeGuard()), [item])
    assert inner.seen == []


# --- pictures -------------------------------------------------------------------------------------

PICTURES: dict[str, Callable[[str], Any]] = {
    "a message": lambda url: user([{"type": "input_image", "image_url": url, "detail": "auto"}]),
    "a result": lambda url: result([{"type": "input_image", "image_url": url}]),
    "a screenshot": lambda url: {
        "type": "computer_call_output",
        "call_id": "c1",
        "output": {"type": "computer_screenshot", "image_url": url},
    },
    "a picture that was made": lambda url: {
        "type": "image_generation_call",
        "id": "i1",
        "status": "completed",
        "result": url.partition(",")[2],
    },
}


@pytest.mark.parametrize("name", list(PICTURES))
async def test_the_model_gets_no_planted_picture(other_model, picture_guard, data_url, name):
    inner = other_model()
    agent = guarded_agent(Agent("a", model=inner), guard=picture_guard())
    with pytest.raises(InputGuardrailTripwireTriggered):
        await Runner.run(agent, [user(), CALL, PICTURES[name](data_url)])
    assert inner.seen == []


@pytest.mark.parametrize("name", list(PICTURES))
async def test_a_picture_goes_on_as_it_was_judged(other_model, data_url, two_ways, name):
    inner = other_model()
    agent = guarded_agent(Agent("a", model=inner), guard=FakeGuard())
    await Runner.run(agent, [user(), CALL, PICTURES[name](two_ways)])
    assert two_ways.partition(",")[2] not in inner.said()
    assert data_url.partition(",")[2] in inner.said()


def masked(url: str) -> Any:
    config: Any = {"type": "image_generation", "input_image_mask": {"image_url": url}}
    return ImageGenerationTool(config)


async def test_a_mask_is_judged(other_model, picture_guard, data_url):
    inner = other_model()
    agent = Agent("a", model=inner, tools=[masked(data_url)])
    with pytest.raises(ModelRefusalError):
        await Runner.run(guarded_agent(agent, guard=picture_guard()), "hi")
    assert inner.seen == []


async def test_a_mask_that_is_let_pass_goes_on(other_model, data_url):
    inner, guard = other_model(), FakeGuard()
    agent = Agent("a", model=inner, tools=[masked(data_url)])
    await Runner.run(guarded_agent(agent, guard=guard), "hi")
    assert data_url in inner.said()


async def test_a_mask_of_two_readings_is_an_error(other_model, two_ways):
    inner = other_model()
    agent = Agent("a", model=inner, tools=[masked(two_ways)])
    with pytest.raises(InputError):
        await Runner.run(guarded_agent(agent, guard=FakeGuard()), "hi")
    assert inner.seen == []


async def test_in_shadow_mode_a_picture_stays_as_it_is(other_model, two_ways):
    inner, guard = other_model(), FakeGuard(policy=Policy(mode="shadow"))
    shown = [PICTURES["a message"](two_ways)]
    await Runner.run(guarded_agent(Agent("a", model=inner), guard=guard), shown)
    assert two_ways in inner.said()
