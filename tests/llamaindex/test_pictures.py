"""Pictures of nodes and documents."""

from __future__ import annotations

import base64

import pytest
from guardrail_llamaindex.pictures import document_parts, node_pictures, node_videos
from llama_index.core.llms import ImageBlock
from llama_index.core.schema import (
    ImageDocument,
    ImageNode,
    MediaResource,
    Node,
    TextNode,
)

from guardrail.errors import UnsupportedContentError


def test_every_place_of_a_nodes_picture_is_named():
    node = ImageNode(
        image="aaaa", image_path="b.png", image_url="https://c.invalid", image_mimetype="image/png"
    )
    assert node_pictures(node, "it") == [
        {"type": "image", "base64": "aaaa", "mime_type": "image/png"},
        {"type": "image", "path": "b.png"},
        {"type": "image_url", "image_url": "https://c.invalid"},
    ]


def test_a_text_node_has_no_picture():
    assert node_pictures(TextNode(text="a"), "it") == []
    assert node_pictures(Node(text_resource=MediaResource(text="a")), "it") == []


def test_an_image_resource_without_a_picture_is_an_error():
    with pytest.raises(UnsupportedContentError, match="it holds no picture"):
        node_pictures(Node(image_resource=MediaResource()), "it")


def test_every_place_of_a_nodes_video_is_named(tmp_path):
    (path := tmp_path / "b.mp4").touch()
    resource = MediaResource(data=b"\0\0\0\x1cftyp", path=path, url="https://c.invalid/d.mp4")
    found = node_videos(Node(video_resource=resource), "it")
    assert [{k: str(v) for k, v in part.items() if k != "mime_type"} for part in found] == [
        {"type": "video", "base64": base64.b64encode(b"\0\0\0\x1cftyp").decode()},
        {"type": "video", "path": str(path)},
        {"type": "video_url", "video_url": "https://c.invalid/d.mp4"},
    ]
    assert node_videos(TextNode(text="a"), "it") == []
    with pytest.raises(UnsupportedContentError, match="it holds no video"):
        node_videos(Node(video_resource=MediaResource()), "it")


def test_image_documents_may_be_blocks_nodes_or_documents(png):
    encoded = base64.b64encode(png()).decode()
    documents = [
        ImageBlock(image=png()),
        ImageNode(image=encoded, text="left out"),
        ImageDocument(image=encoded),
        Node(image_resource=MediaResource(data=png())),
    ]
    assert [part["base64"] for part in document_parts(documents)] == [encoded] * 4


def test_an_image_document_without_a_picture_is_an_error():
    with pytest.raises(UnsupportedContentError, match=r"image_documents\[0\] is a TextNode"):
        document_parts([TextNode(text="a")])
