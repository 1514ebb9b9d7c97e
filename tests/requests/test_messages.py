from __future__ import annotations

import base64
from collections import OrderedDict
from io import BytesIO
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from pydantic import BaseModel

from guardrail.errors import (
    ImageDecodeError,
    InputError,
    LimitExceededError,
    UnsupportedContentError,
    UrlNotAllowedError,
)
from guardrail.policy import Limits, Policy
from guardrail.requests.messages import to_request
from guardrail.types import ImagePart, Message, Request, TextPart

if TYPE_CHECKING:
    from pathlib import Path


def encoded(image: Image.Image) -> bytes:
    buffer = BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


RED = Image.new("RGB", (4, 2), (255, 0, 0))
PNG = encoded(RED)
BASE64 = base64.b64encode(PNG).decode()
DATA_URL = f"data:image/png;base64,{BASE64}"
CALL = {"id": "c1", "type": "function", "function": {"name": "find", "arguments": '{"q": "é"}'}}
OLDER = {"name": "find", "arguments": '{"q": "é"}'}
CALL_TEXT = '{"name": "find", "arguments": {"q": "é"}}'


def request(value: Any, *, policy: Policy | None = None, **limits: int) -> Request:
    return to_request(value, policy=policy or Policy(limits=Limits(**limits)))


def user(content: Any, **more: Any) -> dict[str, Any]:
    return {"role": "user", "content": content, **more}


def assistant(content: Any = None, **more: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": content, **more}


def shown(value: Any) -> list[tuple[str, ...]]:
    """Role and parts of every message; a picture as its pixels' colour."""

    def part(value: TextPart | ImagePart) -> str:
        return value.text if isinstance(value, TextPart) else str(value.image.getpixel((0, 0)))

    return [(m.role, *map(part, m.parts)) for m in request(value).messages]


def refused(value: Any, says: str, kind: type[InputError] = UnsupportedContentError) -> None:
    with pytest.raises(InputError, match=says) as caught:
        request(value)
    assert type(caught.value) is kind


# ---- accepted forms


def test_a_str_is_one_user_message() -> None:
    assert request("hello") == Request((Message(role="user", parts=(TextPart("hello"),)),))


def test_a_picture_is_one_user_message_and_is_copied() -> None:
    [message] = request(RED).messages
    [part] = message.parts
    assert isinstance(part, ImagePart)
    assert part.image is not RED
    assert part.image.tobytes() == RED.tobytes()


def test_a_message_a_list_and_a_tuple_of_messages_give_the_same_request() -> None:
    message = user("hello")
    assert request(message) == request([message]) == request((OrderedDict(message),))


def test_roles_are_kept_and_developer_becomes_system() -> None:
    roles = ("developer", "system", "user", "assistant", "tool")
    chat = [{"role": role, "content": role} for role in roles]
    assert [m.role for m in request(chat).messages] == ["system", *roles[1:]]


@pytest.mark.parametrize(
    "part",
    [
        {"type": "image_url", "image_url": {"url": DATA_URL, "detail": "low"}},
        {"type": "image_url", "image_url": DATA_URL},
        {"type": "input_image", "image_url": DATA_URL, "file_id": None},
        {"type": "image", "image": RED},
        {"type": "image", "image": PNG},
        {"type": "image", "image": bytearray(PNG)},
        {"type": "image", "image": DATA_URL},
        {"type": "image", "image": BASE64},
        {"type": "image", "url": DATA_URL},
        {"type": "image", "base64": BASE64, "mime_type": "image/png"},
        {"type": "image", "source_type": "base64", "data": BASE64},
        {"type": "image", "data": PNG, "media_type": "image/png"},
        {"type": "image", "base64": DATA_URL},
    ],
)
def test_every_form_of_picture_is_read(part: dict[str, Any]) -> None:
    content = [{"type": "text", "text": "a"}, part, {"type": "input_text", "text": "b"}]
    assert shown([user(content)]) == [("user", "a", "(255, 0, 0)", "b")]


def test_pictures_are_read_from_paths(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(PNG)
    for source in (
        {"image": path},
        {"image": str(path)},
        {"path": str(path)},
        {"path": path},
        {"url": path.as_uri()},
    ):
        assert shown(user([{"type": "image", **source}])) == [("user", "(255, 0, 0)")]


def test_the_policy_rules_files_and_hosts(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(PNG)
    policy = Policy(local_files=False)
    with pytest.raises(UnsupportedContentError, match="local_files"):
        request(user([{"type": "image", "path": tmp_path / "a.png"}]), policy=policy)
    refused(
        user([{"type": "image_url", "image_url": "https://example.com/a.png"}]),
        r"messages\[0\]\.content\[0\]\.image_url.*allowed_hosts",
        UrlNotAllowedError,
    )


def test_neighbouring_texts_are_joined_as_they_are() -> None:
    content = ["a ", {"type": "text", "text": ""}, {"type": "output_text", "text": "b"}, "\0"]
    assert shown(user(content)) == [("user", "a b\0")]


@pytest.mark.parametrize("value", ["", user(""), user([{"type": "text", "text": ""}])])
def test_empty_text_is_a_text(value: Any) -> None:
    assert shown(value) == [("user", "")]


def test_a_tool_message_keeps_its_name_and_id() -> None:
    tool = {"role": "tool", "tool_call_id": "c1", "name": "find", "status": "success"}
    [message] = request({**tool, "content": [{"type": "text", "text": "42"}]}).messages
    assert (message.name, message.tool_call_id) == ("find", "c1")
    assert message.parts == (TextPart("42"),)


# ---- what an assistant says beside its content


def test_a_refusal_becomes_text_and_calls_stay_calls() -> None:
    assert shown(assistant(refusal="No.")) == [("assistant", "No.")]
    assert shown(assistant([{"type": "refusal", "refusal": "No."}])) == [("assistant", "No.")]
    assert shown(assistant("Well.", refusal="No.")) == [("assistant", "Well.\nNo.")]
    [message] = request(assistant("I look.", tool_calls=[CALL], function_call=OLDER)).messages
    assert message.parts == (TextPart("I look."),)
    assert [call.id for call in message.tool_calls] == ["c1", ""]


def test_a_call_needs_no_content_beside_it() -> None:
    for content in (None, "", []):
        [message] = request(assistant(content, tool_calls=[CALL])).messages
        assert len(message.tool_calls) == 1


@pytest.mark.parametrize(
    ("call", "says"),
    [
        ("find", "str"),
        ({"type": "custom", "custom": {"name": "a", "input": "b"}}, "custom"),
        ({"function": {"name": "a", "arguments": "{}", "more": 1}}, "more"),
        ({"function": "a"}, r"tool_calls\[0\]\.function is a str"),
        ({"function": {"arguments": "{}"}}, "name must be a str"),
        ({"name": "a", "args": {"x": 1}, "arguments": "{}"}, "arguments"),
        ({"function": {"name": "a", "arguments": {"x": object()}}}, "JSON"),
    ],
)
def test_a_tool_call_that_is_not_understood_is_refused(call: Any, says: str) -> None:
    refused(assistant(tool_calls=[call]), says)


def test_only_an_assistant_calls_tools() -> None:
    refused(user("a", tool_calls=[CALL]), "only an assistant")
    refused(assistant("a", tool_calls="find"), "must be a list")


# ---- nothing is dropped


@pytest.mark.parametrize("key", ["audio", "reasoning_content", "context", 7])
def test_a_key_with_content_is_refused_by_name_and_an_empty_one_is_not(key: Any) -> None:
    refused(assistant("a", **{}) | {key: {"id": "x"}}, f"messages\\[0\\] has the key '{key}'")
    empties: tuple[object, ...] = (None, "", [], {})
    for empty in empties:
        assert shown(assistant("a") | {key: empty}) == [("assistant", "a")]


@pytest.mark.parametrize(
    ("part", "says"),
    [
        ({"type": "text", "text": "a", "annotations": [1]}, "annotations"),
        ({"type": "image", "image": RED, "alt": "words"}, "alt"),
        ({"type": "image_url", "image_url": {"url": DATA_URL, "alt": "words"}}, "alt"),
        ({"type": "input_image", "file_id": "f"}, "file_id"),
        ({"type": "image", "image": RED, "url": DATA_URL}, "exactly one"),
        ({"type": "image"}, "exactly one"),
        ({"type": "image", "image": 3}, "is a int"),
        ({"type": "image_url", "image_url": {}}, "is a NoneType"),
        ({"type": "image", "base64": BASE64, "mime_type": 3}, "media type"),
        ({"type": "video", "video": b"", "alt": "words"}, "alt"),
        ({"type": "video_url", "video_url": {"url": "x", "alt": "words"}}, "alt"),
        ({"type": "video_file", "video": "a.mp4"}, "video_file.*accepted are text"),
        ({"type": "input_audio", "input_audio": {}}, "input_audio.*accepted are text"),
        ({"type": "file", "file": {}}, "file"),
        ({"type": ["text"]}, "needs a 'type'"),
        ({"text": "a"}, "needs a 'type'"),
        ({"type": "text"}, "must be a str, not NoneType"),
        (RED, r"messages\[0\].content\[0\] is a Image"),
    ],
)
def test_a_part_that_is_not_understood_is_refused(part: Any, says: str) -> None:
    refused(user([part]), says)


def test_a_declared_media_type_must_fit() -> None:
    part = {"type": "image", "base64": BASE64, "mime_type": "image/jpeg"}
    refused(user([part]), "holds PNG", ImageDecodeError)


def test_text_in_a_base64_key_is_never_a_path(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(PNG)
    part = {"type": "image", "base64": str(tmp_path / "a.png")}
    refused(user([part]), "base64", ImageDecodeError)


@pytest.mark.parametrize(
    ("value", "says"),
    [
        ([], "no messages"),
        ((), "no messages"),
        (user(None), "no content"),
        (user([]), "no content"),
        (assistant(tool_calls=[]), "no content"),
        (assistant(None, refusal=None, tool_calls=None), "no content"),
        (user({"type": "text", "text": "a"}), "is a dict"),
        (user(3), "is a int"),
        (user("a", name=3), "name must be a str"),
        ({"content": "a"}, "no role"),
        ({"role": "function", "content": "a"}, "'function'.*accepted: system"),
        ({"role": ["user"], "content": "a"}, "role"),
        ({"type": "function_call_output", "output": "a"}, "no role"),
        (user("a", type="reasoning"), "reasoning"),
        (["a"], r"messages\[0\] is a str"),
        (None, "NoneType"),
        (b"a", "bytes"),
        (3, "int"),
        (iter([]), "list_iterator"),
    ],
)
def test_a_message_that_is_not_understood_is_refused(value: Any, says: str) -> None:
    refused(value, says)


def test_objects_of_other_libraries_are_refused_by_name() -> None:
    class HumanMessage(BaseModel):
        role: str = "user"
        content: str = "a"

    refused([HumanMessage()], "HumanMessage.*model_dump")
    assert shown([HumanMessage().model_dump()]) == [("user", "a")]


@pytest.mark.parametrize("value", ["a\ud800", user("\udfff"), user("a", name="\ud800")])
def test_lone_surrogates_are_refused(value: Any) -> None:
    refused(value, "lone surrogate")


# ---- limits


def exceeded(value: Any, limit: str, found: int, **limits: int) -> None:
    with pytest.raises(LimitExceededError) as caught:
        request(value, **limits)
    assert (caught.value.limit, caught.value.found) == (limit, found)


def test_messages_text_and_pictures_are_bounded_inclusively() -> None:
    chat = [user("abc"), assistant("de"), user([{"type": "image", "image": RED}])]
    assert len(request(chat, messages=3, text_chars=5, images=1).messages) == 3
    exceeded(chat, "messages", 3, messages=2)
    exceeded(chat, "text_chars", 5, text_chars=4)
    exceeded(chat, "images", 1, images=0)
    exceeded("abc", "text_chars", 3, text_chars=2)
    exceeded(RED, "images", 1, images=0)
    exceeded(RED, "image_pixels", 8, image_pixels=7)


def test_pixels_are_summed_over_all_pictures_inclusively() -> None:
    part = {"type": "image", "image": RED}
    chat = [user([part, part]), user([part])]
    assert len(request(chat, total_pixels=24).images) == 3
    exceeded(chat, "total_pixels", 24, total_pixels=23)
    exceeded(RED, "total_pixels", 8, total_pixels=7)
    exceeded(request(chat), "total_pixels", 24, total_pixels=23)


def test_no_picture_is_decoded_once_the_pixels_are_used_up() -> None:
    part, broken = {"type": "image", "image": RED}, {"type": "image", "image": b"no picture"}
    exceeded([user([part, part, broken])], "total_pixels", 16, total_pixels=15)


def test_names_and_tool_calls_count_as_they_are_rendered() -> None:
    exceeded(user("a", name="bc"), "text_chars", 3, text_chars=2)
    size = len(f"ac1{CALL_TEXT}")  # the content, the call's id, the call
    chat = assistant("a", tool_calls=[CALL])
    first = request(chat, text_chars=size)
    assert request(first, text_chars=size) == first
    exceeded(chat, "text_chars", size, text_chars=size - 1)


def test_too_many_pictures_are_refused_before_one_is_decoded() -> None:
    broken = {"type": "image", "image": b"no picture"}
    exceeded(user([broken, broken, broken]), "images", 3, images=2)


def test_cyclic_and_shared_arguments_stay_bounded() -> None:
    cyclic: list[Any] = []
    cyclic.append(cyclic)
    deep: list[Any] = []
    for _ in range(5000):
        deep = [deep]
    shared: list[Any] = ["a"]
    for _ in range(60):  # 2 ** 60 leaves, were they written out
        shared = [shared, shared]
    for value in (cyclic, deep):
        refused(assistant(tool_calls=[{"function": {"name": "a", "arguments": value}}]), "JSON")
    call = {"function": {"name": "a", "arguments": shared}}
    with pytest.raises(LimitExceededError):
        request(assistant(tool_calls=[call]), text_chars=1000)


# ---- requests that were built before


def test_a_request_passes_unchanged_and_its_pictures_are_not_copied() -> None:
    first = request([user(["a", {"type": "image", "image": RED}], name="n"), assistant("b")])
    again = request(first)
    assert again == first
    assert again.images[0] is first.images[0]


def test_a_requests_limits_are_checked_again() -> None:
    first = request([user(["abc", {"type": "image", "image": RED}]), assistant("b")])
    exceeded(first, "messages", 2, messages=1)
    exceeded(first, "text_chars", 4, text_chars=3)
    exceeded(first, "images", 1, images=0)
    exceeded(first, "image_pixels", 8, image_pixels=7)


def test_a_request_built_by_hand_is_brought_into_form() -> None:
    clear = Image.new("RGBA", (1, 1), (0, 0, 0, 0))
    parts = (TextPart("a"), TextPart("b"), ImagePart(clear), ImagePart(Image.open(BytesIO(PNG))))
    [message] = request(Request((Message(role="user", parts=parts),))).messages
    text, white, red = message.parts
    assert text == TextPart("ab")
    for part, colour in ((white, (255, 255, 255)), (red, (255, 0, 0))):
        assert isinstance(part, ImagePart)
        assert type(part.image) is Image.Image
        assert part.image.getpixel((0, 0)) == colour


@pytest.mark.parametrize(
    ("built", "says"),
    [
        (Request(()), "no messages"),
        (Request((Message(role="user", parts=()),)), "parts"),
        (Request((Message(role="developer", parts=(TextPart("a"),)),)), "developer"),
        (Request((Message(role="user", parts=(TextPart("\ud800"),)),)), "surrogate"),
    ],
)
def test_a_request_that_cannot_be_is_refused(built: Request, says: str) -> None:
    refused(built, says)


# ---- anything at all

SCALARS = st.one_of(
    st.none(), st.booleans(), st.integers(), st.text(max_size=5), st.binary(max_size=5)
)
WORDS = st.sampled_from(
    ["role", "content", "user", "assistant", "tool", "type", "text", "image", "image_url", "url",
     "tool_calls", "function", "name", "arguments", "refusal", "base64"]
)  # fmt: skip
VALUES = st.recursive(
    SCALARS | WORDS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(WORDS | SCALARS, inner, max_size=4),
    max_leaves=12,
)
MESSAGES = st.fixed_dictionaries(
    {"role": st.sampled_from(["user", "assistant", "tool"]), "content": VALUES},
    optional={"tool_calls": VALUES, "refusal": VALUES, "name": VALUES},
)


@given(VALUES | st.lists(MESSAGES, min_size=1, max_size=3))
@settings(max_examples=150, deadline=None)
def test_any_value_gives_a_request_or_an_input_error(value: Any) -> None:
    try:
        result = request(value)
    except InputError:
        return
    assert request(result) == result
    assert all(message.parts for message in result.messages)
