"""LlamaIndex messages, blocks, nodes and tools -> the form a guard reads; nothing is dropped.

Canonical pictures go back to where LlamaIndex keeps its own.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from io import IOBase
from typing import TYPE_CHECKING, Any, Literal

from llama_index.core.base.llms import types
from llama_index.core.base.llms.types import ImageBlock, MessageRole, TextBlock
from llama_index.core.schema import ImageNode, MediaResource, Node
from llama_index.core.tools import BaseTool
from pydantic import BaseModel

from guardrail.errors import UnsupportedContentError
from guardrail.front import judging
from guardrail.inputs.canonical import canonical_chat
from guardrail.inputs.labels import CIPHERS, is_unspoken
from guardrail.inputs.strict_json import strict_json
from guardrail.policy.acting import enforces

if TYPE_CHECKING:
    from collections.abc import Collection, Container, Iterable, Sequence
    from pathlib import Path

    from llama_index.core.base.llms.types import ChatMessage
    from llama_index.core.schema import BaseNode

    from guardrail.policy import Policy

ASIDE = ("cache", "tool_call")  # blocks of a message that are no content
_VIDEO_BLOCK: Any = getattr(types, "VideoBlock", None)  # younger than the lowest version we allow

# Other names for roles that a guard knows.
_ROLES = {
    MessageRole.FUNCTION: "tool",
    MessageRole.CHATBOT: "assistant",
    MessageRole.MODEL: "assistant",
}
_READ = frozenset({"name", "tool_call_id", "function_call", "refusal"})

# Not for the guard's own model. LlamaIndex turns `images` into blocks when it builds the message,
# and its memory adds `session_id`.
_ABOUT = frozenset({"cache_control", "images", "session_id"})

# Keys of labels beside a message; LLMs that complete prompts are shown all of them as words.
_LABELS = frozenset(
    "call_id finish_reason format id index item_id model phase role session_id status stop_reason"
    " tool_call_id ttl type".split()
)
# What else is known to stand there, whose names say nothing; what they hold is read.
_NAMES = frozenset(
    "annotations audio built_in_tool_calls cache_control citations code_execution_result content"
    " documents executable_code file_data function_call function_response images inline_data"
    " media_resolution part_metadata reasoning reasoning_content summary text thinking thought"
    " tool_calls usage video_metadata".split()
)


def to_messages(messages: Sequence[ChatMessage], *, others: bool = False) -> list[dict[str, Any]]:
    """A chat in the OpenAI form, as `Guard` takes it; see `guard.check` for what is refused.

    Text, image and video blocks become parts, in order; a block's `detail` and `fps` are hints to
    providers (a guard's policy says how videos are sampled). Calls are read from tool call blocks
    and from `additional_kwargs["tool_calls"]`; one that stands in both counts once. Cache points
    carry no content and are left out, but for words where their hints are expected.

    Args:
        messages: the chat.
        others: whether another LLM is to read it, which may be told more than a guard passes on:
            thoughts, and the words in additional keywords and hints. They are read as text then.

    Raises:
        UnsupportedContentError: a block or an additional keyword that a guard cannot score.
    """
    return [_message(message, f"messages[{i}]", others) for i, message in enumerate(messages)]


def to_parts(
    blocks: Sequence[object], what: str, *, aside: Container[str] = ("cache",), others: bool = False
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
    return judging.words_of(
        value, lambda item: _shown_schema(item) if isinstance(item, BaseTool) else item
    )


def words_beside(values: Mapping[str, Any]) -> str:
    """`words_of` keywords, less labels and ciphers; a key that nobody knows is a word, too.

    Raises:
        UnsupportedContentError: something that cannot be written so.
    """
    unknown: list[str] = []
    return words_of(spoken(values, _LABELS, unknown)) or "\n".join(unknown)


def block_words(blocks: Sequence[Any]) -> list[str]:
    """Words that stand in blocks beside their content, where hints and ciphers are expected.

    Raises:
        UnsupportedContentError: something that cannot be read.
    """
    found = []
    for block in blocks:
        match getattr(block, "block_type", None):
            case "cache":
                found.append(words_beside(block.cache_control.model_dump()))
            case "image":
                found.append(words_beside({"format": block.detail}))
            case "video":
                found.append(words_beside({"format": block.detail, "type": block.video_mimetype}))
            case "thinking":
                about = {
                    k: v for k, v in block.additional_information.items() if v != block.content
                }
                found.append(words_beside(about))
    return [words for words in found if words]


def spoken(value: Any, labels: Collection[str], unknown: list[str]) -> Any:
    """A value without its labels and ciphers; keys that may be words are noted as unknown."""
    if isinstance(value, list | tuple):
        return [spoken(item, labels, unknown) for item in value]
    if isinstance(value, BaseModel):
        return value
    if not isinstance(value, Mapping):
        return value
    left = {}
    for key, item in value.items():
        if _is_cipher(key, item) or is_unspoken(key, item, labels):
            continue
        if key not in _NAMES and key not in labels and key not in CIPHERS:
            unknown.append(str(key))
        left[key] = spoken(item, labels, unknown)
    return left


def _is_cipher(key: object, item: Any) -> bool:
    """Whether an item is a provider's cipher as bytes, or one for each block."""
    if key not in CIPHERS:
        return False
    items = item if isinstance(item, list | tuple) else [item]
    return all(
        each is None or isinstance(each, bytes) or is_unspoken(key, each, ()) for each in items
    )


def _message(message: ChatMessage, what: str, others: bool) -> dict[str, Any]:
    extra = message.additional_kwargs
    content = to_parts(message.blocks, what, aside=ASIDE, others=others)
    if others:
        read = _READ | {"images", "tool_calls"}
        # What becomes blocks does not go on beside them, but it may have come in later.
        if extra.get("images") and not any(isinstance(b, ImageBlock) for b in message.blocks):
            raise UnsupportedContentError(
                f"{what}.additional_kwargs has images that are no blocks; send image blocks"
            )
        beside = words_beside({k: v for k, v in extra.items() if k not in read})
        for said in filter(None, [*block_words(message.blocks), beside]):
            content.append({"type": "text", "text": f"\n{said}"})
    elif unread := [k for k, v in extra.items() if v and k not in _READ | _ABOUT | {"tool_calls"}]:
        raise UnsupportedContentError(
            f"{what}.additional_kwargs has the key {unread[0]!r}, which is not read and would be "
            "lost; turn it into text or image blocks, or leave it out"
        )
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
    """What makes two records the same call: all that they say, with arguments written either way.

    A call with a key that a guard does not read is the same as no other, and the guard refuses it.
    """
    function = call.get("function") or call
    if not isinstance(function, Mapping):
        return repr(call)
    arguments = function.get("arguments")
    if isinstance(arguments, str):
        try:
            arguments = strict_json(arguments or "{}")
        except (ValueError, RecursionError):  # kept as text, which is compared as text
            pass
    outer = {} if function is call else _more(call, ("id", "function"))
    more = [outer, _more(function, ("name", "arguments", *(("id",) if function is call else ())))]
    known = [call.get("id"), function.get("name"), arguments, more]
    return json.dumps(known, sort_keys=True, default=repr)


def _more(held: Mapping[str, Any], known: Container[str]) -> dict[str, Any]:
    """What a record of a call says beside what is known, a plain type and a number of its place."""
    plain = {"type": (None, "function", "tool_call"), "index": (None, *range(1024))}
    return {k: v for k, v in held.items() if k not in known and v not in plain.get(k, ())}


def _schema(tool: BaseTool) -> dict[str, Any]:
    # Not `to_openai_tool`, which changes names and refuses long descriptions for OpenAI's sake.
    about = tool.metadata
    function = {
        "name": about.get_name(),
        "description": about.description,
        "parameters": about.get_parameters_dict(),
    }
    return {"type": "function", "function": function}


def _shown_schema(tool: BaseTool) -> dict[str, Any]:
    """A tool's schema, with what the class of its arguments says of itself: some LLMs show that."""
    schema, kind = _schema(tool), tool.metadata.fn_schema
    said = None if kind is None else kind.model_json_schema().get("description")
    if said and said not in str(tool.metadata.description):
        schema["function"]["parameters"] = {"description": said, **schema["function"]["parameters"]}
    return schema


def node_pictures(node: BaseNode, what: str) -> list[dict[str, Any]]:
    """The parts of a node's picture; none for a node that has none."""
    if isinstance(node, ImageNode):
        if not (node.image or node.image_path or node.image_url):
            return []
        return named_parts(node.image, node.image_path, node.image_url, node.image_mimetype, what)
    if isinstance(node, Node) and (resource := node.image_resource) is not None:
        return named_parts(resource.data, resource.path, resource.url, resource.mimetype, what)
    return []


def node_videos(node: BaseNode, what: str) -> list[dict[str, Any]]:
    """The parts of a node's video; none for a node that has none."""
    if not isinstance(node, Node) or (video := node.video_resource) is None:
        return []
    return named_parts(video.data, video.path, video.url, video.mimetype, what, "video")


def document_parts(documents: Sequence[ImageBlock | BaseNode]) -> list[dict[str, Any]]:
    """The pictures of `image_documents`, one each; a document's own text is not for the model.

    Raises:
        UnsupportedContentError: something else than an image block or a node with a picture.
    """
    parts = []
    for i, document in enumerate(documents):
        what = f"image_documents[{i}]"
        if isinstance(document, ImageBlock):
            found = [_part(document, what)]
        else:
            found = node_pictures(document, what)
        if not found:
            raise UnsupportedContentError(
                f"{what} is a {type(document).__name__} without a picture; send image blocks, "
                "image nodes or image documents"
            )
        parts.append(found[0])
    return parts


def named_parts(
    data: bytes | str | IOBase | None,
    path: Path | str | None,
    url: object,
    media_type: str | None,
    what: str,
    kind: Literal["image", "video"] = "image",
) -> list[dict[str, Any]]:
    """One part per place that names a picture or video, in LlamaIndex's order: data, path, URL.

    Raises:
        UnsupportedContentError: there is none.
    """
    found: list[dict[str, Any]] = []
    if data:
        found.append({"type": kind, **_inline(data, kind)})
        if media_type:
            found[0]["mime_type"] = media_type
    if path:
        found.append({"type": kind, "path": str(path)})
    if url:
        found.append({"type": f"{kind}_url", f"{kind}_url": str(url)})
    if not found:
        called = {"image": "picture", "video": "video"}[kind]
        raise UnsupportedContentError(f"{what} holds no {called}: no data, no path and no URL")
    return found


def _inline(data: bytes | str | IOBase, kind: str) -> dict[str, Any]:
    """Base64, as LlamaIndex stores bytes, or the bytes themselves."""
    if isinstance(data, IOBase):
        data.seek(0)
        content = data.read()
        data.seek(0)
        return {kind: content}
    if isinstance(data, str):
        return {"base64": data}
    try:
        return {"base64": data.decode("ascii")}
    except UnicodeDecodeError:
        return {kind: data}


def with_pictures(
    messages: Sequence[ChatMessage], chat: Sequence[Mapping[str, Any]]
) -> list[ChatMessage]:
    """The messages with the pictures of `chat`, which was made of them, in place of their own."""
    return [_with_pictures(*pair) for pair in zip(messages, chat, strict=True)]


def blocks_with(
    blocks: Sequence[Any], parts: Iterable[Mapping[str, Any]], aside: Container[str]
) -> list[Any]:
    """Blocks with the pictures of the parts that were made of them, but for those `aside`."""
    left = iter(parts)
    found = []
    for block in blocks:
        part = {} if getattr(block, "block_type", None) in aside else next(left)
        is_picture = isinstance(block, ImageBlock)
        found.append(picture_block(part, block.detail) if is_picture else block)
    return found


def picture_block(part: Mapping[str, Any], detail: str | None = None) -> ImageBlock:
    """A part that holds a picture's data, as a block."""
    data, media_type = _data(part)
    return ImageBlock(image=data, image_mimetype=media_type, detail=detail)


def canonical_node(node: BaseNode, policy: Policy) -> BaseNode:
    """The node with the picture that LlamaIndex would take of those it names, and no other.

    It is data then, so that whoever reads it reads no file and no address again.

    Raises:
        InputError: it cannot be read.
    """
    what = f"the node {node.node_id!r}"
    found = node_pictures(node, what)
    if not found or not enforces(policy):
        return node
    [turn] = canonical_chat([{"role": "user", "content": found[:1]}], policy)
    data, media_type = _data(turn["content"][0])
    if isinstance(node, ImageNode):
        named = {"image_path": None, "image_url": None, "image_mimetype": media_type}
        return node.model_copy(update={"image": data.decode(), **named})
    resource = MediaResource(data=data, mimetype=media_type)
    return node.model_copy(update={"image_resource": resource})


def _with_pictures(message: ChatMessage, turn: Mapping[str, Any]) -> ChatMessage:
    if not any(isinstance(block, ImageBlock) for block in message.blocks):
        return message
    # LlamaIndex made blocks of `images`; the pictures themselves would go on beside them.
    extra = {key: value for key, value in message.additional_kwargs.items() if key != "images"}
    blocks = blocks_with(message.blocks, turn["content"], ASIDE)
    return message.model_copy(update={"blocks": blocks, "additional_kwargs": extra})


def _data(part: Mapping[str, Any]) -> tuple[bytes, str | None]:
    """A canonical part's picture in base64, and its media type where the part tells it."""
    if (data := part.get("image")) is not None:
        return base64.b64encode(data), part.get("mime_type")
    if (text := part.get("base64")) is not None:
        return text.encode(), part.get("mime_type")
    header, _, text = str(part.get("url") or part["image_url"]).partition(",")
    return text.encode(), header.removeprefix("data:").partition(";")[0]
