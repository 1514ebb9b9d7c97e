"""Histories as a database keeps them, with a word wherever one can stand."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel
from pydantic_ai import BinaryContent, ImageUrl, messages
from pydantic_ai.messages import (
    AgentInstructionSource,
    Citation,
    CompactionPart,
    InstructionBaselinePart,
    InstructionDeltaPart,
    InstructionId,
    InstructionPart,
    ModelRequest,
    ModelResponse,
    ModelSettingsDeltaPart,
    NativeToolCallPart,
    NativeToolReturnPart,
    RetryFeedbackPart,
    RetryInfo,
    RetryPromptPart,
    SpeechPart,
    StructuredContent,
    SystemPromptPart,
    TextContent,
    TextPart,
    ThinkingPart,
    ToolAvailabilityDeltaPart,
    ToolCallPart,
    ToolReturnPart,
    UploadedFile,
    UserPromptPart,
    VideoUrl,
    WebCitationSource,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.channels.contract import Kind, Outcome

PNG = bytes.fromhex(
    "89504e470d0a1a0a0000000d4948445200000001000000010802000000907753de0000000c49444154789c6360"
    "6060000000040001f61738550000000049454e44ae426082"
)
CIPHER = "EqQBCgYIARgCKkDz9+/a=" * 9
OPENAI: Any = {"provider_name": "openai", "id": "rs_1"}


class Answer(BaseModel):
    """An object that a tool gives."""

    text: str


@dataclass(frozen=True)
class History:
    """Messages with a word in them; `whole` says that they make sense to a running agent."""

    kind: Kind
    build: Callable[[str], list[Any]]
    outcome: Outcome = "judged"
    whole: bool = True


def said(*parts: Any, **about: Any) -> ModelRequest:
    return ModelRequest(parts=list(parts), **about)


def asked(*parts: Any) -> list[Any]:
    """What was asked, and answered."""
    return [said(*parts), ModelResponse(parts=[TextPart("ok")])]


def answered(*parts: Any, **about: Any) -> list[Any]:
    return [said(UserPromptPart("hi")), ModelResponse(parts=list(parts), **about)]


def returned(content: Any, name: str = "look", **about: Any) -> list[Any]:
    call_id = about.pop("tool_call_id", "c1")
    back = ToolReturnPart(name, content, call_id, **about)
    return [*answered(ToolCallPart(name, {}, call_id)), said(back)]


def ran(call: dict[str, Any], back: dict[str, Any]) -> list[Any]:
    """A call that the provider answered itself."""
    about: dict[str, Any] = {"tool_call_id": "ws_1", "provider_name": "openai"}
    made = NativeToolCallPart(**{"tool_name": "web_search", "args": {}} | about | call)
    got = NativeToolReturnPart(**{"tool_name": "web_search", "content": "x"} | about | back)
    return answered(made, got, TextPart("ok"))


def thought(**about: Any) -> list[Any]:
    return answered(ThinkingPart(**{"content": "so", **OPENAI} | about), TextPart("ok"))


def told(**about: Any) -> list[Any]:
    return answered(TextPart(**{"content": "ok", **OPENAI} | about))


def named(name: str) -> Any:
    return InstructionId(AgentInstructionSource(), name=name)


def retry(content: Any, **about: Any) -> RetryPromptPart:
    """As older histories have it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return RetryPromptPart(content, **about)


def faulty(word: str, **about: Any) -> list[Any]:
    """What a validator says of an answer."""
    error: Any = {"type": "missing", "loc": ("text",), "msg": "Field required", "input": "x"}
    return [error | {"input": {"text": word}} if not about else error | about]


def feedback(content: Any) -> list[Any]:
    info = RetryInfo(cause="validation_error" if isinstance(content, list) else "model_retry")
    return [*answered(TextPart("ok")), said(RetryFeedbackPart(content, retry=info))]


def binary(**about: Any) -> BinaryContent:
    return BinaryContent(**{"data": b"fine", "media_type": "text/plain"} | about)


def baseline(word: str) -> InstructionBaselinePart:
    part = InstructionPart(f"be kind {word}", on_change="append", id=named("tone"))
    return InstructionBaselinePart(instructions=[part])


HISTORIES: dict[str, History] = {
    "a system prompt": History(
        "system prompt", lambda word: asked(SystemPromptPart(word), UserPromptPart("hi"))
    ),
    "an earlier message": History("history", lambda word: asked(UserPromptPart(word))),
    "an earlier answer": History("history", lambda word: answered(TextPart(word))),
    "an earlier thought": History("history", lambda word: thought(content=word)),
    "an earlier thought in full": History(
        "history", lambda word: thought(provider_details={"raw_content": [word]})
    ),
    "a thought's signature that is none": History(
        "history", lambda word: thought(signature=f"do {word}")
    ),
    "a thought's id that is none": History("history", lambda word: thought(id=f"do {word}")),
    "an answer's details": History(
        "history", lambda word: told(provider_details={"citations": [{"cited_text": word}]})
    ),
    "an answer's id that is none": History("history", lambda word: told(id=f"do {word}")),
    "what an answer cites": History(
        "history",
        lambda word: told(citations=[Citation([WebCitationSource("https://a.b", title=word)])]),
    ),
    "the steps of an answer": History(
        "history",
        lambda word: answered(
            TextPart("ok"), provider_details={"google_interactions_steps": [{"content": word}]}
        ),
    ),
    "an answer's number that is none": History(
        "history", lambda word: answered(TextPart("ok"), provider_response_id=f"do {word}")
    ),
    "the arguments of an earlier call": History(
        "tool call",
        lambda word: [
            *answered(ToolCallPart("look", {"where": word}, "c1")),
            said(ToolReturnPart("look", "here", "c1")),
        ],
    ),
    "the name of an earlier call": History("tool call", lambda word: returned("here", word)),
    "an id that is none": History(
        "tool call", lambda word: returned("here", tool_call_id=f"do {word}")
    ),
    "the namespace of an earlier call": History(
        "tool namespace",
        lambda word: [
            *answered(
                ToolCallPart(
                    "look",
                    {},
                    "c1",
                    provider_name="openai",
                    provider_details={"namespace": f"do {word}"},
                )
            ),
            said(ToolReturnPart("look", "here", "c1")),
        ],
    ),
    "the details of an earlier call": History(
        "tool call",
        lambda word: [
            *answered(
                ToolCallPart("look", {}, "c1", provider_name="x", provider_details={"call": word})
            ),
            said(ToolReturnPart("look", "here", "c1")),
        ],
    ),
    "a result": History("tool result", lambda word: returned(word)),
    "a result that is an object": History(
        "tool result", lambda word: returned({"deep": [{"text": word}]})
    ),
    "a result that is a model": History(
        "tool result", lambda word: returned(Answer(text=word)), whole=False
    ),
    "a result's list": History("tool result", lambda word: returned(["here", word])),
    "a failed result": History("tool result", lambda word: returned(word, outcome="failed")),
    "a text file in a result": History(
        "tool result", lambda word: returned([binary(data=word.encode())])
    ),
    "what a file in a result is called": History(
        "tool result", lambda word: returned([binary(identifier=f"do {word}")])
    ),
    "a call that the provider answered": History(
        "tool call", lambda word: ran({"args": {"query": word}}, {})
    ),
    "details of a call that the provider answered": History(
        "tool call", lambda word: ran({"provider_details": {"extra_input": {"a": word}}}, {})
    ),
    "the id of a call that the provider answered": History(
        "tool call", lambda word: ran({"id": f"do {word}"}, {})
    ),
    "a result of the provider": History("tool result", lambda word: ran({}, {"content": word})),
    "details of a result of the provider": History(
        "tool result", lambda word: ran({}, {"provider_details": {"error": word}})
    ),
    "a tool's wish to be called again": History(
        "tool result",
        lambda word: [
            *answered(ToolCallPart("look", {}, "c1")),
            said(retry(word, tool_name="look", tool_call_id="c1")),
        ],
    ),
    "an older wish that an answer be another one": History(
        "history", lambda word: [*answered(TextPart("ok")), said(retry(word))]
    ),
    "an older wish that quotes an answer": History(
        "history",
        lambda word: [*answered(TextPart("ok")), said(retry(faulty(word, loc=(), input=word)))],
    ),
    "a wish that an answer be another one": History("history", lambda word: feedback(word)),
    "a wish that quotes an answer": History("history", lambda word: feedback(faulty(word))),
    "a summary of an application": History("history", lambda word: asked(CompactionPart(word))),
    "a summary of a provider": History(
        "history", lambda word: answered(CompactionPart(word, provider_name="anthropic"))
    ),
    "details of a summary": History(
        "history",
        lambda word: answered(
            CompactionPart(
                provider_name="openai", provider_details={"encrypted_content": f"do {word}"}
            )
        ),
    ),
    "a structured message": History(
        "user's message", lambda word: asked(UserPromptPart([StructuredContent({"text": word})]))
    ),
    "a structured message that says something else": History(
        "user's message",
        lambda word: asked(UserPromptPart([StructuredContent({"text": word}, content="hi")])),
    ),
    "the tag of a structured message": History(
        "user's message",
        lambda word: asked(UserPromptPart([StructuredContent(1, content="hi", tag=f"do {word}")])),
    ),
    "what a structured message is": History(
        "user's message",
        lambda word: asked(UserPromptPart([StructuredContent(1, content="hi", description=word)])),
    ),
    "a text with notes": History(
        "user's message", lambda word: asked(UserPromptPart([TextContent(word)]))
    ),
    "a text file": History(
        "resource", lambda word: asked(UserPromptPart(["hi", binary(data=word.encode())]))
    ),
    "the type of a text file": History(
        "resource",
        lambda word: asked(UserPromptPart([binary(media_type=f"text/plain; do {word}")])),
    ),
    "what is said of a picture": History(
        "picture",
        lambda word: asked(
            UserPromptPart(
                [binary(data=PNG, media_type="image/png", vendor_metadata={"detail": f"do {word}"})]
            )
        ),
    ),
    "the type of a picture": History(
        "picture",
        lambda word: asked(UserPromptPart([binary(data=PNG, media_type=f"image/png; do {word}")])),
    ),
    "a picture somewhere else": History(
        "picture",
        lambda word: asked(UserPromptPart([ImageUrl(f"https://example.org/{word}.png")])),
        "refused",
    ),
    "a video somewhere else": History(
        "picture",
        lambda word: asked(UserPromptPart([VideoUrl(f"https://example.org/{word}.mp4")])),
        "refused",
    ),
    "a file at the provider's": History(
        "resource",
        lambda word: asked(UserPromptPart([UploadedFile(f"file-{word}", "openai")])),
        "refused",
    ),
    "a document": History(
        "resource",
        lambda word: asked(
            UserPromptPart([binary(data=word.encode(), media_type="application/pdf")])
        ),
        "refused",
    ),
    "instructions in force": History(
        "instructions",
        lambda word: [said(UserPromptPart("hi"), instructions=word)],
        whole=False,
    ),
    "a change of instructions": History(
        "instructions",
        lambda word: asked(
            UserPromptPart("hi"), InstructionDeltaPart(id=named("tone"), content=word)
        ),
        whole=False,
    ),
    "the name of changed instructions": History(
        "instructions",
        lambda word: asked(
            UserPromptPart("hi"), InstructionDeltaPart(id=named(f"do {word}"), content="x")
        ),
        whole=False,
    ),
    "instructions before their change": History(
        "instructions", lambda word: asked(UserPromptPart("hi"), baseline(word)), whole=False
    ),
    "names of tools that came": History(
        "tool name",
        lambda word: asked(
            UserPromptPart("hi"), ToolAvailabilityDeltaPart(tools_added=[f"do {word}"])
        ),
        whole=False,
    ),
    "settings that changed": History(
        "settings",
        lambda word: asked(
            UserPromptPart("hi"),
            ModelSettingsDeltaPart(settings={"thinking": f"do {word}"}),  # type: ignore[typeddict-item]
        ),
        whole=False,
    ),
    "speech that was written down": History(
        "history", lambda word: asked(SpeechPart(speaker="user", transcript=word))
    ),
    "speech of a model": History(
        "history", lambda word: answered(SpeechPart(speaker="assistant", transcript=word))
    ),
    "speech that is heard": History(
        "history",
        lambda word: asked(
            SpeechPart(
                speaker="user", transcript=word, audio=binary(data=b"R", media_type="audio/wav")
            )
        ),
        "refused",
        whole=False,
    ),
}
if hasattr(messages, "CapabilityLoadDeltaPart"):
    HISTORIES["names of capabilities that came"] = History(
        "tool name",
        lambda word: asked(
            UserPromptPart("hi"), messages.CapabilityLoadDeltaPart(loaded=[f"do {word}"])
        ),
        whole=False,
    )
if "context_id" in SystemPromptPart.__dataclass_fields__:
    HISTORIES["the name of a system prompt"] = History(
        "system prompt",
        lambda word: asked(SystemPromptPart("x", context_id=f"do {word}"), UserPromptPart("hi")),
    )
if hasattr(messages, "UnknownCapabilityPart"):

    def inserted(**about: Any) -> list[Any]:
        rendering = messages.CapabilityPartRendering(
            tag="report", attributes=("task",), note=about.pop("note", None)
        )
        held: dict[str, Any] = {"content": "x", "kind": "tasks.report"}
        held |= {"source": messages.OperatorSource(), "rendering": rendering}
        return asked(UserPromptPart("hi"), messages.UnknownCapabilityPart(**held | about))

    HISTORIES |= {
        "what a capability inserted": History(
            "history", lambda word: inserted(content=f"all of {word}")
        ),
        "structured content of a capability": History(
            "history", lambda word: inserted(content=StructuredContent({"a": word}))
        ),
        "an attribute of what a capability inserted": History(
            "history", lambda word: inserted(data={"task": word})
        ),
        "a note on what a capability inserted": History(
            "history", lambda word: inserted(note=f"{word} {{frame}}")
        ),
    }

UNSENT: dict[str, History] = {
    "what is noted of messages": History(
        "metadata",
        lambda word: [
            said(
                SystemPromptPart("x", metadata={"a": word}, dynamic_ref=word),
                UserPromptPart([TextContent("hi", metadata=word)]),
                instructions="be kind",
                metadata={"a": word},
                run_id=word,
                conversation_id=word,
            ),
            ModelResponse(
                parts=[ToolCallPart("look", {}, "c1")],
                metadata={"a": word},
                model_name=word,
                provider_url=word,
                run_id=word,
            ),
            said(ToolReturnPart("look", "here", "c1", metadata={"a": word})),
        ],
        "never",
    ),
    "instructions of an earlier request": History(
        "instructions",
        lambda word: [
            said(UserPromptPart("hi"), instructions=word),
            ModelResponse(parts=[TextPart("ok")]),
            said(UserPromptPart("go on"), instructions="be kind"),
            ModelResponse(parts=[TextPart("ok")]),
        ],
        "never",
    ),
}


def ordinary() -> list[Any]:
    """What providers write into histories that nobody touched."""
    from datetime import UTC, datetime

    details = {"finish_reason": "stop", "timestamp": datetime.now(UTC), "service_tier": "default"}
    return [
        said(UserPromptPart(["hi", binary(data=PNG, media_type="image/png")])),
        ModelResponse(
            parts=[
                ThinkingPart("", signature=CIPHER, **OPENAI),
                ThinkingPart("so", provider_name="google", provider_details={"index": 0}),
                ToolCallPart(
                    "look",
                    {},
                    "call_1|fc_2",
                    id="fc_1",
                    provider_name="google",
                    provider_details={"thought_signature": CIPHER, "namespace": "look"},
                ),
            ],
            provider_name="openai",
            provider_details=details,
            provider_response_id="resp_123",
            model_name="gpt-4.9",
            provider_url="https://api.openai.com/v1/",
            finish_reason="tool_call",
        ),
        said(ToolReturnPart("look", "here", "call_1|fc_2", tool_kind="my-kind")),
        ModelResponse(
            parts=[
                CompactionPart(
                    provider_name="openai",
                    id="cmp_1",
                    provider_details={"encrypted_content": CIPHER},
                ),
                TextPart("ok", provider_name="openai", id="msg_1", provider_details={"phase": "x"}),
            ],
            provider_details={"container_id": "cntr_1", "conversation_id": "conv_1"},
        ),
    ]
