"""LlamaIndex's messages as a guard reads them.

Pictures of nodes and documents.
"""

from __future__ import annotations

import base64
import io
import json

import pytest
from guardrail_llamaindex import to_messages
from guardrail_llamaindex.messages import (
    document_parts,
    node_pictures,
    node_videos,
    to_parts,
    to_tools,
    tool_calls,
)
from llama_index.core.base.llms import types
from llama_index.core.llms import (
    AudioBlock,
    ChatMessage,
    DocumentBlock,
    ImageBlock,
    MessageRole,
    TextBlock,
)
from llama_index.core.schema import ImageDocument, ImageNode, MediaResource, Node, TextNode
from llama_index.core.tools import FunctionTool
from PIL import Image
from pydantic import BaseModel

from guardrail.errors import UnsupportedContentError, UrlNotAllowedError
from guardrail.inputs.messages import to_request
from guardrail.policy import Policy

CALL = {
    "type": "function",
    "id": "c1",
    "function": {"name": "look", "arguments": '{"where": "here"}'},
}

needs_call_blocks = pytest.mark.skipif(
    not hasattr(types, "ToolCallBlock"), reason="this LlamaIndex has no tool call blocks"
)


def test_a_chat_becomes_openai_messages_in_order():
    chat = [
        ChatMessage(role="system", content="Be brief."),
        ChatMessage(role="user", blocks=[TextBlock(text="One."), TextBlock(text=" Two.")]),
        ChatMessage(role="assistant", content="Three."),
    ]
    assert to_messages(chat) == [
        {"role": "system", "content": [{"type": "text", "text": "Be brief."}]},
        {
            "role": "user",
            "content": [{"type": "text", "text": "One."}, {"type": "text", "text": " Two."}],
        },
        {"role": "assistant", "content": [{"type": "text", "text": "Three."}]},
    ]


@pytest.mark.parametrize("role", list(MessageRole))
def test_every_role_is_one_that_a_guard_reads(role):
    request = to_request(to_messages([ChatMessage(role=role, content="Hi")]), policy=Policy())
    known = {"function": "tool", "chatbot": "assistant", "model": "assistant"}
    known["developer"] = "system"
    assert request.messages[0].role == known.get(role.value, role.value)


@pytest.mark.parametrize("place", ["bytes", "base64", "path", "data url", "file url"])
def test_a_picture_arrives_pixel_for_pixel_wherever_it_is(place, picture, png, tmp_path):
    encoded = base64.b64encode(png()).decode()
    file = tmp_path / "a.png"
    file.write_bytes(png())
    blocks = {
        "bytes": lambda: ImageBlock(image=png()),
        "base64": lambda: ImageBlock(image=encoded.encode()),
        "path": lambda: ImageBlock(path=file),
        "data url": lambda: ImageBlock(url=f"data:image/png;base64,{encoded}"),
        "file url": lambda: ImageBlock(url=file.as_uri()),
    }
    chat = [ChatMessage(role="user", blocks=[blocks[place](), TextBlock(text="What is this?")])]
    request = to_request(to_messages(chat), policy=Policy())
    assert request.images[0].tobytes() == picture().tobytes()


@pytest.mark.parametrize("raw", [True, False])
def test_bytes_put_into_a_block_afterwards_are_read_too(raw, picture, png):
    block = ImageBlock(image=png(1))
    block.image = png() if raw else io.BytesIO(png())
    chat = [{"role": "user", "content": to_parts([block], "it")}]
    assert to_request(chat, policy=Policy()).images[0].tobytes() == picture().tobytes()


def test_of_several_places_the_one_is_read_that_llamaindex_would_read(png, picture, tmp_path):
    file = tmp_path / "a.png"
    file.write_bytes(png(1))
    block = ImageBlock(image=png(), path=file, url="https://a.invalid/b.png")
    request = to_request(to_messages([ChatMessage(blocks=[block])]), policy=Policy())
    assert [image.tobytes() for image in request.images] == [picture().tobytes()]


def test_remote_addresses_are_left_to_the_policy():
    chat = to_messages([ChatMessage(blocks=[ImageBlock(url="https://a.invalid/b.png")])])
    with pytest.raises(UrlNotAllowedError, match=r"a\.invalid"):
        to_request(chat, policy=Policy())


def test_legacy_images_are_read_once(png):
    document = ImageDocument(image=base64.b64encode(png()).decode())
    message = ChatMessage(content="What?", additional_kwargs={"images": [document]})
    assert len(to_request(to_messages([message]), policy=Policy()).images) == 1


def test_a_block_without_a_picture_is_an_error():
    with pytest.raises(UnsupportedContentError, match=r"messages\[0\]\.blocks\[0\] holds no"):
        to_messages([ChatMessage(blocks=[ImageBlock()])])


def film():
    frames = [Image.new("RGB", (8, 6), colour) for colour in ("red", "blue", "green")]
    buffer = io.BytesIO()
    frames[0].save(buffer, "GIF", save_all=True, append_images=frames[1:], duration=500)
    return buffer.getvalue()


@pytest.mark.skipif(not hasattr(types, "VideoBlock"), reason="a younger LlamaIndex has videos")
def test_a_video_block_arrives_from_every_place(tmp_path):
    (path := tmp_path / "v.gif").write_bytes(film())
    url = f"data:image/gif;base64,{base64.b64encode(film()).decode()}"
    for given in ({"video": film()}, {"video": io.BytesIO(film())}, {"path": path}, {"url": url}):
        block = types.VideoBlock(**given, fps=1, detail="low")
        chat = to_messages([ChatMessage(blocks=[TextBlock(text="look"), block])])
        (message,) = to_request(chat, policy=Policy()).messages
        assert message.parts[1].clip.times == pytest.approx((0.0, 0.5, 1.0))
    with pytest.raises(UnsupportedContentError, match=r"blocks\[0\] holds no video"):
        to_messages([ChatMessage(blocks=[types.VideoBlock()])])


def _others():
    yield AudioBlock(audio=b"RIFF")
    yield DocumentBlock(data=b"%PDF", title="a")
    yield types.CitableBlock(title="a", source="b", content="c")
    yield types.CitationBlock(title="a", source="b", cited_content="c", additional_location_info={})
    if hasattr(types, "ThinkingBlock"):
        yield types.ThinkingBlock(content="hm")


@pytest.mark.parametrize("block", list(_others()), ids=lambda block: type(block).__name__)
def test_other_blocks_are_refused_by_name(block):
    chat = [ChatMessage(blocks=[TextBlock(text="a"), block])]
    with pytest.raises(
        UnsupportedContentError, match=rf"messages\[0\]\.blocks\[1\] is a {type(block).__name__}"
    ):
        to_messages(chat)


def test_a_cache_point_says_nothing():
    point = types.CachePoint(cache_control=types.CacheControl(type="ephemeral"))
    chat = to_messages([ChatMessage(blocks=[TextBlock(text="a"), point])])
    assert chat[0]["content"] == [{"type": "text", "text": "a"}]


def test_a_turn_without_blocks_is_an_empty_text():
    assert to_messages([ChatMessage(role="tool", blocks=[])]) == [{"role": "tool", "content": ""}]


def test_calls_and_results_keep_their_names_and_ids():
    chat = to_messages(
        [
            ChatMessage(role="assistant", additional_kwargs={"tool_calls": [CALL]}),
            ChatMessage(
                role="tool",
                content="A dog.",
                additional_kwargs={"tool_call_id": "c1", "name": "look", "session_id": "s"},
            ),
        ]
    )
    assert chat == [
        {"role": "assistant", "content": "", "tool_calls": [CALL]},
        {
            "role": "tool",
            "content": [{"type": "text", "text": "A dog."}],
            "tool_call_id": "c1",
            "name": "look",
        },
    ]
    called = to_request(chat, policy=Policy()).messages[0].tool_calls[0]
    assert (called.name, called.arguments, called.id) == ("look", {"where": "here"}, "c1")


@needs_call_blocks
@pytest.mark.parametrize("arguments", [{"where": "here"}, '{"where": "here"}'])
def test_a_call_in_a_block_and_in_the_keywords_counts_once(arguments):
    block = types.ToolCallBlock(tool_call_id="c1", tool_name="look", tool_kwargs=arguments)
    message = ChatMessage(
        role="assistant",
        blocks=[TextBlock(text="I look."), block],
        additional_kwargs={"tool_calls": [CALL]},
    )
    (turn,) = to_messages([message])
    assert turn["content"] == [{"type": "text", "text": "I look."}]
    assert [call["id"] for call in turn["tool_calls"]] == ["c1"]


@needs_call_blocks
def test_calls_that_differ_are_both_read():
    block = types.ToolCallBlock(tool_call_id="c1", tool_name="look", tool_kwargs={"where": "x"})
    message = ChatMessage(
        role="assistant", blocks=[block], additional_kwargs={"tool_calls": [CALL]}
    )
    assert len(tool_calls(message)) == 2


def test_calls_kept_as_objects_are_read():
    class Function(BaseModel):
        name: str = "look"
        arguments: str = "{}"

    class Call(BaseModel):
        id: str = "c1"
        type: str = "function"
        function: Function = Function()

    message = ChatMessage(role="assistant", additional_kwargs={"tool_calls": [Call()]})
    (call,) = to_request(to_messages([message]), policy=Policy()).messages[0].tool_calls
    assert (call.name, call.arguments) == ("look", {})


def test_an_unknown_keyword_with_content_is_an_error():
    message = ChatMessage(content="a", additional_kwargs={"reasoning": "b", "empty": None})
    with pytest.raises(UnsupportedContentError, match="'reasoning'"):
        to_messages([message])


def test_a_tool_becomes_a_function_schema_under_its_own_name():
    def look(where: str) -> str:
        """Look somewhere."""
        return where

    tool = FunctionTool.from_defaults(look, name="look here", description="x" * 2000)
    ready = {"type": "function", "function": {"name": "other", "parameters": {}}}
    first, second = to_tools([tool, ready])
    assert second is ready
    assert first["function"]["name"] == "look here"
    assert first["function"]["description"] == "x" * 2000
    assert first["function"]["parameters"]["properties"]["where"]["type"] == "string"
    json.dumps(first)


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
