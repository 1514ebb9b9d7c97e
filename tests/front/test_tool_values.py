from __future__ import annotations

import asyncio
import base64
import datetime
import decimal
import enum
import io
import json
import pathlib
import uuid
from collections import OrderedDict, namedtuple
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest
from PIL import Image
from pydantic import BaseModel, ConfigDict, Field, computed_field

from guardrail.errors import ImageDecodeError, InputError, UnsupportedContentError
from guardrail.front.tool_values import cautioned_result, read_value
from guardrail.inputs.canonical import require_one_reading
from guardrail.inputs.messages import to_request
from guardrail.policy import Policy
from guardrail.testing import FakeGuard

ENFORCED = Policy()


def png(mode="RGB", *, frames=1):
    """A PNG; with transparency in RGBA, which decoders read differently."""
    file = io.BytesIO()
    picture = Image.new(mode, (4, 4))
    picture.save(file, "PNG", save_all=frames > 1)
    return file.getvalue()


def b64(data):
    return base64.b64encode(data).decode()


CLEAR = png("RGBA")
PICTURE = Image.new("RGB", (4, 4))
CLEAR_URL = f"data:image/png;base64,{b64(CLEAR)}"


class Loose(BaseModel):
    model_config = ConfigDict(extra="allow")


class Block(Loose):
    """As the Model Context Protocol's blocks are made."""

    type: str


class Hidden(BaseModel):
    text: str = Field(exclude=True)

    @computed_field
    @property
    def shown(self) -> str:
        return f"about {self.text}"


@dataclass(frozen=True)
class Record:
    title: str
    inner: Any = None


@dataclass(frozen=True)
class Slotted:
    __slots__ = ("title",)
    title: str


class Colour(enum.Enum):
    BAD = "bad"


class Helper:
    """As an MCP server's own picture."""

    def __init__(self, data):
        self._data = data

    def to_image_content(self):
        return Block(type="image", data=b64(self._data), mimeType="image/png")


class Made:
    """Has its words from its class."""

    type = "text"
    text = "bad"


Pair = namedtuple("Pair", "left right")


@pytest.mark.parametrize(
    "value",
    [
        "bad",
        ["a", "bad"],
        ("a", "bad"),
        {"bad"},
        {"a": {"b": [1, "bad"]}},
        {"bad": 1},
        {1: "bad", "1": "a"},
        {(1, 2): "bad"},
        {"a": {"bad": None}},
        OrderedDict(a="bad"),
        Pair("a", "bad"),
        Loose(a="bad"),
        Hidden(text="bad"),
        [Loose(a=Loose(b="bad"))],
        Record("bad"),
        Record("a", Record("bad")),
        Slotted("bad"),
        Colour.BAD,
        pathlib.Path("/bad"),
        {"type": "text", "text": "bad"},
        [{"type": "text", "text": "a"}, {"type": "text", "text": "bad"}],
        {"type": "text", "text": "a", "note": "bad"},
        [Block(type="text", text="bad")],
        [Block(type="text", text="a", annotations={"audience": ["bad"]})],
        [SimpleNamespace(type="text", text="bad")],
        [Helper(png()), "bad"],
        ["bad", PICTURE],
        [Block(type="image", data=b64(png()), mimeType="image/png", meta={"title": "bad"})],
        [Block(type="resource", resource=Loose(uri="file:///a", text="bad"))],
        [Block(type="resource_link", uri="https://example.org", name="bad")],
        Loose(content=[Block(type="text", text="bad")], structuredContent=None),
        Loose(content=[Block(type="text", text="a")], structured_content={"a": "bad"}),
        {"type": "file", "name": "bad"},
        {"type": "tool_result", "content": [{"type": "text", "text": "bad"}]},
        {"picture": PICTURE, "title": "bad"},
    ],
)
def test_every_word_of_a_value_is_read(value):
    guard = FakeGuard()
    content = read_value(value, ENFORCED, "the result").content
    assert guard.check([{"role": "user", "content": content}]).action.value == "flag"


@pytest.mark.parametrize("value", [None, "", 3, 2.5, True, [], {}, [1, [2.5]], (), [None, ""]])
def test_what_holds_no_word_and_no_picture_needs_no_check(value):
    reading = read_value(value, ENFORCED, "the result")
    assert (reading.content, reading.value) == ([], value)


@pytest.mark.parametrize(
    "value",
    [
        uuid.UUID(int=1),
        datetime.date(2024, 1, 2),
        decimal.Decimal("1.5"),
        datetime.timedelta(seconds=5),
    ],
)
def test_scalars_are_read_by_their_text(value):
    reading = read_value({"a": value}, ENFORCED, "the result")
    assert json.loads(reading.content[0]["text"])["a"]
    assert reading.value == {"a": value}


def test_a_list_of_content_is_read_in_its_order_with_plain_texts():
    text = 'He said "no"\nand left.'
    blocks = [Block(type="text", text=text), Helper(png()), "behind", PICTURE]
    content = read_value(blocks, ENFORCED, "the result").content
    assert [part["type"] for part in content] == ["text", "image", "text", "image"]
    assert (content[0]["text"], content[2]["text"]) == (text, "behind")


def test_texts_side_by_side_stay_apart():
    blocks = [{"type": "text", "text": "to"}, {"type": "text", "text": "day"}]
    assert read_value(blocks, ENFORCED, "the result").content == [
        {"type": "text", "text": "to\n\nday"}
    ]


# --- pictures -------------------------------------------------------------------------------------

HOLDING = {
    "bytes": (CLEAR, lambda kept: kept),
    "bytearray": (bytearray(CLEAR), lambda kept: kept),
    "data URL": (CLEAR_URL, lambda kept: kept),
    "base64": ({"shot": b64(CLEAR)}, lambda kept: kept["shot"]),
    "in JSON": ({"a": [{"b": CLEAR_URL}]}, lambda kept: kept["a"][0]["b"]),
    "in a tuple": ((1, CLEAR), lambda kept: kept[1]),
    "in a named tuple": (Pair(1, CLEAR), lambda kept: kept.right),
    "in a dataclass": (Record("a", CLEAR), lambda kept: kept.inner),
    "in a model": (Loose(a=CLEAR_URL), lambda kept: kept.a),
    "MCP": (
        [Block(type="image", data=b64(CLEAR), mimeType="image/webp")],
        lambda kept: kept[0].data,
    ),
    "MCP as JSON": (
        [{"type": "image", "data": b64(CLEAR), "mimeType": "image/webp"}],
        lambda kept: kept[0]["data"],
    ),
    "MCP helper": (Helper(CLEAR), lambda kept: kept.data),
    "MCP resource": (
        Block(type="resource", resource=Loose(uri="a:b", blob=b64(CLEAR), mimeType="image/png")),
        lambda kept: kept.resource.blob,
    ),
    "chat": (
        [{"type": "image_url", "image_url": {"url": CLEAR_URL}}],
        lambda kept: kept[0]["image_url"]["url"],
    ),
    "Anthropic": (
        [{"type": "image", "source": {"type": "base64", "data": b64(CLEAR), "media_type": "a"}}],
        lambda kept: kept[0]["source"]["data"],
    ),
    "Hugging Face": ([{"type": "image", "image": CLEAR}], lambda kept: kept[0]["image"]),
}


@pytest.mark.parametrize(("value", "where"), HOLDING.values(), ids=HOLDING)
def test_a_picture_goes_on_as_it_was_judged(value, where):
    reading = read_value(value, ENFORCED, "the result")
    request = to_request([{"role": "user", "content": reading.content}], policy=ENFORCED)
    kept = where(reading.value)
    as_part = [{"role": "user", "content": [{"type": "image", "image": kept}]}]
    require_one_reading(as_part, ENFORCED)
    [judged] = request.images
    assert to_request(as_part, policy=ENFORCED).images[0].tobytes() == judged.tobytes()


@pytest.mark.parametrize(("value", "where"), HOLDING.values(), ids=HOLDING)
def test_a_picture_with_two_readings_is_refused_or_passes_in_shadow_mode(value, where):
    with pytest.raises(UnsupportedContentError, match="two ways"):
        read_value(value, Policy(pictures="refuse"), "the result")
    shadow = read_value(value, Policy(pictures="refuse", mode="shadow"), "the result")
    assert shadow.value is value
    assert shadow.content


def test_a_media_type_is_that_of_what_goes_on():
    [block], [mapping], [sourced] = (
        read_value(HOLDING[name][0], ENFORCED, "the result").value
        for name in ("MCP", "MCP as JSON", "Anthropic")
    )
    assert block.mimeType == mapping["mimeType"] == "image/png"
    assert sourced["source"]["media_type"] == "image/png"
    assert HOLDING["MCP"][0][0].mimeType == "image/webp"  # the tool's own stays


def test_a_value_in_which_nothing_changes_is_the_same_one():
    value = {"a": [1, ("b",)], "c": Record("d"), "e": Loose(f=[1])}
    assert read_value(value, ENFORCED, "the result").value is value


def test_a_video_is_left_to_the_guard_as_it_is():
    part = {"type": "video", "video": [PICTURE, PICTURE]}
    reading = read_value([part, "data:video/mp4;base64,AAAA"], ENFORCED, "the result")
    assert reading.parts[0] == part
    assert reading.parts[1]["video"] == "data:video/mp4;base64,AAAA"


# --- what cannot be read --------------------------------------------------------------------------


async def _coroutine():
    return "bad"


def _looped():
    loop = []
    loop.append(loop)
    return loop


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (object(), "holds a object"),
        ({"a": [object()]}, "holds a object"),
        (io.BytesIO(b"bad"), "holds"),
        (iter(["bad"]), "holds a list_iterator"),
        (b"bad", "bytes that are no picture"),
        ([{"type": "audio", "data": "AAAA", "mimeType": "audio/wav"}], "type 'audio'"),
        ([Block(type="audio", data="AAAA")], "type 'audio'"),
        ([{"type": "file", "file": {"file_data": "AAAA"}}], "type 'file'"),
        ([Block(type="image", url="https://example.org/a.png")], "type 'image'"),
        ([{"type": "file", "base64": "AAAA", "mime_type": "application/pdf"}], "type 'file'"),
        ([{"type": "input_file", "file_url": "https://example.org/a.pdf"}], "type 'input_file'"),
        ([{"type": "image", "file_id": "a"}], "type 'image'"),
        ([{"type": "image", "source": {"type": "url", "url": "https://a.org"}}], "type 'image'"),
        ([Block(type="image", source=Block(type="file", file_id="a"))], "type 'image'"),
        ([{"type": "image", "source": {"type": "base64", "data": "AAAA"}}], "data is no picture"),
        (Made(), "holds a Made"),
        (Loose(uri="a:b", blob=b64(b"bad")), "blob is no picture"),
        ("data:application/pdf;base64,AAAA", "type application/pdf"),
        (_looped(), "too deep"),
        ({(1,): "bad", "(1,)": "a"}, "two keys that are written"),
    ],
)
def test_what_cannot_be_read_is_an_error_that_says_what_it_is(value, words):
    with pytest.raises(UnsupportedContentError, match=f"the result of x .*{words}|{words}"):
        read_value(value, ENFORCED, "the result of x")


def test_an_awaitable_is_left_alone():
    later = _coroutine()
    with pytest.raises(UnsupportedContentError, match="holds a coroutine"):
        read_value([later], ENFORCED, "the result")
    assert asyncio.run(later) == "bad"


@pytest.mark.parametrize(
    "value", ["data:image/png,bad", b64(CLEAR[:40]), [{"type": "image", "data": "/etc/passwd"}]]
)
def test_what_begins_as_a_picture_and_is_none_is_an_error(value):
    with pytest.raises(ImageDecodeError):
        read_value(value, ENFORCED, "the result")


def test_the_policys_limits_hold():
    value = [PICTURE] * 3
    with pytest.raises(InputError, match="images 3"):
        read_value(value, Policy(limits={"images": 2}), "the result")


# --- a caution ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "wanted"),
    [
        ("page", "Mind.\n\npage"),
        (["page", PICTURE], ["Mind.", "page", PICTURE]),
        ([{"type": "image", "data": ""}], [{"type": "text", "text": "Mind."}]),
        (
            [Block(type="image"), Block(type="text", text="page")],
            [Block(type="text", text="Mind.")],
        ),
    ],
)
def test_a_caution_stands_before_a_text_or_a_list_of_content(value, wanted):
    assert cautioned_result(value, "Mind.")[: len(wanted)] == wanted
    assert cautioned_result(value, "Mind.")[-1] == value[-1]


@pytest.mark.parametrize("value", [None, 3, {"a": "b"}, ["a"], [PICTURE], [Block(type="image")]])
def test_other_values_have_no_place_for_one(value):
    assert cautioned_result(value, "Mind.") is None
