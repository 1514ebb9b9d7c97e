from __future__ import annotations

import base64
import io
from pathlib import Path

import pytest
from PIL import Image

from guardrail.errors import UnsupportedContentError
from guardrail.front.chats import canonical_argument, is_history, joined, with_caution
from guardrail.inputs.canonical import require_one_reading
from guardrail.inputs.messages import to_request
from guardrail.policy import Policy
from guardrail.types import Message, Request, TextPart

RED, BLUE = (Image.new("RGB", (4, 4), colour) for colour in ("red", "blue"))

HISTORY = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}]


def text(value):
    return {"type": "text", "text": value}


def image(value):
    return {"type": "image", "image": value}


def video(value):
    return {"type": "video", "video": value}


def user(*parts):
    return {"role": "user", "content": list(parts)}


def system(words):
    return {"role": "system", "content": words}


@pytest.mark.parametrize(
    ("named", "wanted"),
    [
        ([("prompt", "hello")], [user(text("hello"))]),
        ([("prompt", "hello"), ("image", RED)], [user(text("hello"), image(RED))]),
        ([("image", RED), ("prompt", "hello")], [user(image(RED), text("hello"))]),
        ([("images", [RED, BLUE])], [user(image(RED), image(BLUE))]),
        ([("image", b"bytes")], [user(image(b"bytes"))]),
        ([("image", "data:image/png;base64,AAAA")], [user(image("data:image/png;base64,AAAA"))]),
        ([("image", Path("a.png"))], [user(image(Path("a.png")))]),
        ([("photo", RED)], [user(image(RED))]),
        ([("video", b"bytes"), ("prompt", "a")], [user(video(b"bytes"), text("a"))]),
        ([("video_url", "https://a/b.mp4")], [user(video("https://a/b.mp4"))]),
        ([("videos", [b"a", Path("b.mp4")])], [user(video(b"a"), video(Path("b.mp4")))]),
        ([("video", [RED, BLUE])], [user(video([RED, BLUE]))]),
        ([("videos", [[RED, BLUE], b"a"])], [user(video([RED, BLUE]), video(b"a"))]),
        ([("video", [])], []),
        ([("video", None), ("prompt", "a")], [user(text("a"))]),
        ([("question", "a"), ("context", "b")], [user(text("a\n\nb"))]),
        ([("prompt", ["a", "b"])], [user(text("a\n\nb"))]),
        ([("prompt", ("a", RED, "b"))], [user(text("a"), image(RED), text("b"))]),
        ([("prompt", "data:image/png;base64,AAAA")], [user(text("data:image/png;base64,AAAA"))]),
        (
            [("prompt", "hello"), ("system", "Be brief.")],
            [system("Be brief."), user(text("hello"))],
        ),
        (
            [("system", "Be brief."), ("instructions", "Be kind."), ("prompt", "hello")],
            [system("Be brief.\n\nBe kind."), user(text("hello"))],
        ),
        (
            [("prompt", "hello"), ("system_prompt", "A."), ("system_instruction", "B.")],
            [system("A.\n\nB."), user(text("hello"))],
        ),
        (
            [("image_url", "a.png"), ("image_urls", ["b.png"])],
            [user(image("a.png"), image("b.png"))],
        ),
        ([("system", None), ("prompt", "hello"), ("image", None)], [user(text("hello"))]),
        ([("system", "Be brief."), ("prompt", None)], [system("Be brief.")]),
        ([("history", HISTORY), ("prompt", "more")], [*HISTORY, user(text("more"))]),
        ([("prompt", "first"), ("history", HISTORY)], [user(text("first")), *HISTORY]),
        ([("history", []), ("prompt", "more")], [user(text("more"))]),
        (
            [("system", "Be brief."), ("messages", [system("Be kind."), *HISTORY])],
            [system("Be brief.\n\nBe kind."), *HISTORY],
        ),
        ([("prompt", None), ("images", []), ("frames", None)], []),
        (
            [("frames", ["a.png", "b.png"]), ("prompt", "what?")],
            [user({"type": "video", "video": ["a.png", "b.png"]}, text("what?"))],
        ),
    ],
)
def test_arguments_are_joined_in_order_into_one_chat(named, wanted):
    assert joined(named) == wanted


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("prompt", 3, "'prompt' holds a int"),
        ("prompt", b"bytes", "'prompt' holds a bytes, .* name pictures image"),
        ("prompt", {"role": "user", "content": "bad"}, "'prompt' holds a dict"),
        ("prompt", ["fine", 3], "'prompt' holds a int"),
        ("image", 3, "'image' holds a int"),
        ("images", [RED, None], "'images' holds a NoneType"),
        ("video", 3, "'video' holds a int"),
        ("videos", [b"a", RED], "'videos' holds a Image"),
        ("system", RED, "'system' holds a Image"),
        ("history", [{"content": "bad"}], "'history' holds a dict"),
        ("history", [*HISTORY, "bad"], "'history' holds a dict"),
        ("request", Request((Message(role="user", parts=(TextPart("bad"),)),)), "'request' holds"),
    ],
)
def test_a_value_of_another_type_is_an_error_that_names_the_argument(name, value, words):
    with pytest.raises(UnsupportedContentError, match=words):
        joined([("first", "fine"), (name, value)])


@pytest.mark.parametrize(
    ("value", "wanted"), [(HISTORY, True), (tuple(HISTORY), True), ([], False), (["a"], False)]
)
def test_a_list_of_messages_is_history(value, wanted):
    assert is_history(value) is wanted


def test_what_is_joined_is_a_request_like_any_other():
    request = to_request(
        joined([("system", "Be brief."), ("prompt", "What?"), ("images", [RED, BLUE])]),
        policy=Policy(),
    )
    assert [message.role for message in request.messages] == ["system", "user"]
    assert [picture.getpixel((0, 0)) for picture in request.images] == [(255, 0, 0), (0, 0, 255)]
    (seen,) = to_request(joined([("video", [RED, BLUE])]), policy=Policy()).videos
    assert [frame.getpixel((0, 0)) for frame in seen.clip.frames] == [(255, 0, 0), (0, 0, 255)]


def encoded(mode="RGBA"):
    file = io.BytesIO()
    Image.new(mode, (4, 4)).save(file, "PNG")
    return file.getvalue()


def base64_of(data):
    return base64.b64encode(data).decode()


CLEAR = encoded()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("image", CLEAR),
        ("image", bytearray(CLEAR)),
        ("images", [CLEAR, CLEAR]),
        ("images", (CLEAR,)),
        ("image_url", f"data:image/png;base64,{base64_of(CLEAR)}"),
        ("image", base64_of(CLEAR)),
        ("image", Image.new("RGBA", (4, 4))),
        ("prompt", Image.new("RGBA", (4, 4))),
        ("history", [{"role": "user", "content": [image(CLEAR)]}]),
    ],
)
def test_an_arguments_pictures_become_canonical_in_the_form_they_have(name, value):
    kept = canonical_argument(name, value, Policy())
    assert type(kept) is (bytes if isinstance(value, bytearray) else type(value))
    require_one_reading(joined([(name, kept)]), Policy())
    if isinstance(value, str):
        assert kept[:5] == ("data:" if value.startswith("data:") else "iVBOR")


@pytest.mark.parametrize(
    ("name", "value"),
    [("prompt", "a.png"), ("prompt", base64_of(CLEAR)), ("image", 3), ("video", CLEAR)],
)
def test_other_arguments_stay_as_they_are(name, value):
    assert canonical_argument(name, value, Policy()) is value


TOOL = {"type": "function", "function": {"name": "find", "parameters": {}}}

SYSTEM = Message(role="system", parts=(TextPart("Be brief."),))

USER = Message(role="user", parts=(TextPart("hello"),))


@pytest.mark.parametrize(
    ("messages", "words"),
    [((USER,), "Careful."), ((SYSTEM, USER), "Careful.\n\nBe brief.")],
    ids=["no system", "system"],
)
def test_a_cautioned_request_keeps_its_other_messages_and_its_tools(messages, words):
    cautioned = with_caution(Request(messages, (TOOL,)), "Careful.")
    system = Message(role="system", parts=(TextPart(words),))
    assert cautioned == Request((system, USER), (TOOL,))


@pytest.mark.parametrize("value", [None, [], b"bytes", 3, {"role": "user"}, ["text"]])
def test_other_forms_have_no_place_for_words(value):
    assert with_caution(value, "Careful.") is None
