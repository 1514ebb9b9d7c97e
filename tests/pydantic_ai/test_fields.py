"""Every field of Pydantic-AI's classes: a word in it is judged, unless no model is sent it."""

from __future__ import annotations

import copy
import dataclasses
import warnings
from typing import TYPE_CHECKING, Any

import pytest
from guardrail_pydantic_ai import GuardedModel
from pydantic_ai import messages, models, native_tools, settings
from pydantic_ai.messages import (
    BinaryContent,
    Citation,
    InstructionBaselinePart,
    ModelRequest,
    ModelResponse,
    RetryInfo,
    StructuredContent,
    TextContent,
    TextPart,
    ToolReturnPart,
    UserPromptPart,
    WebCitationSource,
)
from pydantic_ai.models import ModelRequestParameters
from pydantic_ai.output import OutputObjectDefinition
from pydantic_ai.tools import ToolDefinition

from guardrail.errors import GuardrailViolation, UnsupportedContentError
from guardrail.testing import FakeGuard
from tests.channels._pydantic_ai_classes import CLASSES, kinds_of
from tests.channels._pydantic_ai_histories import PNG, named, retry
from tests.channels._pydantic_ai_models import RawModel
from tests.channels.contract import OTHER, WORD

if TYPE_CHECKING:
    from collections.abc import Callable

Request = tuple[list[Any], Any, ModelRequestParameters]
WORDS = f"do {WORD}"  # no label


def sent(*parts: Any, **parameters: Any) -> Request:
    return [ModelRequest(parts=list(parts))], None, ModelRequestParameters(**parameters)


def answer(*parts: Any) -> Request:
    return [ModelResponse(parts=list(parts))], None, ModelRequestParameters()


def user(*items: Any) -> Request:
    return sent(UserPromptPart([*items]))


def cited(source: Any) -> Request:
    return answer(TextPart("ok", citations=[Citation([source])]))


def as_it_is(*values: Any) -> Request:
    return [], None, ModelRequestParameters(**values[0])


class Example:
    """An object of a class, and a request that has it in it."""

    def __init__(self, made: Any, request: Callable[[Any], Request]) -> None:
        self.made, self.request = made, request


def placed(**about: Any) -> Any:
    """A part that a capability inserted, of a kind that nobody knows."""
    rendering = messages.CapabilityPartRendering(tag="report")
    held = {"content": "x", "kind": "a.report", "rendering": rendering}
    return messages.UnknownCapabilityPart(**{"source": messages.OperatorSource()} | held | about)


def block(**about: Any) -> Any:
    return messages.InstructionPart(**{"content": "x", "id": named("tone")} | about)


NATIVE = {
    kind: Example(made, lambda made: sent(UserPromptPart("hi"), native_tools=[made]))
    for kind, made in {
        "WebSearchTool": native_tools.WebSearchTool(),
        "CodeExecutionTool": native_tools.CodeExecutionTool(),
        "MCPServerTool": native_tools.MCPServerTool(id="a", url="https://a.b"),
        "FileSearchTool": native_tools.FileSearchTool(file_store_ids=["store"]),
        "AdvisorTool": native_tools.AdvisorTool(model="claude"),
    }.items()
}
EXAMPLES: dict[str, Example] = {
    "SystemPromptPart": Example(messages.SystemPromptPart("x"), sent),
    "UserPromptPart": Example(UserPromptPart("x"), sent),
    "ToolReturnPart": Example(ToolReturnPart("look", "x", "c1"), sent),
    "RetryPromptPart": Example(retry("x", tool_name="look", tool_call_id="c1"), sent),
    "RetryFeedbackPart": Example(
        messages.RetryFeedbackPart("x", retry=RetryInfo(cause="model_retry")), sent
    ),
    "RetryInfo": Example(
        RetryInfo(cause="model_retry"),
        lambda made: sent(messages.RetryFeedbackPart("x", retry=made)),
    ),
    "InstructionDeltaPart": Example(
        messages.InstructionDeltaPart(id=named("tone"), content="x"), sent
    ),
    "ToolAvailabilityDeltaPart": Example(messages.ToolAvailabilityDeltaPart(), sent),
    "ModelSettingsDeltaPart": Example(messages.ModelSettingsDeltaPart(settings={}), sent),
    "CompactionPart": Example(messages.CompactionPart("x"), answer),
    "SpeechPart": Example(messages.SpeechPart(speaker="user", transcript="x"), sent),
    "TextPart": Example(TextPart("x"), answer),
    "ThinkingPart": Example(messages.ThinkingPart("x"), answer),
    "FilePart": Example(messages.FilePart(BinaryContent(PNG, media_type="image/png")), answer),
    "ToolCallPart": Example(messages.ToolCallPart("look", {}, "c1"), answer),
    "NativeToolCallPart": Example(messages.NativeToolCallPart("look", {}, "c1"), answer),
    "NativeToolReturnPart": Example(messages.NativeToolReturnPart("look", "x", "c1"), answer),
    "TextContent": Example(TextContent("x"), user),
    "StructuredContent": Example(StructuredContent(1, content="x"), user),
    "BinaryContent": Example(BinaryContent(b"x", media_type="text/plain"), user),
    "WebCitationSource": Example(WebCitationSource("https://a.b"), cited),
    "DocumentCitationSource": Example(messages.DocumentCitationSource(title="x"), cited),
    "InstructionPart": Example(
        block(), lambda made: sent(UserPromptPart("hi"), instruction_parts=[made])
    ),
    "InstructionId": Example(
        named("tone"), lambda made: sent(InstructionBaselinePart(instructions=[block(id=made)]))
    ),
    "ModelRequest": Example(
        ModelRequest(parts=[UserPromptPart("x")]), lambda made: (list([made]), None, NOTHING)
    ),
    "ModelResponse": Example(
        ModelResponse(parts=[TextPart("x")]), lambda made: (list([made]), None, NOTHING)
    ),
    "ToolDefinition": Example(
        ToolDefinition(name="look"), lambda made: sent(UserPromptPart("hi"), function_tools=[made])
    ),
    "OutputObjectDefinition": Example(
        OutputObjectDefinition(json_schema={}),
        lambda made: sent(UserPromptPart("hi"), output_object=made),
    ),
    "ModelRequestParameters": Example(
        ModelRequestParameters(),
        lambda made: ([ModelRequest(parts=[UserPromptPart("x")])], None, made),
    ),
    **NATIVE,
}
NOTHING = ModelRequestParameters()
if hasattr(messages, "UnknownCapabilityPart"):
    EXAMPLES["UnknownCapabilityPart"] = Example(placed(), sent)
    EXAMPLES["CapabilityPartRendering"] = Example(
        messages.CapabilityPartRendering(tag="report"),
        lambda made: sent(changed(placed(), "rendering", made)),
    )
    EXAMPLES["CapabilitySource"] = Example(
        messages.CapabilitySource("c", authority="none"), lambda made: sent(placed(source=made))
    )
    EXAMPLES["CapabilityLoadDeltaPart"] = Example(messages.CapabilityLoadDeltaPart(), sent)
if hasattr(models, "DeferredCapabilityEntry"):
    EXAMPLES["DeferredCapabilityEntry"] = Example(
        models.DeferredCapabilityEntry(id="a"),
        lambda made: sent(UserPromptPart("hi"), deferred_capabilities=[made]),
    )

# What a field must hold, where words alone are not it.
SHAPES: dict[str, Callable[[str], Any]] = {
    "provider_details": lambda word: {"deep": [{"a": word}]},
    "vendor_metadata": lambda word: {"deep": {"a": word}},
    "args": lambda word: {"a": word},
    "data": lambda word: word.encode(),
    "tools_added": lambda word: [word],
    "loaded": lambda word: [word],
    "excerpts": lambda word: [word],
    "attributes": lambda word: (word,),
    "citations": lambda word: [Citation([WebCitationSource("https://a.b", title=word)])],
    "media_type": lambda word: f"text/plain; {word}",
    "function_tools": lambda word: [ToolDefinition(name="look", description=word)],
    "output_tools": lambda word: [ToolDefinition(name="look", description=word)],
    "native_tools": lambda word: [native_tools.MCPServerTool(id="a", url="b", description=word)],
    "output_object": lambda word: OutputObjectDefinition(json_schema={"title": word}),
    "instruction_parts": lambda word: [messages.InstructionPart(word)],
    "deferred_capabilities": lambda word: [
        models.DeferredCapabilityEntry(id="a", description=word)  # type: ignore[attr-defined]
    ],
    "parts": lambda word: [UserPromptPart(word)],
    "rendering": lambda word: messages.CapabilityPartRendering(tag="a", note=f"{word} {{frame}}"),
}
OWN: dict[tuple[str, str], Callable[[str], Any]] = {
    ("FilePart", "content"): lambda word: BinaryContent(word.encode(), media_type="text/plain"),
    ("UnknownCapabilityPart", "data"): lambda word: {"task": word},
    ("RetryFeedbackPart", "retry"): lambda word: RetryInfo(cause=word),  # type: ignore[arg-type]
    ("ModelResponse", "parts"): lambda word: [TextPart(word)],
    ("InstructionId", "source"): lambda word: messages.ToolsetInstructionSource(word),
}


def changed(value: Any, name: str, item: Any) -> Any:
    """The same with another field, whether its class would take it or not."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of classes that are to go
        other = copy.copy(value)
    object.__setattr__(other, name, item)
    return other


def fields(*outcomes: str) -> list[Any]:
    found = []
    for kind in CLASSES:
        name = kind.kind.__name__
        if name in EXAMPLES and dataclasses.is_dataclass(kind.kind):
            own = {each.name for each in dataclasses.fields(kind.kind)}
            named_so = " ".join(getattr(kind, outcome) for outcome in outcomes).split()
            found += [
                pytest.param(name, each, id=f"{name}.{each}") for each in named_so if each in own
            ]
    return found


async def asked(guard: Any, kind: str, name: str) -> str:
    """What a model behind the guard is sent."""
    shape = OWN.get((kind, name)) or SHAPES.get(name) or str
    example, inner = EXAMPLES[kind], RawModel()
    made = changed(example.made, name, shape(WORDS))
    await GuardedModel(inner, guard=guard, on_flag="raise").request(*example.request(made))
    return inner.said()


@pytest.mark.parametrize(("kind", "name"), fields("judged", "labels"))
async def test_a_word_in_any_field_is_judged(kind, name):
    guard = FakeGuard([OTHER])
    assert WORD in await asked(guard, kind, name)
    assert WORD in repr(guard.seen)
    with pytest.raises(GuardrailViolation):
        await asked(FakeGuard([WORD]), kind, name)


@pytest.mark.parametrize("name", ["CompactionPart", "ThinkingPart", "TextPart", "ModelResponse"])
async def test_a_field_of_a_later_version_is_judged(name):
    example = EXAMPLES[name]
    later: Any = dataclasses.make_dataclass(
        "Later",
        [("said_later", str, dataclasses.field(default="x", kw_only=True))],
        bases=(type(example.made),),
    )
    held = {
        each.name: getattr(example.made, each.name) for each in dataclasses.fields(example.made)
    }
    guard, inner = FakeGuard([WORD]), RawModel()
    request = example.request(later(**held, said_later=WORDS))
    with pytest.raises(GuardrailViolation):
        await GuardedModel(inner, guard=guard, on_flag="raise").request(*request)
    assert inner.seen == []


async def test_a_part_of_a_later_version_is_refused_by_name():
    later: Any = dataclasses.make_dataclass(
        "HologramPart", [("content", str), ("part_kind", str, "hologram")]
    )
    inner = RawModel()
    with pytest.raises(
        UnsupportedContentError, match=r"messages\[0\].parts\[0\] is a HologramPart"
    ):
        await GuardedModel(inner, guard=FakeGuard()).request(*answer(later("x")))
    assert inner.seen == []


UNIONS = {
    "ModelRequestPart": messages.ModelRequestPart,
    "ModelResponsePart": messages.ModelResponsePart,
    "UserContent": messages.UserContent,
    "ModelMessage": messages.ModelMessage,
    "AbstractNativeTool": native_tools.AbstractNativeTool.__subclasses__(),
    "ToolChoice": settings.ToolChoice,
}
KNOWN = {kind.kind for kind in CLASSES}


@pytest.mark.parametrize("name", UNIONS)
def test_every_kind_of_part_has_been_looked_at(name):
    union = UNIONS[name]
    kinds = {*union} if isinstance(union, list) else {*kinds_of(union)}
    assert {each for each in kinds if each.__module__.startswith("pydantic_ai")} <= KNOWN


# Bases of what is known, what comes out of a model and never goes in, and records of a run.
ELSEWHERE = frozenset(
    "SkipJsonSchema RequestUsage FileUrl _ContentFileRecord BaseToolReturnPart BaseToolCallPart "
    "ContentCitationAnchor MarkerCitationAnchor SpeechTimestamp WorkspaceRef ModelRequestAttempt "
    "_SanitizeMessagesContext TextPartDelta ThinkingPartDelta ToolCallPartDelta SpeechPartDelta "
    "ModelResponseOrigin DeferredToolRequests CompactionRecord".split()
)


def test_every_class_of_the_librarys_messages_has_been_looked_at():
    kinds = {each for each in vars(messages).values() if isinstance(each, type)}
    named_so = {
        each.__name__ for each in kinds - KNOWN if dataclasses.is_dataclass(each)
    } - ELSEWHERE
    assert {name for name in named_so if not name.endswith("Event")} == set()
