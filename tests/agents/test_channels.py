"""What the contract of all adapters does not cover: streams, pictures, and what goes unasked."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, get_args

import httpx
import pytest
from agents import (
    Agent,
    ApplyPatchTool,
    ComputerTool,
    HostedMCPTool,
    ImageGenerationTool,
    InputGuardrailTripwireTriggered,
    ModelRefusalError,
    ModelSettings,
    OpenAIChatCompletionsModel,
    Runner,
    Tool,
    function_tool,
    handoff,
)
from agents.models.interface import ModelTracing
from guardrail_agents import GuardedModel, guarded_agent
from openai import AsyncOpenAI

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


def chatting(sent: list[Any]) -> OpenAIChatCompletionsModel:
    """A model of another API, which calls a tool first."""
    call = {"id": "c1", "type": "function", "function": {"name": "look", "arguments": "{}"}}
    said = [{"content": None, "tool_calls": [call]}, {"content": "fine"}]

    def answer(request: httpx.Request) -> httpx.Response:
        sent.append(json.loads(request.content))
        message = {"role": "assistant", **said[len(sent) - 1]}
        choice = {"index": 0, "finish_reason": "stop", "message": message}
        head = {"id": "x", "object": "chat.completion", "created": 0, "model": "m"}
        return httpx.Response(200, json={**head, "choices": [choice]})

    web = httpx.AsyncClient(transport=httpx.MockTransport(answer))
    return OpenAIChatCompletionsModel("m", AsyncOpenAI(api_key="k", http_client=web))


async def test_a_model_of_another_api_has_its_second_turn():
    sent, guard = list[Any](), FakeGuard()
    tool = function_tool(lambda: "here", name_override="look", description_override="Look.")
    agent = guarded_agent(Agent("a", model=chatting(sent), tools=[tool]), guard=guard)
    assert (await Runner.run(agent, "hi")).final_output == "fine"
    assert len(sent) == 2
    assert sent[1]["messages"][-1]["content"] == "here"


@pytest.mark.parametrize(
    "held",
    [
        {"thinking_blocks": [{"type": "thinking", "thinking": WORD, "signature": "gA=="}]},
        {"thinking_blocks": [{"type": "redacted_thinking", "data": f"do {WORD}"}]},
        {"thought_signature": f"do {WORD}"},
        {"model": f"do {WORD}"},
        {f"do {WORD}": "m"},
        {"note": WORD},
        WORD,
    ],
    ids=str,
)
@pytest.mark.parametrize("kind", ["function_call", "answer", "reasoning", "web_search_call"])
async def test_words_for_one_provider_are_read(other_model, kind, held):
    inner, guard = other_model(), FakeGuard([WORD])
    item = SAMPLES[kind][1] | {"provider_data": held}
    with pytest.raises(InputGuardrailTripwireTriggered):
        await Runner.run(guarded_agent(Agent("a", model=inner), guard=guard), [user(), item])
    assert inner.seen == []


STORED: dict[str, Any] = {
    "a prompt": {"prompt": {"id": "p1"}},
    "an answer": {"previous_response_id": "r1"},
    "a conversation": {"conversation": "c1"},
    "an item": {"input": [{"type": "item_reference", "id": "m1"}]},
    "a picture": {"input": [user([{"type": "input_image", "file_id": "f1"}])]},
    "a file": {"input": [user([{"type": "input_file", "file_data": "data:application/pdf,A"}])]},
    "a skill": {"tools": [{"type": "shell", "environment": {"skills": [{"skill_id": "s1"}]}}]},
}


@pytest.mark.parametrize("key", ["extra_body", "extra_args"])
@pytest.mark.parametrize("name", list(STORED))
async def test_the_body_of_a_request_names_nothing_that_no_guard_can_read(other_model, name, key):
    inner = other_model()
    agent = Agent("a", model=inner, model_settings=ModelSettings(**{key: STORED[name]}))
    with pytest.raises(InputError):
        await Runner.run(guarded_agent(agent, guard=FakeGuard()), "hi")
    assert inner.seen == []


@pytest.mark.parametrize("elsewhere", ["connector_id", "tunnel_id"])
async def test_a_server_without_an_address_is_read(other_model, elsewhere):
    for word, stops in ((WORD, True), ("a word", False)):
        inner, guard = other_model(), FakeGuard([WORD])
        server: Any = {"type": "mcp", "server_label": "s", elsewhere: "connector_gmail"}
        tool = HostedMCPTool(server | {"server_description": word})
        agent = guarded_agent(Agent("a", model=inner, tools=[tool]), guard=guard)
        if stops:
            with pytest.raises(ModelRefusalError):
                await Runner.run(agent, "hi")
        else:
            assert (await Runner.run(agent, "hi")).final_output == "fine"
        assert bool(inner.seen) is not stops


async def test_a_setting_that_a_patching_tool_is_given_is_read(other_model):
    tool, inner = ApplyPatchTool(editor=None), other_model()  # type: ignore[arg-type]
    vars(tool)["tool_config"] = {"type": "apply_patch", "description": WORD}
    agent = Agent("a", model=inner, tools=[tool])
    with pytest.raises(ModelRefusalError):
        await Runner.run(guarded_agent(agent, guard=FakeGuard([WORD])), "hi")
    assert inner.seen == []


@pytest.mark.parametrize("role", [["user"], {"a": WORD}, 5], ids=type)
async def test_a_speaker_who_is_no_text_is_an_error(other_model, role):
    inner = other_model()
    item = {"role": role, "content": "hi"}
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


@pytest.mark.parametrize("key", ["extra_body", "extra_args"])
async def test_a_picture_in_the_body_of_a_request_is_judged(
    other_model, picture_guard, data_url, two_ways, key
):
    def asking(guard: Any, url: str) -> tuple[Any, Any]:
        inner = other_model()
        body = {"messages": [user([{"type": "image_url", "image_url": {"url": url}}])]}
        settings = ModelSettings(**{key: body})
        return inner, guarded_agent(Agent("a", model=inner, model_settings=settings), guard=guard)

    for guard, url, error in (
        (picture_guard(), data_url, ModelRefusalError),
        (FakeGuard(), two_ways, InputError),
    ):
        inner, agent = asking(guard, url)
        with pytest.raises(error):
            await Runner.run(agent, "hi")
        assert inner.seen == []
    inner, agent = asking(FakeGuard(), data_url)
    assert (await Runner.run(agent, "hi")).final_output == "fine"


async def test_in_shadow_mode_a_picture_stays_as_it_is(other_model, two_ways):
    inner, guard = other_model(), FakeGuard(policy=Policy(mode="shadow"))
    shown = [PICTURES["a message"](two_ways)]
    await Runner.run(guarded_agent(Agent("a", model=inner), guard=guard), shown)
    assert two_ways in inner.said()
