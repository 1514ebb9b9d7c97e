"""What the contract of channels does not prove: pictures, and histories that nobody touched."""

from __future__ import annotations

import base64
import warnings
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pytest
from guardrail_pydantic_ai import GuardedModel, Guardrail
from pydantic_ai import (
    Agent,
    AudioUrl,
    BinaryContent,
    DocumentUrl,
    ImageUrl,
    ToolReturn,
)
from pydantic_ai.messages import (
    FilePart,
    ModelMessagesTypeAdapter,
    StructuredContent,
    TextPart,
    UserPromptPart,
)
from pydantic_ai.models import ModelRequestParameters

from guardrail.errors import ConfigurationError, GuardrailViolation, InputError
from guardrail.policy import Policy
from guardrail.testing import FakeGuard
from tests.channels._pydantic_ai_histories import (
    CIPHER,
    HISTORIES,
    answered,
    ordinary,
    returned,
    said,
    thought,
)
from tests.channels._pydantic_ai_models import RawModel
from tests.channels.contract import WORD
from tests.channels.pydantic_ai import RUNS, agent_of, finding, model_of

if TYPE_CHECKING:
    from collections.abc import Callable


@dataclass
class Channel:
    """What a run is given, and what its model does; `agent` are the agent's own settings."""

    prompt: Any = "hi"
    history: list[Any] = field(default_factory=list)
    agent: dict[str, Any] = field(default_factory=dict)
    script: tuple[Any, ...] = ()
    late: bool = False  # the model has been asked before the picture comes


def later(value: Any) -> Channel:
    return Channel(agent={"tools": [finding(value)]}, script=(("find", "{}"),), late=True)


async def run(agent: Agent[Any, Any], channel: Channel) -> Any:
    return await agent.run(channel.prompt, message_history=channel.history)


@pytest.mark.parametrize("name", RUNS)
@pytest.mark.parametrize("how", ["a capability", "a guarded model"])
async def test_the_model_is_asked_until_the_word_comes_and_no_more(name, how):
    run, guard = RUNS[name], FakeGuard([WORD])
    inner = model_of(run, WORD)
    if how == "a capability":
        agent = agent_of(run, WORD, inner, Guardrail(guard, on_flag="raise"))
    else:
        agent = agent_of(run, WORD, GuardedModel(inner, guard=guard, on_flag="raise"))
    with pytest.raises(GuardrailViolation):
        await agent.run(run.prompt(WORD))
    assert len(inner.seen) == int(run.late)


LOADED = [name for name in HISTORIES if name != "settings that changed"]  # these never load


@pytest.mark.parametrize("name", LOADED)
async def test_a_stored_history_is_judged_as_the_messages_are(name):
    guard, inner = FakeGuard([WORD]), RawModel()
    stored = ModelMessagesTypeAdapter.dump_json(HISTORIES[name].build(WORD))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a part whose module nobody imported
        loaded = ModelMessagesTypeAdapter.validate_json(stored)
    with pytest.raises((GuardrailViolation, InputError)):
        await GuardedModel(inner, guard=guard, on_flag="raise").request(
            loaded, None, ModelRequestParameters()
        )
    assert inner.seen == []


@pytest.mark.parametrize("stored", [False, True], ids=["as it was", "stored"])
async def test_what_providers_write_into_ordinary_histories_is_no_word(stored):
    guard, inner, history = FakeGuard(), RawModel(), ordinary()
    if stored:
        history = ModelMessagesTypeAdapter.validate_json(
            ModelMessagesTypeAdapter.dump_json(history)
        )
    await GuardedModel(inner, guard=guard).request(history, None, ModelRequestParameters())
    assert len(guard.seen) == 1  # what is said, and nothing beside it
    assert CIPHER not in repr(guard.seen)
    assert CIPHER in inner.said()


async def test_a_cipher_is_one_only_under_the_name_of_one(other_model):
    guard, history = FakeGuard(), thought(provider_details={"raw_content": [CIPHER]})
    await Agent(other_model(), capabilities=[Guardrail(guard)]).run("hi", message_history=history)
    assert CIPHER in repr(guard.seen)


async def test_settings_that_say_nothing_are_not_judged(other_model):
    guard = FakeGuard()
    settings: Any = {
        "temperature": 0.1,
        "max_tokens": 9,
        "timeout": 3.0,
        "service_tier": "auto",
        "tool_choice": "auto",
        "openai_reasoning_effort": "low",
        "extra_headers": {"Authorization": "a bad secret"},
        "logit_bias": {"50256": -100},
        "extra_body": {"top_k": 4},
    }
    agent = Agent(other_model(), model_settings=settings, capabilities=[Guardrail(guard)])
    await agent.run("hi")
    assert len(guard.seen) == 1


async def test_a_picture_in_settings_is_an_error(other_model, plain):
    settings: Any = {"extra_body": {"image": url(plain).url}}
    inner = other_model()
    with pytest.raises(InputError, match="hold a picture"):
        await Agent(inner, model_settings=settings, capabilities=[Guardrail(FakeGuard())]).run("hi")
    assert inner.seen == []


async def test_structured_content_is_read_once_where_its_text_holds_it(other_model):
    guard = FakeGuard()
    content = StructuredContent({"a": "some words"}, tag="state", description="the state")
    await Agent(other_model(), capabilities=[Guardrail(guard)]).run([content])
    assert repr(guard.seen).count("some words") == 1


@pytest.mark.parametrize("words", ["hello", "a bad thing"])
async def test_what_is_counted_first_is_judged_once(words):
    guard, inner = FakeGuard(), RawModel()
    model, given = GuardedModel(inner, guard=guard), [said(UserPromptPart(words))]
    counted = await model.count_tokens(given, None, ModelRequestParameters())
    await model.request(given, None, ModelRequestParameters())
    assert len(guard.seen) == 1
    assert counted.input_tokens == (7 if words == "hello" else 0)
    assert len(inner.seen) == (2 if words == "hello" else 0)


def test_a_guard_that_is_loaded_later_is_an_error():
    with pytest.raises(ConfigurationError, match="defer_loading"):
        Guardrail(FakeGuard(), id="guard", defer_loading=True)


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
    "a picture in the details of an answer": lambda data: Channel(
        history=answered(
            TextPart("ok", provider_name="x", provider_details={"deep": [url(data).url]})
        )
    ),
    "a picture in a structured message": lambda data: Channel(
        [StructuredContent({"screen": url(data).url}, content="see the screen")]
    ),
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
        await run(Agent(inner, **channel.agent, capabilities=[guardrail]), channel)
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
    await run(agent, channel)
    sent = repr(inner.seen[-1])
    assert repr(plain)[2:-1] in sent or base64.b64encode(plain).decode() in sent
    assert repr(two_ways)[2:-1] not in sent
    assert base64.b64encode(two_ways).decode() not in sent
