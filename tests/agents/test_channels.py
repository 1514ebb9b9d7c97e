"""Every way by which words reach a model in this adapter: a word planted there is seen."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pytest
from agents import (
    Agent,
    InputGuardrailTripwireTriggered,
    ModelRefusalError,
    ModelSettings,
    RunConfig,
    Runner,
    SQLiteSession,
    ToolInputGuardrailTripwireTriggered,
    ToolOutputGuardrailTripwireTriggered,
    WebSearchTool,
    function_tool,
    handoff,
)
from agents.models.interface import ModelTracing
from guardrail_agents import GuardedModel, guarded_agent
from pydantic import Field, create_model

from guardrail.errors import GuardrailViolation, InputError
from guardrail.policy import Policy
from guardrail.testing import FakeGuard

if TYPE_CHECKING:
    from collections.abc import Callable

WORD = "zqxword"
STOPS = (
    GuardrailViolation,
    InputGuardrailTripwireTriggered,
    ModelRefusalError,
    ToolInputGuardrailTripwireTriggered,
    ToolOutputGuardrailTripwireTriggered,
)
DESCRIBED = create_model("Described", text=(str, Field(description=WORD)))
NAMED = create_model(WORD, text=(str, ...))


def look(where: str) -> str:
    """Look somewhere."""
    return where


def tool(**about: Any) -> Any:
    return function_tool(look, **about)


def user(words: Any = "hi") -> dict[str, Any]:
    return {"role": "user", "content": words}


def call(arguments: str = "{}", **more: Any) -> dict[str, Any]:
    about = {"type": "function_call", "call_id": "c1", "name": "look", "arguments": arguments}
    return about | more


def result(output: Any) -> dict[str, Any]:
    return {"type": "function_call_output", "call_id": "c1", "output": output}


def said(part: dict[str, Any]) -> dict[str, Any]:
    about = {"type": "message", "id": "m1", "role": "assistant", "status": "completed"}
    return {**about, "content": [part]}


@dataclass
class Channel:
    """What a run is given, and what its model does; `agent` are the agent's own settings."""

    items: Any = "hi"
    agent: dict[str, Any] = field(default_factory=dict)
    script: tuple[Any, ...] = ()
    late: bool = False  # the model has been asked before the word comes


def described() -> Any:
    async def seen(place: DESCRIBED) -> str:  # type: ignore[valid-type]
        return "here"

    return function_tool(seen)


def finding() -> Any:
    return function_tool(lambda: WORD, name_override="find", description_override="Find.")


def failing() -> Any:
    def fail() -> str:
        raise ValueError(WORD)

    return function_tool(fail, failure_error_function=lambda context, error: str(error))


CHANNELS: dict[str, Channel] = {
    "a text": Channel(WORD),
    "a user's message": Channel([user(WORD)]),
    "a text part": Channel([user([{"type": "input_text", "text": WORD}])]),
    "a system message": Channel([{"role": "system", "content": WORD}, user()]),
    "a developer's message": Channel([{"role": "developer", "content": WORD}, user()]),
    "an earlier answer": Channel(
        [user(), said({"type": "output_text", "text": WORD, "annotations": []}), user()]
    ),
    "an earlier refusal": Channel([user(), said({"type": "refusal", "refusal": WORD}), user()]),
    "a citation": Channel(
        [
            user(),
            said(
                {
                    "type": "output_text",
                    "text": "here",
                    "annotations": [{"type": "url_citation", "title": WORD, "url": "https://a"}],
                }
            ),
            user(),
        ]
    ),
    "an earlier thought": Channel(
        [
            user(),
            {"type": "reasoning", "id": "r1", "summary": [{"type": "summary_text", "text": WORD}]},
            user(),
        ]
    ),
    "an open thought": Channel(
        [
            user(),
            {
                "type": "reasoning",
                "id": "r1",
                "summary": [],
                "content": [{"type": "reasoning_text", "text": WORD}],
            },
            user(),
        ]
    ),
    "the arguments of an earlier call": Channel(
        [user(), call(f'{{"where": "{WORD}"}}'), result("here")]
    ),
    "the name of an earlier call": Channel([user(), call(name=WORD), result("here")]),
    "an id that is none": Channel(
        [user(), call(call_id=f"do {WORD}"), result("here") | {"call_id": f"do {WORD}"}]
    ),
    "a result": Channel([user(), call(), result(WORD)]),
    "a result's text part": Channel(
        [user(), call(), result([{"type": "input_text", "text": WORD}])]
    ),
    "what a search of files found": Channel(
        [
            user(),
            {
                "type": "file_search_call",
                "id": "f1",
                "status": "completed",
                "queries": ["cats"],
                "results": [{"file_id": "f", "filename": "a.txt", "text": WORD}],
            },
        ]
    ),
    "what an MCP server answered": Channel(
        [
            user(),
            {
                "type": "mcp_call",
                "id": "x",
                "server_label": "s",
                "name": "look",
                "arguments": "{}",
                "output": WORD,
            },
        ]
    ),
    "the tools that an MCP server lists": Channel(
        [
            user(),
            {
                "type": "mcp_list_tools",
                "id": "x",
                "server_label": "s",
                "tools": [{"name": "a", "description": WORD, "input_schema": {}}],
            },
        ]
    ),
    "what a shell printed": Channel(
        [user(), {"type": "local_shell_call_output", "id": "x", "output": WORD}]
    ),
    "instructions": Channel(agent={"instructions": WORD}),
    "instructions that a function makes": Channel(agent={"instructions": lambda ctx, agent: WORD}),
    "a tool's name": Channel(agent={"tools": [tool(name_override=WORD)]}),
    "a tool's description": Channel(agent={"tools": [tool(description_override=WORD)]}),
    "a tool's schema": Channel(agent={"tools": [described()]}),
    "a tool of the provider": Channel(
        agent={"tools": [WebSearchTool(user_location={"type": "approximate", "city": WORD})]}
    ),
    "the form of the answer": Channel(agent={"output_type": DESCRIBED}),
    "the name of the answer's form": Channel(agent={"output_type": NAMED}),
    "a handoff's description": Channel(
        agent={"handoffs": [Agent("other", handoff_description=WORD)]}
    ),
    "a handoff's tool": Channel(
        agent={"handoffs": [handoff(Agent("other"), tool_description_override=WORD)]}
    ),
    "the body of a request": Channel(
        agent={"model_settings": ModelSettings(extra_body={"documents": [{"text": WORD}]})}
    ),
    "further arguments of a request": Channel(
        agent={"model_settings": ModelSettings(extra_args={"prediction": {"content": WORD}})}
    ),
    "what a tool answers": Channel(
        agent={"tools": [finding()]}, script=(("find", "{}"),), late=True
    ),
    "the words of a tool's error": Channel(
        agent={"tools": [failing()]}, script=(("fail", "{}"),), late=True
    ),
    "the arguments of a call": Channel(
        agent={"tools": [tool()]}, script=(("look", f'{{"where": "{WORD}"}}'),), late=True
    ),
}
every_channel = pytest.mark.parametrize("name", list(CHANNELS))


async def run(agent: Agent[Any], items: Any, stream: bool, **options: Any) -> Any:
    if not stream:
        return await Runner.run(agent, items, **options)
    result = Runner.run_streamed(agent, items, **options)
    async for _ in result.stream_events():
        pass
    return result


@every_channel
@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
async def test_the_model_gets_no_planted_word(other_model, name, stream):
    channel, guard = CHANNELS[name], FakeGuard([WORD])
    inner = other_model(*channel.script)
    agent = guarded_agent(Agent("a", model=inner, **channel.agent), guard=guard, on_flag="raise")
    with pytest.raises(STOPS):
        await run(agent, channel.items, stream)
    assert WORD in repr(guard.seen)
    assert WORD not in inner.said()
    assert len(inner.seen) == int(channel.late)


@every_channel
async def test_without_the_word_the_same_runs_through(other_model, name):
    """So it is the word that stops it, and nothing else about the channel."""
    channel, guard = CHANNELS[name], FakeGuard(["another word"])
    objects = ('{"text": "fine"}',) if "output_type" in channel.agent else ()
    inner = other_model(*channel.script, *objects)
    agent = Agent("a", model=inner, **channel.agent)
    await run(guarded_agent(agent, guard=guard, on_flag="raise"), channel.items, False)
    assert WORD in repr(guard.seen)


async def test_a_sessions_history_is_read(other_model):
    session = SQLiteSession("s")
    await session.add_items([user(WORD), user()])
    inner = other_model()
    agent = guarded_agent(Agent("a", model=inner), guard=FakeGuard([WORD]))
    with pytest.raises(InputGuardrailTripwireTriggered):
        await Runner.run(agent, "hi", session=session)
    assert inner.seen == []
    session.close()


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


async def test_a_filter_of_the_run_cannot_smuggle_words_in(other_model):
    def more(data: Any) -> Any:
        data.model_data.input.append(user(WORD))
        return data.model_data

    inner = other_model()
    agent = guarded_agent(Agent("a", model=inner), guard=FakeGuard([WORD]))
    with pytest.raises(ModelRefusalError):
        await Runner.run(agent, "hi", run_config=RunConfig(call_model_input_filter=more))
    assert inner.seen == []


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
        {"type": "item_reference", "id": "m1"},
        user([{"type": "input_file", "file_data": "data:application/pdf;base64,AAAA"}]),
        user([{"type": "input_image", "file_id": "f1", "detail": "auto"}]),
        user([{"type": "input_image", "image_url": "https://example.org/a.png", "detail": "low"}]),
        {
            "type": "computer_call_output",
            "call_id": "c",
            "output": {"type": "computer_screenshot", "file_id": "f1"},
        },
        user("hi") | {"note": WORD},
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
        await Runner.run(agent, [user(), call(), PICTURES[name](data_url)])
    assert inner.seen == []


@pytest.mark.parametrize("name", list(PICTURES))
async def test_a_picture_goes_on_as_it_was_judged(other_model, data_url, two_ways, name):
    inner = other_model()
    agent = guarded_agent(Agent("a", model=inner), guard=FakeGuard())
    await Runner.run(agent, [user(), call(), PICTURES[name](two_ways)])
    assert two_ways.partition(",")[2] not in inner.said()
    assert data_url.partition(",")[2] in inner.said()


async def test_in_shadow_mode_a_picture_stays_as_it_is(other_model, two_ways):
    inner, guard = other_model(), FakeGuard(policy=Policy(mode="shadow"))
    shown = [PICTURES["a message"](two_ways)]
    await Runner.run(guarded_agent(Agent("a", model=inner), guard=guard), shown)
    assert two_ways in inner.said()
