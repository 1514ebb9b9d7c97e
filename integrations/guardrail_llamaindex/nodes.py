"""What a retrieved node says, and nodes with more metadata."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from llama_index.core.schema import ImageDocument, ImageNode, MetadataMode, Node, TextNode

from guardrail.errors import UnsupportedContentError
from guardrail_llamaindex.messages import node_pictures, node_videos, words_beside

if TYPE_CHECKING:
    from collections.abc import Mapping

    from llama_index.core.schema import BaseNode, NodeWithScore


def node_message(node: BaseNode) -> list[dict[str, Any]]:
    """A node as one user message: its pictures and videos, then all that LLMs may read of it.

    Pictures come first, as people send them and as thresholds are calibrated; behind words of its
    own caption the same picture scores lower. The text follows as its template writes it, and what
    the template leaves out: readers of a node's content blocks get text and metadata without one.
    What is named in several ways (data, path, URL) comes several times: whoever reads the
    node may take any of them. A canonical node names its picture once.

    Raises:
        UnsupportedContentError: the node holds sound or bytes that are no text, is of
            another type, or is an image node without anything in it.
    """
    what = f"the node {node.node_id!r}"
    _refuse_unread(node, what)
    text, found = _words(node), [*node_pictures(node, what), *node_videos(node, what)]
    if isinstance(node, ImageNode | ImageDocument) and not text and not found:
        raise UnsupportedContentError(f"{what} is an {type(node).__name__} without text or picture")
    parts = [{"type": "text", "text": text}] if text or not found else []
    if isinstance(node, Node) and (video := node.video_resource) is not None:
        said = words_beside({"type": video.mimetype})  # it goes on as it is
        parts += [{"type": "text", "text": f"\n{said}"}] if said else []
    return [{"role": "user", "content": [*found, *parts]}]


def with_metadata(
    scored: NodeWithScore, *, shown: Mapping[str, Any], hidden: Mapping[str, Any]
) -> NodeWithScore:
    """A copy with more metadata, `hidden` from LLMs; embeddings see neither. No more: itself."""
    if not shown and not hidden:
        return scored
    node = scored.node
    more = {**shown, **hidden}
    copied = node.model_copy(
        update={
            "metadata": {**node.metadata, **more},
            "excluded_llm_metadata_keys": [*node.excluded_llm_metadata_keys, *hidden],
            "excluded_embed_metadata_keys": [*node.excluded_embed_metadata_keys, *more],
        }
    )
    return scored.model_copy(update={"node": copied})


def shows(node: BaseNode, key: str) -> bool:
    """Whether what LLMs read of a node has the value of its metadata's `key` in it."""
    metadata = dict(node.metadata)
    value = str(metadata.pop(key)).strip()
    without = node.model_copy(update={"metadata": metadata})
    seen, other = (n.get_content(metadata_mode=MetadataMode.LLM) for n in (node, without))
    return seen.count(value) > other.count(value)  # the text itself may say the same


def _words(node: BaseNode) -> str:
    """The text as LLMs get it, and the bare text and the metadata where they are not in it."""
    words = node.get_content(metadata_mode=MetadataMode.LLM)
    alone = node.get_content(metadata_mode=MetadataMode.NONE)
    for more in (alone, node.get_metadata_str(mode=MetadataMode.LLM).strip()):
        if more.strip() not in words:
            words = f"{words}\n\n{more}" if words else more
    return words


def _refuse_unread(node: BaseNode, what: str) -> None:
    if not isinstance(node, TextNode | Node):
        raise UnsupportedContentError(
            f"{what} is a {type(node).__name__}, which a guard cannot score; make it a TextNode, "
            "an ImageNode or a Node"
        )
    if isinstance(node, TextNode):
        return
    if node.audio_resource is not None:
        raise UnsupportedContentError(
            f"{what} has its audio_resource filled, which no guard can score"
        )
    text = node.text_resource
    if text is not None and text.text is None and (text.data or text.path or text.url):
        raise UnsupportedContentError(
            f"{what} has a text_resource without text; read its data, path or URL into it first"
        )
