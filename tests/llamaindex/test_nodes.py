"""What a retrieved node says to a guard."""

from __future__ import annotations

import base64

import pytest
from guardrail_llamaindex.nodes import node_message, with_metadata
from llama_index.core.schema import (
    BaseNode,
    Document,
    ImageDocument,
    ImageNode,
    IndexNode,
    MediaResource,
    MetadataMode,
    Node,
    NodeWithScore,
    TextNode,
)

from guardrail.errors import UnsupportedContentError
from guardrail.policy import Policy
from guardrail.requests.messages import to_request


def text(node):
    ((turn,), parts) = node_message(node), node_message(node)[0]["content"]
    assert turn["role"] == "user"
    return "".join(part["text"] for part in parts if part["type"] == "text")


@pytest.mark.parametrize(
    "node",
    [
        TextNode(text="a dog"),
        IndexNode(text="a dog", index_id="i", obj=object()),
        Document(text="a dog"),
        Node(text_resource=MediaResource(text="a dog")),
        ImageNode(text="a dog", image_path="a.png"),
    ],
    ids=lambda node: type(node).__name__,
)
def test_the_text_of_every_kind_of_node_is_read(node):
    assert text(node) == "a dog"


def test_metadata_that_llms_see_is_read_and_the_rest_is_not():
    node = TextNode(
        text="a dog",
        metadata={"title": "seen", "path": "hidden"},
        excluded_llm_metadata_keys=["path"],
    )
    assert text(node) == "title: seen\n\na dog"


@pytest.mark.parametrize(
    "make",
    [
        lambda data, path: ImageNode(image=base64.b64encode(data).decode()),
        lambda data, path: ImageNode(image_path=str(path)),
        lambda data, path: ImageNode(image_url=path.as_uri()),
        lambda data, path: ImageDocument(image=base64.b64encode(data).decode()),
        lambda data, path: ImageDocument(image_path=str(path)),
        lambda data, path: Node(image_resource=MediaResource(data=data)),
        lambda data, path: Node(image_resource=MediaResource(path=path)),
    ],
)
def test_a_picture_is_read_wherever_the_node_keeps_it(make, png, picture, tmp_path):
    path = tmp_path / "a.png"
    path.write_bytes(png())
    request = to_request(node_message(make(png(), path)), policy=Policy())
    assert [image.tobytes() for image in request.images] == [picture().tobytes()]


def test_a_picture_beside_a_text_is_read_and_so_is_every_place_of_it(png, picture, tmp_path):
    path = tmp_path / "a.png"
    path.write_bytes(png(1))
    node = ImageNode(text="a dog", image=base64.b64encode(png(0)).decode(), image_path=str(path))
    request = to_request(node_message(node), policy=Policy())
    assert [image.tobytes() for image in request.images] == [
        picture(seed).tobytes() for seed in (0, 1)
    ]
    assert text(node) == "a dog"


def test_an_empty_text_is_a_text():
    assert text(TextNode(text="")) == ""


class Other(BaseNode):
    @classmethod
    def get_type(cls):
        return "other"

    def get_content(self, metadata_mode=MetadataMode.ALL):
        return "a"

    def get_content_blocks(self, metadata_mode=MetadataMode.ALL):
        return []

    def set_content(self, value):
        raise NotImplementedError

    @property
    def hash(self):
        return "a"


@pytest.mark.parametrize(
    ("node", "words"),
    [
        (ImageNode(id_="n7"), "'n7' is an ImageNode without"),
        (ImageDocument(id_="n7"), "'n7' is an ImageDocument without"),
        (
            Node(id_="n7", audio_resource=MediaResource(data=b"a")),
            "'n7' has its audio_resource filled",
        ),
        (
            Node(
                id_="n7",
                text_resource=MediaResource(text="a"),
                video_resource=MediaResource(data=b"a"),
            ),
            "'n7' has its video_resource filled",
        ),
        (Node(id_="n7", text_resource=MediaResource(data=b"a")), "text_resource without text"),
        (Node(id_="n7", image_resource=MediaResource()), "'n7' holds no picture"),
        (Other(id_="n7"), "'n7' is a Other"),
    ],
)
def test_what_cannot_be_read_is_an_error_that_names_the_node(node, words):
    with pytest.raises(UnsupportedContentError, match=words):
        node_message(node)


def test_more_metadata_goes_into_a_copy():
    node = TextNode(text="a", metadata={"title": "b"}, excluded_llm_metadata_keys=["x"])
    scored = NodeWithScore(node=node, score=0.5)
    more = with_metadata(scored, shown={"said": "c"}, hidden={"kept": 1})
    assert more.score == 0.5
    assert more.node.metadata == {"title": "b", "said": "c", "kept": 1}
    assert more.node.get_content(MetadataMode.LLM) == "title: b\nsaid: c\n\na"
    assert more.node.get_content(MetadataMode.EMBED) == "title: b\n\na"
    assert node.metadata == {"title": "b"}
    assert node.excluded_llm_metadata_keys == ["x"]
    assert node.excluded_embed_metadata_keys == []


def test_without_more_metadata_it_is_the_same_object():
    scored = NodeWithScore(node=TextNode(text="a"))
    assert with_metadata(scored, shown={}, hidden={}) is scored
