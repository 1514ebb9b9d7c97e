"""What goes on to another model's decoder is what was judged, whatever the encoding."""

from __future__ import annotations

import base64
import io
import struct
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from guardrail.errors import InputError, LimitExceededError, UnsupportedContentError
from guardrail.inputs.canonical import canonical_chat, canonical_picture, require_one_reading
from guardrail.inputs.images import decode_image
from guardrail.inputs.messages import to_request
from guardrail.policy import Limits, Policy
from tests.picture_zoo import (
    ONE_WAY,
    SRGB,
    TWO_WAYS,
    by_convert,
    by_vllm,
    drawing,
    exif,
    saved,
)

POLICY = Policy()
REFUSE = Policy(pictures="refuse")


def scored(value, policy=POLICY):
    """The pixels that a guard's model is shown."""
    [picture] = to_request(value, policy=policy).images
    return np.asarray(picture)


def asked(part):
    return [{"role": "user", "content": [part, {"type": "text", "text": "What is it?"}]}]


def test_the_zoo_is_large_enough():
    assert len(TWO_WAYS) + len(ONE_WAY) >= 40


@pytest.mark.parametrize("make", [*TWO_WAYS.values(), *ONE_WAY.values()], ids=[*TWO_WAYS, *ONE_WAY])
@pytest.mark.parametrize("read", [by_convert, by_vllm])
def test_what_is_handed_on_is_read_by_all_as_the_pixels_that_were_scored(make, read):
    data = make()
    handed = canonical_picture(data, POLICY)
    np.testing.assert_array_equal(
        read(handed.data), scored(asked({"type": "image", "image": data}))
    )
    np.testing.assert_array_equal(
        read(handed.data), scored(asked({"type": "image", "image": handed.data}))
    )
    assert handed.media_type == "image/png"


@pytest.mark.parametrize("make", TWO_WAYS.values(), ids=TWO_WAYS)
def test_what_has_two_readings_can_be_refused(make):
    with pytest.raises(UnsupportedContentError, match=r"two ways: save it as an 8-bit RGB PNG"):
        require_one_reading(asked({"type": "image", "image": make()}), POLICY)


@pytest.mark.parametrize("make", ONE_WAY.values(), ids=ONE_WAY)
@pytest.mark.parametrize("read", [by_convert, by_vllm])
def test_what_has_one_reading_goes_on_byte_for_byte(make, read):
    data = make()
    assert canonical_picture(data, REFUSE).data == data
    np.testing.assert_array_equal(read(data), scored(asked({"type": "image", "image": data})))


def test_the_examples_of_two_readings_do_differ():
    """Else the refusals above would prove nothing."""
    names = [
        "png 16 bits, ink in the lowest byte",
        "png with zero alpha",
        "jpeg turned by exif 6",
        "png with alpha that draws",
    ]
    for name in names:
        data = TWO_WAYS[name]()
        ours = np.asarray(decode_image(data, Policy()))
        others = [by_convert(data), by_vllm(data)]
        assert any(o.shape != ours.shape or (o != ours).any() for o in others), name


def test_a_canonical_picture_has_nothing_but_its_pixels():
    data = canonical_picture(saved(drawing(), "PNG", icc_profile=SRGB, exif=exif(3)), POLICY).data
    names = []
    position = 8
    while position < len(data):
        length, name = struct.unpack_from(">I4s", data, position)
        names.append(name)
        position += 12 + length
    assert set(names) == {b"IHDR", b"IDAT", b"IEND"}
    assert position == len(data)


def test_a_canonical_picture_stays_as_it_is():
    data = saved(drawing(), "PNG", compress_level=9)
    assert canonical_picture(data, POLICY).data == data
    grey = saved(drawing("L"), "PNG")
    assert canonical_picture(grey, POLICY).data != grey


def test_a_large_photograph_is_handed_on_as_the_jpeg_that_is_judged():
    noise = np.random.default_rng(0).integers(0, 256, (1300, 1300, 3), dtype=np.uint8)
    handed = canonical_picture(Image.fromarray(noise), POLICY)
    assert handed.media_type == "image/jpeg"
    np.testing.assert_array_equal(
        by_vllm(handed.data), scored(asked({"type": "image", "image": handed.data}))
    )
    require_one_reading(asked({"type": "image", "image": handed.data}), POLICY)


@pytest.mark.parametrize(
    ("part", "path"),
    [
        ({"type": "image_url", "image_url": {"url": "URL", "detail": "low"}}, ("image_url", "url")),
        ({"type": "image_url", "image_url": "URL"}, ("image_url",)),
        ({"type": "input_image", "image_url": "URL"}, ("image_url",)),
        ({"type": "image", "image": "URL"}, ("image",)),
        ({"type": "image", "url": "URL"}, ("url",)),
        ({"type": "image", "base64": "BASE64", "mime_type": "image/jpeg"}, ("base64",)),
        ({"type": "image", "data": "BASE64", "media_type": "image/jpeg"}, ("data",)),
        ({"type": "image", "image": "BASE64"}, ("image",)),
        ({"type": "image", "image": "BYTES"}, ("image",)),
        ({"type": "image", "path": "PATH"}, ("url",)),
        ({"type": "image", "image": "FILE"}, ("image",)),
        ({"type": "image", "image": "PIL"}, ("image",)),
    ],
    ids=str,
)
def test_a_part_keeps_its_form(part, path, tmp_path):
    data = TWO_WAYS["jpeg turned by exif 6"]()
    file = tmp_path / "turned.jpg"
    file.write_bytes(data)
    coded = base64.b64encode(data).decode()
    forms = {
        "URL": f"data:image/jpeg;base64,{coded}",
        "BASE64": coded,
        "BYTES": data,
        "PATH": str(file),
        "FILE": Path(file),
        "PIL": Image.open(io.BytesIO(data)),
    }

    def filled(value):
        if isinstance(value, dict):
            return {key: filled(item) for key, item in value.items()}
        return forms.get(value, value)

    chat = asked(filled(part))
    before = repr(chat)
    found = canonical_chat(chat, POLICY)
    assert repr(chat) == before  # a copy was made
    handed = found[0]["content"][0]
    for key in path:
        handed = handed[key]
    if isinstance(handed, Image.Image):
        pixels = np.asarray(handed)
    else:
        if isinstance(handed, str):
            handed = base64.b64decode(handed.rpartition(",")[2])
        pixels = by_convert(handed)
    expected = np.asarray(drawing().transpose(Image.Transpose.ROTATE_270)).shape
    assert pixels.shape == expected
    np.testing.assert_array_equal(pixels, scored(found))
    np.testing.assert_array_equal(pixels, scored(chat))
    declared = found[0]["content"][0].get("mime_type") or found[0]["content"][0].get("media_type")
    assert declared in (None, "image/png")
    assert found[0]["content"][1] == {"type": "text", "text": "What is it?"}


def test_a_tools_output_in_a_response_is_canonical_too():
    coded = base64.b64encode(TWO_WAYS["png with zero alpha"]()).decode()
    item = {
        "type": "function_call_output",
        "call_id": "c1",
        "output": [{"type": "input_image", "image_url": f"data:image/png;base64,{coded}"}],
    }
    [found] = canonical_chat([item], POLICY)
    handed = found["output"][0]["image_url"]
    assert found["call_id"] == "c1"
    assert (by_convert(base64.b64decode(handed.rpartition(",")[2])) == 255).all()


def test_texts_and_unknown_values_pass_as_they_are():
    chat = [{"role": "user", "content": "words"}, {"role": "assistant", "content": None}]
    assert canonical_chat("words", POLICY) == "words"
    assert canonical_chat(chat, POLICY) == chat
    assert canonical_chat(tuple(chat), POLICY) == tuple(chat)
    assert canonical_chat(7, POLICY) == 7


def test_a_decoded_request_is_made_plain():
    turned = Image.open(io.BytesIO(TWO_WAYS["jpeg turned by exif 6"]()))
    handed = canonical_chat(turned, POLICY)
    assert handed.mode == "RGB"
    assert handed.size == (turned.height, turned.width)
    assert handed.info == {}
    request = to_request(turned, policy=POLICY)
    [picture] = canonical_chat(request, POLICY).images
    np.testing.assert_array_equal(np.asarray(picture), np.asarray(handed))


@pytest.mark.parametrize("policy", [POLICY, REFUSE])
def test_pictures_are_counted_before_they_are_decoded(policy):
    limited = policy.model_copy(update={"limits": Limits(images=1)})
    part = {"type": "image", "image": saved(drawing(), "PNG")}
    broken = {"type": "image", "image": b"\x89PNG\r\n\x1a\n"}
    with pytest.raises(LimitExceededError, match="images"):
        canonical_chat([{"role": "user", "content": [part, broken]}], limited)


@pytest.mark.parametrize("policy", [POLICY, REFUSE])
def test_all_pixels_of_a_request_are_bounded(policy):
    limited = policy.model_copy(update={"limits": Limits(total_pixels=48 * 32)})
    part = {"type": "image", "image": saved(drawing(), "PNG")}
    canonical_chat([{"role": "user", "content": [part]}], limited)
    with pytest.raises(LimitExceededError, match="total_pixels"):
        canonical_chat([{"role": "user", "content": [part, part]}], limited)


@pytest.mark.parametrize("policy", [POLICY, REFUSE])
def test_files_and_addresses_stay_under_the_policy(policy, tmp_path):
    closed = policy.model_copy(update={"local_files": False})
    with pytest.raises(InputError):
        canonical_picture(tmp_path / "a.png", closed)
    with pytest.raises(InputError):
        canonical_picture("https://example.org/a.png", closed)


@pytest.mark.parametrize("pictures", ["canonical", "refuse"])
def test_shadow_mode_changes_and_refuses_nothing(pictures):
    shadow = Policy(mode="shadow", pictures=pictures)
    data = TWO_WAYS["png with zero alpha"]()
    chat = asked({"type": "image", "image": data})
    assert canonical_chat(chat, shadow) == chat
    assert canonical_picture(data, shadow).data == data
    require_one_reading(chat, shadow)
