"""Where LlamaIndex keeps pictures and videos -> parts, and canonical pictures back again."""

from __future__ import annotations

import base64
from io import IOBase
from typing import TYPE_CHECKING, Any, Literal

from llama_index.core.base.llms.types import ImageBlock
from llama_index.core.schema import ImageNode, MediaResource, Node

from guardrail.errors import UnsupportedContentError
from guardrail.inputs.canonical import canonical_chat
from guardrail.policy.acting import enforces

if TYPE_CHECKING:
    from collections.abc import Container, Iterable, Mapping, Sequence
    from pathlib import Path

    from llama_index.core.base.llms.types import ChatMessage
    from llama_index.core.schema import BaseNode

    from guardrail.policy import Policy

ASIDE = ("cache", "tool_call")  # blocks of a message that are no content


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
            found = named_parts(
                document.image, document.path, document.url, document.image_mimetype, what
            )
        else:
            found = node_pictures(document, what)
        if not found:
            raise UnsupportedContentError(
                f"{what} is a {type(document).__name__} without a picture; send image blocks, "
                "image nodes or image documents"
            )
        parts.append(found[0])
    return parts


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
