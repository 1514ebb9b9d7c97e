"""What a retrieved node says to a guard."""

from __future__ import annotations

import base64

import pytest
from guardrail_llamaindex.nodes import node_message, shows, with_metadata
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
from guardrail.inputs.messages import to_request
from guardrail.policy import Policy


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
    ("node", "read"),
    [
        (TextNode(text="a dog", text_template="{content}"), "a dog\n\ntitle: seen"),
        (TextNode(text="a dog", text_template="{metadata_str}"), "title: seen\n\na dog"),
        (TextNode(text="a dog", text_template="nothing"), "nothing\n\na dog\n\ntitle: seen"),
        (
            Node(text_resource=MediaResource(text="a dog"), text_template="{content}"),
            "a dog\n\ntitle: seen",
        ),
        (Node(image_resource=MediaResource(data=b"picture")), "title: seen"),
        (ImageNode(image_path="a.png"), "title: seen"),
        (TextNode(text=" a dog "), "title: seen\n\n a dog"),
    ],
)
def test_text_and_metadata_are_read_whatever_a_template_leaves_out(node, read):
    node.metadata = {"title": "seen", "path": "hidden"}
    node.excluded_llm_metadata_keys = ["path"]
    assert text(node) == read


@pytest.mark.skipif(
    not hasattr(TextNode, "get_content_blocks"), reason="this LlamaIndex makes no blocks of nodes"
)
@pytest.mark.parametrize("template", ["{content}", "{metadata_str}", "{metadata_str}\n{content}"])
@pytest.mark.parametrize("kind", [TextNode, Node, ImageNode])
def test_every_word_of_the_blocks_that_llms_get_is_read(kind, template, png):
    node = kind(text_template=template, metadata={"title": "seen", "path": "hidden"})
    node.excluded_llm_metadata_keys = ["path"]
    if kind is ImageNode:
        node.image = base64.b64encode(png()).decode()
    else:
        node.set_content("a dog")
    blocks = node.get_content_blocks(MetadataMode.LLM)
    words = [block.text for block in blocks if block.block_type == "text"]
    assert words
    assert [word for word in words if word not in text(node)] == []


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


def test_a_picture_comes_before_the_words_of_its_node(png):
    node = Node(image_resource=MediaResource(data=png()), metadata={"title": "seen"})
    (turn,) = node_message(node)
    assert [part["type"] for part in turn["content"]] == ["image", "text"]


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
            Node(id_="n7", video_resource=MediaResource()),
            "'n7' holds no video",
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


@pytest.mark.parametrize(
    ("node", "seen"),
    [
        (TextNode(text="a"), True),
        (ImageNode(image_path="a.png"), True),
        (Node(text_resource=MediaResource(text="a")), True),
        (TextNode(text="a", metadata={"said": "c"}), True),
        (TextNode(text="a", text_template="{content}"), False),
        (TextNode(text="a c", text_template="{content}"), False),
        (TextNode(text="a", metadata_template="{key}"), False),
        (TextNode(text="a", excluded_llm_metadata_keys=["said"]), False),
        (Node(image_resource=MediaResource(data=b"picture")), False),
    ],
)
def test_whether_llms_read_what_metadata_says(node, seen):
    more = with_metadata(NodeWithScore(node=node), shown={"said": "c"}, hidden={})
    assert shows(more.node, "said") is seen
