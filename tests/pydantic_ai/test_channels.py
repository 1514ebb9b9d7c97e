"""Every way by which words reach a model in this adapter: a word planted there is seen."""

from __future__ import annotations

import base64
import warnings
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pytest
from guardrail_pydantic_ai import GuardedModel, Guardrail
from pydantic import BaseModel, Field, create_model
from pydantic_ai import (
    Agent,
    AudioUrl,
    BinaryContent,
    DocumentUrl,
    ImageUrl,
    ModelRetry,
    NativeOutput,
    PromptedOutput,
    Tool,
    ToolOutput,
    ToolReturn,
)
from pydantic_ai.messages import (
    FilePart,
    ModelRequest,
    ModelResponse,
    RetryPromptPart,
    SystemPromptPart,
    TextContent,
    TextPart,
    ThinkingPart,
    ToolCallPart,
    ToolReturnPart,
    UserPromptPart,
)
from pydantic_ai.toolsets import FunctionToolset

from guardrail.errors import GuardrailViolation, InputError
from guardrail.policy import Policy
from guardrail.testing import FakeGuard

if TYPE_CHECKING:
    from collections.abc import Callable

WORD = "zqxword"
DESCRIBED = create_model("Described", text=(str, Field(description=WORD)))
NAMED = create_model(WORD, text=(str, ...))


class Answer(BaseModel):
    text: str


def look(where: str) -> str:
    """Look somewhere."""
    return where


def said(*parts: Any) -> ModelRequest:
    return ModelRequest(parts=list(parts))


def answered(*parts: Any) -> list[Any]:
    return [said(UserPromptPart("hi")), ModelResponse(parts=list(parts))]


def retry(**about: Any) -> RetryPromptPart:
    """As older histories have it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return RetryPromptPart(WORD, **about)


def returned(content: Any, **about: Any) -> list[Any]:
    call = ToolCallPart("look", {}, about.get("tool_call_id", "c1"))
    back = ToolReturnPart("look", content, **{"tool_call_id": "c1"} | about)
    return [*answered(call), said(back)]


@dataclass
class Channel:
    """What a run is given, and what its model does; `agent` are the agent's own settings."""

    prompt: Any = "hi"
    history: list[Any] = field(default_factory=list)
    agent: dict[str, Any] = field(default_factory=dict)
    script: tuple[Any, ...] = ()
    late: bool = False  # the model has been asked before the word comes


def finding(value: Any) -> Tool:
    def find() -> Any:
        return value

    return Tool(find, name="find")


def retrying() -> str:
    """Fail."""
    raise ModelRetry(WORD)


def later(value: Any) -> Channel:
    return Channel(agent={"tools": [finding(value)]}, script=(("find", "{}"),), late=True)


CHANNELS: dict[str, Channel] = {
    "a text": Channel(WORD),
    "a text among others": Channel(["hi", WORD]),
    "a text with metadata": Channel([TextContent(WORD)]),
    "a text file": Channel(["hi", BinaryContent(WORD.encode(), media_type="text/plain")]),
    "a system prompt": Channel(agent={"system_prompt": WORD}),
    "a system prompt in the history": Channel(
        history=[said(SystemPromptPart(WORD), UserPromptPart("hi")), *answered(TextPart("ok"))[1:]]
    ),
    "instructions": Channel(agent={"instructions": WORD}),
    "instructions that a function makes": Channel(agent={"instructions": lambda ctx: WORD}),
    "an earlier message": Channel(
        history=[said(UserPromptPart(WORD)), *answered(TextPart("ok"))[1:]]
    ),
    "an earlier answer": Channel(history=answered(TextPart(WORD))),
    "an earlier thought": Channel(history=answered(ThinkingPart(WORD), TextPart("ok"))),
    "the arguments of an earlier call": Channel(
        history=[
            *answered(ToolCallPart("look", {"where": WORD}, "c1")),
            said(ToolReturnPart("look", "here", "c1")),
        ]
    ),
    "the name of an earlier call": Channel(
        history=[
            *answered(ToolCallPart(WORD, {}, "c1")),
            said(ToolReturnPart(WORD, "here", "c1")),
        ]
    ),
    "an id that is none": Channel(history=returned("here", tool_call_id=f"do {WORD}")),
    "a result": Channel(history=returned(WORD)),
    "a result that is an object": Channel(history=returned({"deep": [{"text": WORD}]})),
    "a result that is a model": Channel(history=returned(Answer(text=WORD))),
    "a result's list": Channel(history=returned(["here", WORD])),
    "a tool's wish to be called again": Channel(
        history=[
            *answered(ToolCallPart("look", {}, "c1")),
            said(retry(tool_name="look", tool_call_id="c1")),
        ]
    ),
    "an older wish that an answer be another one": Channel(
        history=[*answered(TextPart("ok")), said(retry())]
    ),
    "a tool's name": Channel(agent={"tools": [Tool(look, name=WORD)]}),
    "a tool's description": Channel(agent={"tools": [Tool(look, description=WORD)]}),
    "a tool's schema": Channel(
        agent={"tools": [Tool.from_schema(look, "see", None, DESCRIBED.model_json_schema())]}
    ),
    "a toolset's tool": Channel(
        agent={"toolsets": [FunctionToolset([Tool(look, description=WORD)])]}
    ),
    "the form of the answer": Channel(agent={"output_type": DESCRIBED}),
    "the name of the answer's form": Channel(agent={"output_type": NAMED}),
    "the description of an output tool": Channel(
        agent={"output_type": ToolOutput(Answer, description=WORD)}
    ),
    "the provider's own form": Channel(agent={"output_type": NativeOutput(DESCRIBED)}),
    "a prompted form": Channel(agent={"output_type": PromptedOutput(DESCRIBED)}),
    "the template of a prompted form": Channel(
        agent={"output_type": PromptedOutput(Answer, template=WORD + " {schema}")}
    ),
    "the body of a request": Channel(
        agent={"model_settings": {"extra_body": {"documents": [{"text": WORD}]}}}
    ),
    "what a tool answers": later(WORD),
    "an object that a tool answers": later({"text": WORD}),
    "what a tool says beside its answer": later(ToolReturn("here", content=[WORD])),
    "what a tool asks the model to do again": Channel(
        agent={"tools": [Tool(retrying, name="find")]}, script=(("find", "{}"),), late=True
    ),
    "the arguments of a call": Channel(
        agent={"tools": [look]}, script=(("look", f'{{"where": "{WORD}"}}'),), late=True
    ),
}
every_channel = pytest.mark.parametrize("name", list(CHANNELS))


async def run(agent: Agent[Any, Any], channel: Channel, stream: bool) -> Any:
    if not stream:
        return await agent.run(channel.prompt, message_history=channel.history)
    async with agent.run_stream(channel.prompt, message_history=channel.history) as result:
        return await result.get_output()


@every_channel
@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
async def test_the_model_gets_no_planted_word(other_model, name, stream):
    channel, guard = CHANNELS[name], FakeGuard([WORD])
    inner = other_model(*channel.script)
    agent = Agent(inner, **channel.agent, capabilities=[Guardrail(guard, on_flag="raise")])
    with pytest.raises(GuardrailViolation):
        await run(agent, channel, stream)
    assert WORD in repr(guard.seen)
    assert WORD not in inner.said()
    assert len(inner.seen) == int(channel.late)


@every_channel
async def test_a_guarded_model_sees_the_word_without_any_other_guard(other_model, name):
    channel, guard = CHANNELS[name], FakeGuard([WORD])
    inner = other_model(*channel.script)
    agent = Agent(GuardedModel(inner, guard=guard, on_flag="raise"), **channel.agent)
    with pytest.raises(GuardrailViolation):
        await run(agent, channel, False)
    assert WORD not in inner.said() or name == "the arguments of a call"
    assert len(inner.seen) == int(channel.late)


PLAIN = [name for name, channel in CHANNELS.items() if "output_type" not in channel.agent]


@pytest.mark.parametrize("name", PLAIN)
async def test_without_the_word_the_same_runs_through(other_model, name):
    """So it is the word that stops it, and nothing else about the channel."""
    channel, guard = CHANNELS[name], FakeGuard(["another word"])
    inner = other_model(*channel.script)
    await run(Agent(inner, **channel.agent, capabilities=[Guardrail(guard)]), channel, False)
    assert WORD in repr(guard.seen)


@pytest.mark.parametrize(
    "prompt",
    [
        ["hi", AudioUrl("https://example.org/a.mp3")],
        ["hi", DocumentUrl("https://example.org/a.pdf")],
        ["hi", BinaryContent(b"%PDF", media_type="application/pdf")],
        ["hi", ImageUrl("https://example.org/a.png")],
    ],
    ids=["audio", "document", "pdf", "an address that is not allowed"],
)
async def test_what_no_guard_can_read_is_an_error(other_model, prompt):
    inner = other_model()
    with pytest.raises(InputError):
        await Agent(inner, capabilities=[Guardrail(FakeGuard())]).run(prompt)
    assert inner.seen == []


async def test_in_shadow_mode_not_even_that_stops_a_run(other_model, caplog):
    guard = FakeGuard(policy=Policy(mode="shadow"))
    agent = Agent(other_model(), capabilities=[Guardrail(guard)])
    result = await agent.run(["hi", AudioUrl("https://example.org/a.mp3")])
    assert result.output == "fine"
    assert "could not be checked" in caplog.text


# --- pictures -------------------------------------------------------------------------------------


def content(data: bytes) -> BinaryContent:
    return BinaryContent(data, media_type="image/png")


def url(data: bytes) -> ImageUrl:
    return ImageUrl("data:image/png;base64," + base64.b64encode(data).decode())


PICTURES: dict[str, Callable[[bytes], Channel]] = {
    "a picture": lambda data: Channel(["hi", content(data)]),
    "a picture in an address": lambda data: Channel(["hi", url(data)]),
    "a picture in the history": lambda data: Channel(
        history=[said(UserPromptPart([content(data)])), *answered(TextPart("ok"))[1:]]
    ),
    "a picture that a model made": lambda data: Channel(history=answered(FilePart(content(data)))),
    "a picture in a result": lambda data: Channel(history=returned(["here", content(data)])),
    "a result that is a picture": lambda data: Channel(history=returned(url(data))),
    "a picture that a tool brings": lambda data: later(content(data)),
    "a picture beside a tool's answer": lambda data: later(
        ToolReturn("x", content=[content(data)])
    ),
}
every_picture = pytest.mark.parametrize("name", list(PICTURES))


@every_picture
async def test_the_model_gets_no_planted_picture(other_model, picture_guard, plain, name):
    channel = PICTURES[name](plain)
    inner = other_model(*channel.script)
    guardrail = Guardrail(picture_guard(), on_flag="raise")
    with pytest.raises(GuardrailViolation):
        await run(Agent(inner, **channel.agent, capabilities=[guardrail]), channel, False)
    assert len(inner.seen) == int(channel.late)


@every_picture
@pytest.mark.parametrize("whole", [True, False], ids=["capability", "model"])
async def test_a_picture_goes_on_as_it_was_judged(other_model, plain, two_ways, name, whole):
    channel = PICTURES[name](two_ways)
    inner, guard = other_model(*channel.script), FakeGuard()
    if whole:
        agent = Agent(inner, **channel.agent, capabilities=[Guardrail(guard)])
    else:
        agent = Agent(GuardedModel(inner, guard=guard), **channel.agent)
    await run(agent, channel, False)
    sent = repr(inner.seen[-1])
    assert repr(plain)[2:-1] in sent
    assert repr(two_ways)[2:-1] not in sent
    assert base64.b64encode(two_ways).decode() not in sent
