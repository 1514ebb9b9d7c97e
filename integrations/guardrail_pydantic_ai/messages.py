"""Pydantic-AI's messages and parts -> the form a guard reads; nothing is dropped.

Parts are told by their `part_kind`: their classes are younger and older than the versions that are
allowed. Pictures become canonical, and what goes on has them so.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, is_dataclass, replace
from typing import TYPE_CHECKING, Any, Self

from pydantic_ai.messages import (
    BinaryContent,
    CachePoint,
    ImageUrl,
    ModelRequest,
    SystemPromptPart,
    TextContent,
    VideoUrl,
)
from pydantic_core import to_jsonable_python

from guardrail.errors import UnsupportedContentError
from guardrail.front.judging import Heard, words_of
from guardrail.front.tool_values import read_value
from guardrail.inputs.canonical import canonical_picture
from guardrail.inputs.labels import is_label
from guardrail.policy.acting import enforces

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from pydantic_ai.messages import ModelMessage
    from pydantic_ai.models import ModelRequestParameters
    from pydantic_ai.settings import ModelSettings

    from guardrail.front.judging import Chat
    from guardrail.policy import Policy

Part = dict[str, Any]

# What no model is shown: which tools and capabilities there are stands in the request's parameters,
# and of instructions only digests are kept.
_SILENT = frozenset(
    "tool-availability-delta capability-load-delta model-settings-delta "
    "instruction-baseline".split()
)
_SAID_BY = {
    "system-prompt": "system",
    "user-prompt": "user",
    "tool-return": "tool",
    "builtin-tool-return": "tool",
    "retry-feedback": "user",
    "instruction-delta": "system",
    "compaction": "user",
}
_CALLS = frozenset({"tool-call", "builtin-tool-call"})
_SECRET = frozenset({"authorization_token", "headers", "url"})  # of tools that the provider runs
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
    ) -> Self:
        """Messages, and what comes beside them.

        Raises:
            InputError: something in it that a guard cannot read.
        """
        chat: Chat = []
        sent: list[ModelMessage] = []
        for i, message in enumerate(messages):
            other: Any = message  # both kinds have parts
            parts = [
                _add(chat, part, policy, f"messages[{i}].parts[{j}]")
                for j, part in enumerate(message.parts)
            ]
            same = all(new is old for new, old in zip(parts, message.parts, strict=True))
            sent.append(message if same else replace(other, parts=parts))
        words = [*_instructions(messages, parameters), *_beside(parameters, settings)]
        return cls(sent, Heard.of(chat, filter(None, words)))

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
        case TextContent():
            return value, [_text(value.content)]
        case BinaryContent():
            binary, part = _binary(value, policy, what)
            return binary, [*_identifier(value), part]
        case ImageUrl():
            return _picture(value, value.url, policy, what)
        case VideoUrl():
            part = {"type": "video_url", "video_url": {"url": value.url}}
            return value, [*_identifier(value), part]
    if hasattr(value, "kind") and is_dataclass(value):  # other media, and what providers keep
        raise UnsupportedContentError(
            f"{what} is a {type(value).__name__}, which a guard cannot read; {_UNREAD}"
        )
    reading = read_value(value, policy, what)
    return reading.value, reading.content


def _add(chat: Chat, part: Any, policy: Policy, what: str) -> Any:
    """Put a part's words into the chat; the part as it goes on."""
    kind = part.part_kind
    if kind in _SILENT:
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
    if kind == "retry-prompt":  # of older versions: an answer to a call, or to the user
        about = {"tool_call_id": part.tool_call_id, "name": part.tool_name}
        role = {"role": "tool", **about} if part.tool_name else {"role": "user"}
        chat.append({**role, "content": part.model_response()})
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


def _identifier(value: Any) -> list[Part]:
    """A name under which a model is told of a file, where it is more than a name."""
    return [] if is_label(value.identifier) else [_text(value.identifier)]


def _text(words: str) -> Part:
    return {"type": "text", "text": words}


def _instructions(
    messages: Sequence[ModelMessage], parameters: ModelRequestParameters
) -> Iterator[str]:
    """Those in force, as Pydantic-AI finds them."""
    if parameters.instruction_parts is not None:
        yield from (part.content for part in parameters.instruction_parts)
        return
    requests = (each for each in reversed(messages) if isinstance(each, ModelRequest))
    yield from [each.instructions for each in requests if each.instructions][:1]


def _beside(parameters: ModelRequestParameters, settings: ModelSettings | None) -> Iterator[str]:
    """Each tool on its own, the form of the answer, and settings with words."""
    for tool in (*parameters.function_tools, *parameters.output_tools):
        shown = {
            "name": tool.name,
            "description": tool.description,
            "parameters": tool.parameters_json_schema,
            "returns": getattr(tool, "return_schema", None),
        }
        yield words_of(shown)
    for native in parameters.native_tools:
        held = {each.name: getattr(native, each.name) for each in fields(native)}
        plain = to_jsonable_python({k: v for k, v in held.items() if k not in _SECRET})
        yield words_of(plain)
    if (form := parameters.output_object) is not None:
        yield words_of(
            {"name": form.name, "description": form.description, "schema": form.json_schema}
        )
    if isinstance(parameters.prompted_output_template, str):
        yield parameters.prompted_output_template
    if settings:
        yield words_of(settings.get("extra_body"))
