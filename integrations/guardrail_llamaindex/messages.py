"""LlamaIndex messages, blocks and tools -> the form a guard reads; nothing is dropped."""

from __future__ import annotations

import json
from collections.abc import Mapping
from enum import Enum
from typing import TYPE_CHECKING, Any

from llama_index.core.base.llms import types
from llama_index.core.base.llms.types import ImageBlock, MessageRole, TextBlock
from llama_index.core.tools import BaseTool
from pydantic import BaseModel

from guardrail.errors import UnsupportedContentError
from guardrail.inputs.folding import is_label
from guardrail_llamaindex.pictures import ASIDE, named_parts

if TYPE_CHECKING:
    from collections.abc import Container, Sequence

    from llama_index.core.base.llms.types import ChatMessage

_VIDEO_BLOCK: Any = getattr(types, "VideoBlock", None)  # younger than the lowest version we allow
# Other names for roles that a guard knows.
_ROLES = {
    MessageRole.FUNCTION: "tool",
    MessageRole.CHATBOT: "assistant",
    MessageRole.MODEL: "assistant",
}
_READ = frozenset({"name", "tool_call_id", "function_call", "refusal"})
# Say nothing to a model. LlamaIndex turns `images` into blocks when it builds the message, and its
# memory adds `session_id`.
_ABOUT = frozenset({"cache_control", "images", "session_id"})
# Labels and ciphers that providers want back beside a message; no model reads them as words.
_LABELS = frozenset(
    {"id", "signature", "thought_signature", "thought_signatures", "encrypted_content"}
)


def to_messages(messages: Sequence[ChatMessage], *, others: bool = False) -> list[dict[str, Any]]:
    """A chat in the OpenAI form, as `Guard` takes it; see `guard.check` for what is refused.

    Text, image and video blocks become parts, in order; a block's `detail` and `fps` are hints to
    providers (a guard's policy says how videos are sampled). Calls are read from tool call blocks
    and from `additional_kwargs["tool_calls"]`; one that stands in both counts once. Cache points
    carry no content and are left out.

    Args:
        messages: the chat.
        others: whether another LLM is to read it, which may be told more than a guard passes on:
            thoughts, and the words in additional keywords. They are read as text then.

    Raises:
        UnsupportedContentError: a block or an additional keyword that a guard cannot score.
    """
    return [_message(message, f"messages[{i}]", others) for i, message in enumerate(messages)]


def to_parts(
    blocks: Sequence[object],
    what: str,
    *,
    aside: Container[str] = ("cache",),
    others: bool = False,
) -> list[dict[str, Any]]:
    """Content parts of text, image and video blocks; block types in `aside` are left out.

    Raises:
        UnsupportedContentError: another block; the message names its type.
    """
    return [
        _part(block, f"{what}.blocks[{i}]", others)
        for i, block in enumerate(blocks)
        if getattr(block, "block_type", None) not in aside
    ]


def tool_calls(message: ChatMessage) -> list[Any]:
    """The calls of a message in the OpenAI form, wherever this version of LlamaIndex keeps them."""
    blocks: list[Any] = list(message.blocks)
    calls: list[Any] = [_call(b) for b in blocks if getattr(b, "block_type", None) == "tool_call"]
    known = {_identity(call) for call in calls}
    for call in message.additional_kwargs.get("tool_calls") or ():
        plain = call.model_dump(exclude_none=True) if isinstance(call, BaseModel) else call
        if not isinstance(plain, Mapping) or _identity(plain) not in known:
            calls.append(plain)
    return calls


def to_tools(tools: Sequence[BaseTool | Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Function schemas in the OpenAI form; those that have it already go through."""
    return [_schema(tool) if isinstance(tool, BaseTool) else tool for tool in tools]


def words_of(value: Any) -> str:
    """What stands in a value, as the JSON that a provider may show its model; "" for no words.

    Raises:
        UnsupportedContentError: something that cannot be written so.
    """
    plain = _plain(value)
    return json.dumps(plain, ensure_ascii=False) if _says_something(plain) else ""


def _plain(value: Any) -> Any:
    """JSON values, without what is a label or a cipher."""
    match value:
        case None | bool() | int() | float() | str():
            return value
        case Mapping():
            return {str(k): _plain(v) for k, v in value.items() if not _is_no_word(k, v)}
        case list() | tuple() | set() | frozenset():
            return [_plain(item) for item in value]
        case BaseTool():
            return _schema(value)
        case BaseModel():
            return _plain(value.model_dump(exclude_none=True))
        case Enum():
            return _plain(value.value)
        case type() if issubclass(value, BaseModel):
            return _plain(value.model_json_schema())
    raise UnsupportedContentError(
        f"a {type(value).__name__} goes to the LLM, which a guard cannot read; send text, JSON "
        "values, tools or pydantic models"
    )


def _is_no_word(key: object, value: object) -> bool:
    # In a schema the same names stand for properties, with words of their own.
    return key in _LABELS and isinstance(value, str) and len(value.split()) < 2


def _says_something(plain: Any) -> bool:
    if isinstance(plain, dict):
        return any(not is_label(key) or _says_something(item) for key, item in plain.items())
    if isinstance(plain, list):
        return any(map(_says_something, plain))
    return isinstance(plain, str) and bool(plain.strip())


def _message(message: ChatMessage, what: str, others: bool) -> dict[str, Any]:
    extra = message.additional_kwargs
    beside = {k: v for k, v in extra.items() if v and k not in _READ | _ABOUT | {"tool_calls"}}
    if beside and not others:
        raise UnsupportedContentError(
            f"{what}.additional_kwargs has the key {next(iter(beside))!r}, which is not read and "
            "would be lost; turn it into text or image blocks, or leave it out"
        )
    content = to_parts(message.blocks, what, aside=ASIDE, others=others)
    if said := words_of(beside):
        content.append({"type": "text", "text": f"\n{said}"})
    turn: dict[str, Any] = {
        "role": _ROLES.get(message.role, message.role.value),
        # A turn without blocks is an empty one: an agent's tool may return nothing.
        "content": content or "",
    }
    turn |= {key: extra[key] for key in _READ if extra.get(key)}
    if calls := tool_calls(message):
        turn["tool_calls"] = calls
    return turn


def _part(block: object, what: str, others: bool = False) -> dict[str, Any]:
    if isinstance(block, TextBlock):
        return {"type": "text", "text": block.text}
    if others and getattr(block, "block_type", None) == "thinking":
        thought: Any = block
        return {"type": "text", "text": thought.content or ""}
    if isinstance(block, ImageBlock):
        found = named_parts(block.image, block.path, block.url, block.image_mimetype, what)
        return found[0]  # as `resolve_image` does: the others name the same picture
    if _VIDEO_BLOCK is not None and isinstance(block, _VIDEO_BLOCK):
        video: Any = block
        media_type = video.video_mimetype
        return named_parts(video.video, video.path, video.url, media_type, what, "video")[0]
    raise UnsupportedContentError(
        f"{what} is a {type(block).__name__}, which a guard cannot score; turn it into text, "
        "image or video blocks"
    )


def _call(block: Any) -> dict[str, Any]:
    function = {"name": block.tool_name, "arguments": block.tool_kwargs}
    return {"type": "function", "id": block.tool_call_id, "function": function}


def _identity(call: Mapping[str, Any]) -> str:
    """What makes two records the same call: id, name and arguments, written either way."""
    function = call.get("function") or call
    arguments = function.get("arguments")
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments)
        except ValueError:  # kept as text, which is compared as text
            pass
    known = [call.get("id"), function.get("name"), arguments]
    return json.dumps(known, sort_keys=True, default=repr)


def _schema(tool: BaseTool) -> dict[str, Any]:
    # Not `to_openai_tool`, which changes names and refuses long descriptions for OpenAI's sake.
    about = tool.metadata
    function = {
        "name": about.get_name(),
        "description": about.description,
        "parameters": about.get_parameters_dict(),
    }
    return {"type": "function", "function": function}
