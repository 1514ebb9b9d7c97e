"""Every form of message that LangChain knows arrives, and what cannot be scored is named."""

from __future__ import annotations

import base64
import io
from functools import partial
from typing import Any

import pytest
from guardrail_langchain import to_chat
from guardrail_langchain.messages import content_parts
from langchain_core.messages import (
    AIMessage,
    AIMessageChunk,
    ChatMessage,
    FunctionMessage,
    HumanMessage,
    RemoveMessage,
    SystemMessage,
    ToolMessage,
)
from langchain_core.messages.content import create_video_block
from langchain_core.prompts import ChatPromptTemplate, PromptTemplate
from PIL import Image

from guardrail import Policy, UnsupportedContentError
from guardrail.errors import UrlNotAllowedError, VideoDecodeError
from guardrail.inputs.messages import to_request
from guardrail.types import ImagePart, TextPart


def png(colour: str = "red") -> str:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 6), colour).save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()


PNG = png()
URL = f"data:image/png;base64,{PNG}"
CALL = {"name": "find", "args": {"q": "é"}, "id": "c1", "type": "tool_call"}


def read(value: Any) -> Any:
    """What the guard makes of it."""
    return to_request(to_chat(value), policy=Policy()).messages


def parts(value: Any) -> list[Any]:
    """The parts of the last message: texts, and "picture"."""
    return [
        part.text if isinstance(part, TextPart) else "picture" for part in read(value)[-1].parts
    ]


@pytest.mark.parametrize(
    "block",
    [
        {"type": "image", "base64": PNG, "mime_type": "image/png"},
        {"type": "image", "url": URL},
        {"type": "image", "url": URL, "extras": {"detail": "high"}, "id": "lc_1", "index": 0},
        {"type": "image", "source_type": "base64", "data": PNG, "mime_type": "image/png"},
        {"type": "image", "source_type": "url", "url": URL},
        {"type": "image_url", "image_url": {"url": URL, "detail": "low"}},
        {"type": "image_url", "image_url": URL},
        {"type": "input_image", "image_url": URL},
        {
            "type": "image",
            "source": {"type": "base64", "media_type": "image/png", "data": PNG},
        },
    ],
)
@pytest.mark.parametrize(
    "kind", [HumanMessage, lambda content: ToolMessage(content, tool_call_id="c1")]
)
def test_a_picture_arrives_in_every_form(block, kind):
    assert parts([kind([{"type": "text", "text": "see"}, block])]) == ["see", "picture"]


def test_a_picture_keeps_its_pixels():
    [message] = read([HumanMessage([{"type": "image", "base64": png("blue")}])])
    [part] = message.parts
    assert isinstance(part, ImagePart)
    assert part.image.getpixel((0, 0)) == (0, 0, 255)


def test_prompts_and_messages_in_any_form_are_read():
    template = ChatPromptTemplate.from_messages([("system", "be kind"), ("human", "{q}")])
    chat = [{"role": "system", "content": "be kind"}, {"role": "user", "content": "hi"}]
    expected = to_request(chat, policy=Policy()).messages
    assert read(template.invoke({"q": "hi"})) == expected
    assert read([("system", "be kind"), ("human", "hi")]) == expected
    assert read(chat) == expected
    assert read([SystemMessage("be kind"), HumanMessage(["hi"])]) == expected
    assert (
        read("hi")
        == read(HumanMessage("hi"))
        == read(PromptTemplate.from_template("hi").invoke({}))
    )


def test_roles_and_names_are_kept():
    found = read(
        [
            ChatMessage("a", role="developer"),
            HumanMessage("b", name="eve"),
            FunctionMessage("c", name="find"),
            ToolMessage("d", tool_call_id="c1", name="find", status="error"),
        ]
    )
    assert [m.role for m in found] == ["system", "user", "tool", "tool"]
    assert [m.name for m in found] == [None, "eve", "find", "find"]
    assert found[3].tool_call_id == "c1"


@pytest.mark.parametrize(
    "message",
    [
        AIMessage("I look.", tool_calls=[CALL]),
        AIMessageChunk(
            "I look.",
            tool_call_chunks=[
                {
                    "name": "find",
                    "args": '{"q": "é"}',
                    "id": "c1",
                    "index": 0,
                    "type": "tool_call_chunk",
                }
            ],
        ),
        AIMessage(
            ["I look.", {"type": "tool_use", "id": "c1", "name": "find", "input": {"q": "é"}}]
        ),
        AIMessage(
            ["I look.", {"type": "tool_use", "id": "c1", "name": "find", "input": {"q": "é"}}],
            tool_calls=[CALL],
        ),
        AIMessage(
            [{"type": "text", "text": "I look."}, CALL], response_metadata={"output_version": "v1"}
        ),
        AIMessage(
            "I look.",
            additional_kwargs={
                "tool_calls": [
                    {
                        "id": "c1",
                        "function": {"name": "find", "arguments": '{"q": "é"}'},
                        "type": "function",
                    }
                ]
            },
        ),
    ],
)
def test_a_call_is_read_once_wherever_it_stands(message):
    [found] = read([message])
    assert [(c.name, c.arguments, c.id) for c in found.tool_calls] == [("find", {"q": "é"}, "c1")]
    assert found.parts == (TextPart("I look."),)


def test_calls_without_ids_and_broken_ones_are_kept():
    message = AIMessage(
        "",
        tool_calls=[
            {"name": "a", "args": {}, "id": None},
            {"name": "b", "args": {"x": 1}, "id": None},
        ],
        invalid_tool_calls=[{"name": "c", "args": "{broken", "id": "3", "error": "no JSON"}],
    )
    [found] = read([message])
    assert [(c.name, c.arguments) for c in found.tool_calls] == [
        ("a", {}),
        ("b", {"x": 1}),
        ("c", "{broken"),
    ]


def test_what_else_an_answer_says_is_text():
    refused = AIMessage("", additional_kwargs={"refusal": "No."})
    assert "No." in parts([refused])[0]
    older = AIMessage("", additional_kwargs={"function_call": {"name": "f", "arguments": "{}"}})
    assert [c.name for c in read([older])[0].tool_calls] == ["f"]
    thought = AIMessage([{"type": "thinking", "thinking": "hm", "signature": "s"}, "so"])
    assert parts([thought]) == ["hmso"]
    reasoning = AIMessage([{"type": "reasoning", "reasoning": "hm"}, {"type": "reasoning"}, "so"])
    assert parts([reasoning]) == ["hmso"]
    for block in (
        {"type": "reasoning", "summary": [{"type": "summary_text", "text": "hm"}]},
        {
            "type": "reasoning",
            "content": [{"type": "text", "text": "hm"}],
            "encrypted_content": "x",
        },
        {"type": "reasoning", "text": "hm", "id": "rs_1"},
    ):
        assert parts([AIMessage([block, "so"])]) == ["hmso"]
    spoken = AIMessage("so", additional_kwargs={"audio": {"id": "a", "transcript": "hm"}})
    assert parts([spoken]) == ["hmso"]
    provider = {"model_provider": "groq"}
    assert parts([AIMessage([{"type": "text", "text": "so"}], response_metadata=provider)]) == [
        "so"
    ]
    aside = AIMessage("so", additional_kwargs={"reasoning_content": "hm"})
    assert parts([aside]) == ["hmso"]


def test_what_is_cited_is_read():
    block = {"type": "text", "text": "so", "citations": [{"cited_text": "hm", "url": "x"}]}
    assert parts([AIMessage([block])]) == ["sohm"]
    same = {"type": "text", "text": "so", "annotations": [{"type": "citation", "cited_text": "so"}]}
    assert parts([AIMessage([same])]) == ["so"]


def test_a_call_with_the_same_id_and_other_arguments_is_another_call():
    other = {"type": "tool_use", "id": "c1", "name": "find", "input": {"q": "other"}}
    [found] = read([AIMessage(["I look.", other], tool_calls=[CALL])])
    assert [call.arguments for call in found.tool_calls] == [{"q": "é"}, {"q": "other"}]


def test_empty_content_is_empty_text():
    assert parts([ToolMessage([], tool_call_id="1")]) == [""]
    assert content_parts([], "result") == ""


@pytest.mark.parametrize("value", [{"question": "bad"}, {"messages": [HumanMessage("bad")]}, {"a"}])
def test_what_is_no_chat_is_refused_rather_than_read_by_its_keys(value):
    with pytest.raises(UnsupportedContentError, match="no prompt and no chat"):
        to_chat(value)


def test_one_message_as_a_mapping_is_read():
    assert read({"role": "user", "content": "hi"}) == read("hi")


def test_documents_of_text_are_text_with_their_titles():
    source = {"type": "text", "media_type": "text/plain", "data": "words"}
    block = {"type": "document", "source": source, "title": "T", "context": "C"}
    assert parts([HumanMessage([block])]) == ["T\nC\nwords"]
    block = {"type": "text-plain", "text": "words", "mime_type": "text/plain", "title": "T"}
    assert parts([HumanMessage([block])]) == ["T\nwords"]


def test_plain_text_files_are_text():
    block = {"type": "text-plain", "text": "notes", "mime_type": "text/plain"}
    assert parts([HumanMessage([block])]) == ["notes"]


def film() -> str:
    frames = [Image.new("RGB", (8, 6), colour) for colour in ("red", "blue", "green")]
    buffer = io.BytesIO()
    frames[0].save(buffer, "GIF", save_all=True, append_images=frames[1:], duration=500)
    return base64.b64encode(buffer.getvalue()).decode()


FILM = film()
FILM_URL = f"data:image/gif;base64,{FILM}"


@pytest.mark.parametrize(
    "block",
    [
        create_video_block(base64=FILM, mime_type="image/gif"),
        create_video_block(url=FILM_URL),
        {"type": "video", "base64": FILM, "mime_type": "image/gif", "extras": {"detail": "low"}},
        {"type": "video", "source_type": "base64", "data": FILM, "mime_type": "image/gif"},
        {"type": "video", "source": {"type": "base64", "media_type": "image/gif", "data": FILM}},
        {"type": "video_url", "video_url": {"url": FILM_URL}},
        {"type": "input_video", "video_url": FILM_URL},
    ],
)
@pytest.mark.parametrize("kind", [HumanMessage, partial(ToolMessage, tool_call_id="c1")])
def test_a_video_arrives_in_every_form(block, kind):
    (message,) = read([kind(["look: ", block])])
    assert message.parts[0] == TextPart("look: ")
    assert message.parts[1].clip.times == pytest.approx((0.0, 0.5, 1.0))


def test_a_video_that_cannot_be_read_is_an_error():
    with pytest.raises(UrlNotAllowedError, match=r"x\.invalid"):
        read([HumanMessage([create_video_block(url="https://x.invalid/a.mp4")])])
    with pytest.raises(VideoDecodeError, match="no video of a known format"):
        read([HumanMessage([create_video_block(base64="AAAA", mime_type="video/mp4")])])


@pytest.mark.parametrize(
    ("block", "named"),
    [
        ({"type": "audio", "base64": "AAAA", "mime_type": "audio/wav"}, "audio"),
        ({"type": "video", "file_id": "f1"}, "file_id"),
        ({"type": "media", "mime_type": "video/mp4", "data": "AAAA"}, "media"),
        ({"type": "file", "base64": "AAAA", "mime_type": "application/pdf"}, "file"),
        ({"type": "document", "source": {"type": "url", "url": "https://x.invalid"}}, "file"),
        ({"type": "brand_new", "content": "x"}, "brand_new"),
        ({"type": "server_tool_result", "tool_call_id": "1", "output": "x"}, "server_tool_result"),
        ({"type": "image", "file_id": "f1"}, "file_id"),
        ({"type": "image", "url": URL, "caption": "unseen"}, "caption"),
        ({"type": "image", "url": URL, "extras": {"caption": "unseen"}}, "caption"),
        ({"type": "image_url", "image_url": {"url": URL}, "caption": "unseen"}, "caption"),
        (
            {
                "type": "image",
                "source": {"type": "base64", "media_type": "image/png", "data": PNG},
                "title": "unseen",
            },
            "title",
        ),
        ({"type": "text", "text": "hi", "foo": "unseen"}, "foo"),
    ],
)
def test_a_block_that_cannot_be_scored_is_named(block, named):
    with pytest.raises(UnsupportedContentError, match=named):
        read([HumanMessage(["hi", block])])


def test_a_message_that_no_model_reads_is_named():
    with pytest.raises(UnsupportedContentError, match="RemoveMessage"):
        to_chat([RemoveMessage("1")])


def test_content_of_tools_is_read_alike():
    assert content_parts("42", "result") == "42"
    found = content_parts(["42", {"type": "image_url", "image_url": {"url": URL}}], "result")
    assert [part["type"] for part in found] == ["text", "image_url"]
