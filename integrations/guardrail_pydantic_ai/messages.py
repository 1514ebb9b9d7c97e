"""Pydantic-AI's messages and parts -> the form a guard reads; nothing is dropped.

Parts are told by their `part_kind`: their classes are younger and older than the versions that are
allowed. Pictures become canonical, and what goes on has them so.
"""

from __future__ import annotations

from dataclasses import dataclass, is_dataclass, replace
from typing import TYPE_CHECKING, Any, Self

from pydantic_ai.messages import (
    BinaryContent,
    CachePoint,
    ImageUrl,
    ModelRequest,
    StructuredContent,
    SystemPromptPart,
    TextContent,
    VideoUrl,
)

from guardrail.errors import UnsupportedContentError
from guardrail.front.chats import result_chat
from guardrail.front.judging import Heard
from guardrail.front.tool_values import read_value, with_fields
from guardrail.inputs.canonical import canonical_picture
from guardrail.inputs.labels import is_label
from guardrail.policy.acting import enforces
from guardrail_pydantic_ai.fields import read_rest
from guardrail_pydantic_ai.parameters import beside, spoken_instructions

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping, Sequence

    from pydantic_ai.messages import ModelMessage
    from pydantic_ai.models import Model, ModelRequestParameters
    from pydantic_ai.settings import ModelSettings

    from guardrail.front.judging import Chat
    from guardrail.policy import Policy
    from guardrail_pydantic_ai.fields import Part
    from guardrail_pydantic_ai.parameters import Piece

# What holds nothing but names and values; only a model that chooses among others is given it.
_NAMING = frozenset("tool-availability-delta capability-load-delta model-settings-delta".split())
_SAID_BY = {
    "system-prompt": "system",
    "user-prompt": "user",
    "tool-return": "tool",
    "builtin-tool-return": "tool",
    "retry-feedback": "user",
    "instruction-delta": "system",
    "compaction": "user",
    "capability": "user",
}
_CALLS = frozenset({"tool-call", "builtin-tool-call"})
# What parts of a kind are read for; others for their content. Which function made a system prompt
# is for the application, and so is when each word of a speech was heard.
_CALLED, _ANSWERED = {"tool_name", "tool_call_id", "args"}, {"tool_name", "tool_call_id", "content"}
_TAKEN: dict[str, set[str]] = {
    "tool-call": _CALLED,
    "builtin-tool-call": _CALLED,
    "tool-return": _ANSWERED,
    "builtin-tool-return": _ANSWERED,
    "retry-prompt": _ANSWERED,
    "system-prompt": {"content", "dynamic_ref"},
    "speech": {"transcript", "audio", "timestamps"},
    "instruction-baseline": {"instructions"},
    **{kind: set[str]() for kind in _NAMING},
}
# Of messages, what is for the application alone, or for the connection.
_UNSENT = frozenset(
    "canonical_system conversation_id duration failed_attempts history_digest model_id "
    "model_name provider_url request_timestamp run_id usage workspace_ref".split()
)
_NAMED = frozenset({"data", "url", "_identifier"})  # of files
_UNREAD = "turn it into text, pictures or videos"


@dataclass(frozen=True, slots=True)
class ModelCall:
    """What goes to a model, its pictures canonical, and as a guard hears it."""

    messages: list[ModelMessage]
    heard: Heard

    @classmethod
    def of(
        cls,
        messages: Sequence[ModelMessage],
        settings: ModelSettings | None,
        parameters: ModelRequestParameters,
        policy: Policy,
        *,
        model: Model,
        more: Sequence[str] = (),
    ) -> Self:
        """Messages, and what comes beside them.

        Args:
            messages: those of the request.
            settings: its settings.
            parameters: its instructions, tools and form of the answer.
            policy: the rules of the guard.
            model: the model that is asked, with settings of its own.
            more: what else it is told.

        Raises:
            InputError: something in it that a guard cannot read.
        """
        chat: Chat = []
        pieces: list[Piece] = []
        sent = [
            _sent(chat, pieces, each, policy, f"messages[{i}]") for i, each in enumerate(messages)
        ]
        pieces += [*more, *beside(messages, settings, parameters, model, policy)]
        return cls(sent, _heard(chat, pieces))

    def cautioned(self, words: str) -> Self:
        """The same with words of caution as its first system prompt."""
        head, rest = self.messages[:1], self.messages[1:]
        caution = SystemPromptPart(words)
        if head and isinstance(head[0], ModelRequest):
            first = replace(head[0], parts=[caution, *head[0].parts])
        else:
            first, rest = ModelRequest(parts=[caution]), [*head, *rest]
        return replace(self, messages=[first, *rest])


def read_content(value: Any, policy: Policy, what: str) -> tuple[Any, list[Part]]:
    """What a user says or a tool gives, as it goes on, and as parts of a message.

    Raises:
        InputError: something in it that a guard cannot read.
    """
    if isinstance(value, list | tuple):
        pairs = [read_content(item, policy, f"{what}[{i}]") for i, item in enumerate(value)]
        kept = [new for new, _ in pairs]
        same = all(new is old for new, old in zip(kept, value, strict=True))
        return value if same else type(value)(kept), [part for _, found in pairs for part in found]
    match value:
        case CachePoint():
            return value, []
        case StructuredContent():
            return _structured(value, policy, what)
        case TextContent():
            return _with_rest(value, [_text(value.content)], {"content"}, policy, what)
        case BinaryContent():
            binary, part = _binary(value, policy, what)
            return _with_rest(binary, [*_identifier(value), part], _NAMED, policy, what)
        case ImageUrl():
            return _with_rest(*_picture(value, value.url, policy, what), _NAMED, policy, what)
        case VideoUrl():
            video = {"type": "video_url", "video_url": {"url": value.url}}
            return _with_rest(value, [*_identifier(value), video], _NAMED, policy, what)
    if hasattr(value, "kind") and is_dataclass(value):  # other media, and what providers keep
        raise UnsupportedContentError(
            f"{what} is a {type(value).__name__}, which a guard cannot read; {_UNREAD}"
        )
    reading = read_value(value, policy, what)
    return reading.value, reading.content


def _sent(
    chat: Chat, pieces: list[Piece], message: ModelMessage, policy: Policy, what: str
) -> ModelMessage:
    """A message as it goes on, its words in the chat, or among the pieces beside it."""
    other: Any = message  # both kinds have parts
    parts: list[Any] = []
    for i, part in enumerate(message.parts):
        where = f"{what}.parts[{i}]"
        taken = _TAKEN.get(part.part_kind, {"content"})
        kept, rest = read_rest(_add(chat, pieces, part, policy, where), taken, policy, where)
        parts.append(kept)
        pieces.append(rest)
    if not all(new is old for new, old in zip(parts, message.parts, strict=True)):
        other = replace(other, parts=parts)
    kept_message: ModelMessage
    kept_message, rest = read_rest(other, {"parts", "instructions"} | _UNSENT, policy, what)
    pieces.append(rest)
    return kept_message


def _heard(chat: Chat, pieces: Iterable[Piece]) -> Heard:
    """A chat, and each piece beside it once."""
    words: dict[str, None] = {}
    shown: list[Chat] = []
    for piece in filter(None, pieces):
        match piece:
            case str(text) | [{"type": "text", "text": str(text)}]:
                words[text] = None
            case _:
                shown.append(result_chat(piece))
    heard = Heard.of(chat, words)
    return replace(heard, beside=[*heard.beside, *shown])


def _add(chat: Chat, pieces: list[Piece], part: Any, policy: Policy, what: str) -> Any:
    """Put a part's words into the chat; the part as it goes on."""
    kind = part.part_kind
    if kind in _NAMING:
        return part
    if kind == "instruction-baseline":  # of some blocks only a digest is kept
        blocks = [each for each in part.instructions if hasattr(each, "content")]
        pieces += [piece for each in blocks for piece in spoken_instructions(each, policy)]
        return part
    if kind in _CALLS:
        function = {"name": part.tool_name, "arguments": part.args or {}}
        call = {"type": "function", "id": part.tool_call_id, "function": function}
        _say(chat, [], call)
        return part
    if kind in ("text", "thinking"):
        _say(chat, [_text(part.content)] if part.content else [])
        return part
    if kind == "file":
        kept, found = read_content(part.content, policy, what)
        _say(chat, found)
        return part if kept is part.content else replace(part, content=kept)
    if kind == "speech" and part.audio is None:
        _add_speech(chat, part)
        return part
    if kind == "retry-prompt":  # of older versions: an answer to a call, or to the user
        about = {"tool_call_id": part.tool_call_id, "name": part.tool_name}
        role = {"role": "tool", **about} if part.tool_name else {"role": "user"}
        chat.append(
            {**role, "content": [_text(part.model_response()), *_quoted(part, policy, what)]}
        )
        return part
    if kind not in _SAID_BY:
        raise UnsupportedContentError(
            f"{what} is a {type(part).__name__}, which a guard cannot read; {_UNREAD}"
        )
    return _add_said(chat, part, _SAID_BY[kind], policy, what)


def _add_said(chat: Chat, part: Any, role: str, policy: Policy, what: str) -> Any:
    """A part with a content, as what the role says."""
    content = part.content
    if part.part_kind == "retry-feedback":
        content = part.model_response()
    kept, found = read_content("" if content is None else content, policy, what)
    turn: dict[str, Any] = {"role": role, "content": found or ""}
    if role == "tool":
        turn |= {"tool_call_id": part.tool_call_id, "name": part.tool_name}
    if found or role != "system":
        chat.append(turn)
    return part if kept is content or content is None else replace(part, content=kept)


def _quoted(part: Any, policy: Policy, what: str) -> list[Part]:
    """What errors quote of an answer; the part leaves some of it out, and a model is shown it."""
    errors = part.content if isinstance(part.content, list) else []
    return read_value([each.get("input") for each in errors], policy, what).content


def _add_speech(chat: Chat, part: Any) -> None:
    """What somebody said in a session of speech, as it was written down."""
    found = [_text(part.transcript)] if part.transcript else []
    if part.speaker == "assistant":
        _say(chat, found)
    elif found:
        chat.append({"role": "user", "content": found})


def _say(chat: Chat, parts: list[Part], call: Mapping[str, Any] | None = None) -> None:
    """What a model thinks, says and calls in one answer is one turn."""
    if not parts and call is None:
        return
    last = chat[-1] if chat else {}
    if last.get("role") != "assistant" or (parts and last.get("tool_calls")):
        last = {"role": "assistant", "content": []}
        chat.append(last)
    last["content"] += parts
    if call is not None:
        last.setdefault("tool_calls", []).append(call)


def _binary(value: BinaryContent, policy: Policy, what: str) -> tuple[BinaryContent, Part]:
    if value.is_image:
        kept, [*_, part] = _picture(value, value.data, policy, what)
        return kept, part
    if value.is_video:
        return value, {"type": "video", "video": value.data}
    if value.media_type.startswith("text/"):  # providers are sent it as words
        try:
            return value, _text(value.data.decode())
        except UnicodeDecodeError as error:
            raise UnsupportedContentError(f"{what} is no text in UTF-8: {error}") from error
    raise UnsupportedContentError(
        f"{what} is of the type {value.media_type[:80]!r}, which a guard cannot read; {_UNREAD}"
    )


def _picture(
    value: BinaryContent | ImageUrl, source: bytes | str, policy: Policy, what: str
) -> tuple[Any, list[Part]]:
    """A picture as it goes on: its data, whatever named it."""
    encoded = canonical_picture(source, policy, what=what)
    parts = [*_identifier(value), {"type": "image", "image": encoded.data}]
    if not enforces(policy) or encoded.data == source:
        return value, parts
    kind = type(value) if isinstance(value, BinaryContent) else BinaryContent
    kept = kind(
        data=encoded.data,
        media_type=encoded.media_type,
        identifier=value.identifier,
        vendor_metadata=value.vendor_metadata,
    )
    return kept, parts


def _structured(value: StructuredContent, policy: Policy, what: str) -> tuple[Any, list[Part]]:
    """Its text, and its value, tag and description where the text is not made from them.

    Some models are given the value itself. What an application rendered may say something else.
    """
    reading = read_value(value.value, policy, what)
    kept = with_fields(value, {} if reading.value is value.value else {"value": reading.value})
    parts = [_text(value.content)]
    if value.content == value.render():
        return kept, [*parts, *(part for part in reading.parts if part["type"] != "text")]
    return _with_rest(kept, [*parts, *reading.content], {"content", "value"}, policy, what)


def _with_rest(
    value: Any, parts: list[Part], taken: Collection[str], policy: Policy, what: str
) -> tuple[Any, list[Part]]:
    kept, rest = read_rest(value, taken, policy, what)
    return kept, [*parts, *rest]


def _identifier(value: Any) -> list[Part]:
    """A name under which a model is told of a file, where it is more than a name."""
    return [] if is_label(value.identifier) else [_text(value.identifier)]


def _text(words: str) -> Part:
    return {"type": "text", "text": words}
