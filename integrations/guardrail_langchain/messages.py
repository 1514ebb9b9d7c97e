"""LangChain messages -> the chat that a guard reads. Nothing is dropped, nothing is decided."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from langchain_core.messages import (
    AIMessage,
    BaseMessage,
    ChatMessage,
    FunctionMessage,
    HumanMessage,
    SystemMessage,
    ToolMessage,
    convert_to_messages,
)
from langchain_core.prompt_values import PromptValue

from guardrail.errors import UnsupportedContentError

if TYPE_CHECKING:
    from langchain_core.language_models import LanguageModelInput

Chat = list[dict[str, Any]]

# What a block says about itself, beside its content; citations repeat what the text already says.
_ABOUT = frozenset({"annotations", "citations", "extras", "id", "index"})


def to_chat(value: LanguageModelInput | BaseMessage) -> Chat:
    """A prompt, a prompt value or messages in any form LangChain takes, as a guard's chat.

    Blocks are read in LangChain's standard form (`content_blocks`), so v1 blocks, the older
    `source_type` form and OpenAI's and Anthropic's forms all arrive. Reasoning counts as text: a
    later model may read it.

    Raises:
        UnsupportedContentError: a message or block that a guard cannot score, by its type's name.
    """
    if isinstance(value, str):
        return [{"role": "user", "content": value}]
    if isinstance(value, PromptValue):
        messages = value.to_messages()
    elif isinstance(value, BaseMessage):
        messages = [value]
    else:
        messages = convert_to_messages(value)
    return [_turn(message, f"messages[{i}]") for i, message in enumerate(messages)]


def content_parts(content: str | Sequence[str | Mapping[str, Any]], what: str) -> Any:
    """The content of a message, or of a tool's output: a str, or parts that a guard reads."""
    if isinstance(content, str):
        return content
    blocks = HumanMessage(content=list(content)).content_blocks  # type: ignore[arg-type]
    return [_part(dict(block), f"{what}.content[{i}]") for i, block in enumerate(blocks)]


def _turn(message: BaseMessage, what: str) -> dict[str, Any]:
    match message:
        case AIMessage():
            turn = _assistant(message, what)
        case ToolMessage():
            turn = {"role": "tool", "tool_call_id": message.tool_call_id}
        case FunctionMessage():
            turn = {"role": "tool"}
        case HumanMessage():
            turn = {"role": "user"}
        case SystemMessage():
            turn = {"role": "system"}
        case ChatMessage():
            turn = {"role": message.role}
        case _:
            raise UnsupportedContentError(
                f"{what} is a {type(message).__name__}, which no model reads; leave it out"
            )
    if "content" not in turn:
        turn["content"] = content_parts(message.content, what)
    return turn | ({"name": message.name} if message.name else {})


def _assistant(message: AIMessage, what: str) -> dict[str, Any]:
    """An answer: its words, and its calls from wherever they stand."""
    calls = [_call(call["name"], call["args"], call.get("id")) for call in message.tool_calls]
    calls += [
        _call(call.get("name") or "", call.get("args") or "", call.get("id"))
        for call in message.invalid_tool_calls
    ]
    known = {call["id"] for call in calls}
    parts: list[Any] = []
    for i, block in enumerate(message.content_blocks):
        unwrapped = _unwrapped(dict(block))
        call = _call_block(unwrapped)
        if call is None:
            parts.append(_part(unwrapped, f"{what}.content[{i}]"))
        elif call["id"] not in known:
            calls.append(call)
    turn: dict[str, Any] = {"role": "assistant", "content": _joined(parts)}
    more = message.additional_kwargs
    if calls:
        turn["tool_calls"] = calls
    elif more.get("function_call"):
        turn["function_call"] = more["function_call"]
    if more.get("refusal"):
        turn["refusal"] = more["refusal"]
    return turn


def _joined(parts: list[Any]) -> Any:
    """A lone text as a str, which is how it was most likely written."""
    if not parts:
        return ""
    if len(parts) == 1 and parts[0].get("type") == "text":
        return parts[0]["text"]
    return parts


def _call(name: str, arguments: Mapping[str, Any] | str, label: str | None) -> dict[str, Any]:
    return {
        "type": "function",
        "id": label or None,
        "function": {"name": name, "arguments": arguments},
    }


def _call_block(block: Mapping[str, Any]) -> dict[str, Any] | None:
    """A block that calls a tool, in LangChain's or in Anthropic's form."""
    match block.get("type"):
        case "tool_call" | "tool_call_chunk" | "invalid_tool_call":
            return _call(block.get("name") or "", block.get("args") or {}, block.get("id"))
        case "tool_use":
            return _call(block.get("name") or "", block.get("input") or {}, block.get("id"))
        case _:
            return None


def _part(block: dict[str, Any], what: str) -> dict[str, Any]:
    """One block as a part that a guard reads; unknown types and keys are refused by the guard."""
    block = _unwrapped(block)
    kind = block.get("type")
    rest = {key: value for key, value in block.items() if key not in _ABOUT}
    match kind:
        case "text" | "image" | "image_url" | "input_image" | "refusal":
            return rest
        case "text-plain" if isinstance(rest.get("text"), str):
            return {"type": "text", "text": rest["text"]}
        case "reasoning" if "reasoning" in rest:
            return {"type": "text", "text": rest["reasoning"]}
        case "thinking" if "thinking" in rest:
            return {"type": "text", "text": rest["thinking"]}
        case "reasoning":  # an encrypted trace: nothing in it is legible, to a model or a guard
            return {"type": "text", "text": ""}
        case _:
            raise UnsupportedContentError(
                f"{what} is a {str(kind)[:80]!r} block, which a guard cannot score; convert it to "
                "text or pictures first"
            )


def _unwrapped(block: dict[str, Any]) -> dict[str, Any]:
    """What LangChain itself did not know, as it was sent."""
    if block.get("type") == "non_standard" and isinstance(block.get("value"), Mapping):
        return dict(block["value"])
    return block
