"""Where LlamaIndex keeps pictures and videos -> parts; nothing is read or fetched here."""

from __future__ import annotations

from io import IOBase
from typing import TYPE_CHECKING, Any, Literal

from llama_index.core.base.llms.types import ImageBlock
from llama_index.core.schema import ImageNode, Node

from guardrail.errors import UnsupportedContentError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from llama_index.core.base.llms.types import ChatMessage
    from llama_index.core.schema import BaseNode

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


def as_documents(parts: Sequence[Mapping[str, Any]]) -> list[ImageBlock]:
    """Pictures as `image_documents`."""
    return [_block(part) for part in parts]


def _with_pictures(message: ChatMessage, turn: Mapping[str, Any]) -> ChatMessage:
    if not any(isinstance(block, ImageBlock) for block in message.blocks):
        return message
    parts, blocks = iter(turn["content"]), []
    for block in message.blocks:
        part = {} if block.block_type in ASIDE else next(parts)
        blocks.append(_block(part, block.detail) if isinstance(block, ImageBlock) else block)
    # LlamaIndex made blocks of `images`; the pictures themselves would go on beside them.
    extra = {key: value for key, value in message.additional_kwargs.items() if key != "images"}
    return message.model_copy(update={"blocks": blocks, "additional_kwargs": extra})


def _block(part: Mapping[str, Any], detail: str | None = None) -> ImageBlock:
    data = part.get("image") or part.get("base64")
    if data is None:
        header, _, data = str(part.get("url") or part["image_url"]).partition(",")
        return ImageBlock(
            image=data.encode(), image_mimetype=header[5:].partition(";")[0], detail=detail
        )
    encoded = data.encode() if isinstance(data, str) else data
    return ImageBlock(image=encoded, image_mimetype=part.get("mime_type"), detail=detail)


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
