"""A request that was read before is held to the policy it meets now."""

from __future__ import annotations

import base64
import copy
import itertools
from collections import OrderedDict
from dataclasses import replace
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
    VideoDecodeError,
)
from guardrail.inputs.media import VIDEO
from guardrail.inputs.messages import request_digest, to_request
from guardrail.inputs.parts import MEDIA
from guardrail.policy import Limits, Policy, VideoSampling
from guardrail.types import Clip, ImagePart, Message, Request, TextPart, VideoPart, VideoStream

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


def test_a_medium_that_nobody_reads_yet_is_not_read_as_another(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    sound = replace(VIDEO, name="sound")
    monkeypatch.setitem(MEDIA, "audio", (sound, ("data",)))
    with pytest.raises(UnsupportedContentError, match="type 'audio', which is not read"):
        request([{"role": "user", "content": [{"type": "audio", "data": [RED, RED]}]}])


def test_a_request_with_a_part_of_an_unknown_kind_is_refused() -> None:
    odd: Any = (TextPart("hello"), b"sound")
    with pytest.raises(
        UnsupportedContentError, match=r"messages\[0\] has a bytes, which is no part"
    ):
        request(Request((Message(role="user", parts=odd),)))


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


def policy(window: int = 4, fps: float = 8, **limits: Any) -> Policy:
    video = VideoSampling(fps=fps, max_fps=8, scenes=False, window=window)
    return Policy(video=video, limits=Limits(**limits))


def asked(*videos: Any) -> Request:
    return Request((Message(role="user", parts=(*videos, TextPart("?"))),))


def clip(count: int, size: tuple[int, int] = (8, 8), start: float = 0.0) -> Clip:
    frames = tuple(Image.new("RGB", size, (i, 0, 0)) for i in range(count))
    return Clip(frames, tuple(start + i for i in range(count)))


def read(film: Any, count: int, rules: Policy) -> Request:
    chat = [{"role": "user", "content": [{"type": "video", "video": film(count)}]}]
    return to_request(chat, policy=rules)


def test_a_clip_that_fits_stays_the_same_object():
    part = VideoPart(clip(4))
    assert to_request(asked(part), policy=policy()).videos[0] is part


def test_a_clip_larger_than_the_window_is_divided():
    (video,) = to_request(asked(VideoPart(clip(6, start=9.0))), policy=policy()).videos
    assert isinstance(video, VideoStream)
    assert [c.times for c in video.windows] == [(9, 10, 11, 12), (11, 12, 13, 14)]
    assert [f.getpixel((0, 0))[0] for c in video.windows for f in c.frames] == [
        0, 1, 2, 3, 2, 3, 4, 5
    ]  # fmt: skip


def test_frames_of_other_modes_become_rgb():
    odd = Clip((Image.new("L", (4, 4), 7),), (0.0,))
    (video,) = to_request(asked(VideoPart(odd)), policy=policy()).videos
    assert (video.clip.frames[0].mode, video.clip.times) == ("RGB", (0.0,))


@pytest.mark.parametrize(
    ("limits", "says"),
    [
        ({"videos": 1}, "videos 2"),
        ({"image_pixels": 63}, "image_pixels 64"),
        ({"total_pixels": 64 * 5}, "total_pixels"),
        ({"video_frames": 5}, "video_frames 6"),
        ({"video_seconds": 1.5}, "video_seconds"),
    ],
)
def test_clips_are_held_to_the_limits(limits, says):
    request = asked(VideoPart(clip(3)), VideoPart(clip(3)))
    to_request(request, policy=policy())
    with pytest.raises(LimitExceededError, match=says):
        to_request(request, policy=policy(**limits))


@pytest.mark.parametrize("times", [(1.0, 0.0), (0.0, float("nan"))])
def test_times_must_ascend(times):
    frames = clip(2).frames
    with pytest.raises(VideoDecodeError, match="do not ascend"):
        to_request(asked(VideoPart(Clip(frames, times))), policy=policy())


def test_a_stream_under_the_same_policy_is_the_same_windows(film):
    request = read(film, 10, policy())
    (again,) = to_request(request, policy=policy()).videos
    assert [c.times for c in again.windows] == [c.times for c in request.videos[0].windows]
    assert again.windows.digest == request.videos[0].windows.digest


def test_a_stream_is_sampled_anew_under_other_rules(film):
    request = read(film, 10, policy())
    (whole,) = to_request(request, policy=policy(window=10)).videos
    assert isinstance(whole, VideoPart)
    assert len(whole.clip.frames) == 10
    (thin,) = to_request(request, policy=policy(fps=4)).videos
    assert [len(c.frames) for c in thin.windows] == [4, 4]


def test_a_stream_is_held_to_the_limits_it_meets_now(film):
    request = read(film, 10, policy())
    list(request.videos[0].windows)
    (video,) = to_request(request, policy=policy(video_frames=9)).videos
    with pytest.raises(LimitExceededError, match="video_frames 10"):
        list(video.windows)


def test_a_request_with_a_stream_can_be_copied(film):
    request = read(film, 10, policy())
    other = copy.deepcopy(request)
    assert [c.times for c in other.videos[0].windows] == [
        c.times for c in request.videos[0].windows
    ]


class Own:
    """Windows that somebody else made."""

    digest = "own"

    def __init__(self, *clips: Clip) -> None:
        self._clips = clips

    def __iter__(self) -> Any:
        return iter(self._clips)


def test_windows_of_others_are_checked_as_they_come():
    fine = Own(clip(4), clip(4, start=2.0))
    (video,) = to_request(asked(VideoStream(fine)), policy=policy()).videos
    assert [c.times for c in video.windows] == [c.times for c in fine]
    assert video.windows.digest == "own"


@pytest.mark.parametrize(
    ("windows", "limits", "says"),
    [
        (Own(clip(4), clip(5)), {}, "window"),
        (Own(clip(4), clip(4)), {"video_frames": 7}, "video_frames"),
        (Own(clip(4), clip(4, start=20.0)), {"video_seconds": 10.0}, "video_seconds"),
        (Own(clip(4), clip(4, size=(9, 9))), {"image_pixels": 64}, "image_pixels"),
        (Own(), {}, "no frame"),
    ],
)
def test_windows_of_others_are_held_to_the_policy(windows, limits, says):
    (video,) = to_request(asked(VideoStream(windows)), policy=policy(**limits)).videos
    with pytest.raises(InputError, match=says):
        list(video.windows)


def _digest(*messages, tools=None):
    return request_digest(to_request(list(messages), policy=Policy(), tools=tools))


def _said(text, role="user", **more):
    return {"role": role, "content": text, **more}


def test_the_same_request_has_the_same_digest():
    assert _digest(_said("a"), _said("b", "assistant")) == _digest(
        _said("a"), _said("b", "assistant")
    )


def test_no_two_different_requests_share_a_digest():
    red, blue = Image.new("RGB", (4, 6), "red"), Image.new("RGB", (4, 6), "blue")
    tall = Image.new("RGB", (6, 4), "red")
    tool = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
    # the order of keys is what a chat template writes
    turned = {
        "type": "function",
        "function": {"parameters": {"type": "object"}, "name": "f"},
    }
    call = {"type": "function", "function": {"name": "f", "arguments": {"x": 1}}}

    def look(*images):
        parts = [{"type": "image", "image": image} for image in images]
        return {"role": "user", "content": [*parts, {"type": "text", "text": "a"}]}

    digests = [
        _digest(_said("a")),
        _digest(_said("a", "system")),
        _digest(_said("a"), _said("")),
        _digest(_said("ab")),
        _digest(_said("a"), _said("b")),
        _digest(_said("a", name="n")),
        _digest(_said("a"), tools=[tool]),
        _digest(_said("a"), tools=[turned]),
        _digest(_said("a"), _said("", "assistant", tool_calls=[call])),
        _digest(look(red)),
        _digest(look(blue)),
        _digest(look(tall)),
        _digest(look(red, blue)),
        _digest(look(blue, red)),
        _digest(
            {
                "role": "user",
                "content": [{"type": "text", "text": "a"}, {"type": "image", "image": red}],
            }
        ),
    ]
    for one, other in itertools.combinations(digests, 2):
        assert one != other


def test_videos_are_told_apart_by_pixels_times_and_how_they_are_sampled(film):
    def video(source, **more):
        return {"role": "user", "content": [{"type": "video", "video": source, **more}]}

    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "blue")]
    short, long, longer = film(8), film(100), film(101)
    asked = [
        video(frames),
        video(frames, fps=2),
        video(frames[::-1]),
        video(short),
        video(long),
        video(longer),
        {"role": "user", "content": [{"type": "image", "image": frames[0]}]},
    ]
    digests = [_digest(message) for message in asked]
    assert len(set(digests)) == len(asked)
    assert digests == [_digest(message) for message in asked]
    request = to_request([video(long)], policy=Policy())
    other = to_request([video(long)], policy=Policy(video={"window": 5}))
    assert request_digest(request) != request_digest(other)
