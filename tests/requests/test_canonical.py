"""What goes on to another model's decoder is what was judged, whatever the encoding."""

from __future__ import annotations

import base64
import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageCms, ImageDraw, PngImagePlugin

from guardrail.errors import InputError, LimitExceededError, UnsupportedContentError
from guardrail.policy import Limits, Policy
from guardrail.requests.canonical import (
    canonical_chat,
    canonical_image,
    canonical_picture,
    require_one_reading,
)
from guardrail.requests.images import decode_image
from guardrail.requests.messages import to_request

POLICY = Policy()
REFUSE = Policy(pictures="refuse")


def drawing(mode="RGB", size=(48, 32)):
    """Words and a ramp, so that turning, clipping and inverting all show."""
    picture = Image.linear_gradient("L").resize(size).convert("RGB")
    ImageDraw.Draw(picture).text((3, 3), "Say it", fill=(200, 30, 30))
    return picture.convert(mode)


def saved(picture, format_, **options):
    file = io.BytesIO()
    picture.save(file, format_, **options)
    return file.getvalue()


def exif(orientation):
    found = Image.Exif()
    found[0x0112] = orientation
    return found


def translucent(alpha):
    picture = drawing("RGBA")
    picture.putalpha(alpha)
    return picture


def chunk(name, content):
    return (
        struct.pack(">I", len(content))
        + name
        + content
        + struct.pack(">I", zlib.crc32(name + content))
    )


def with_chunk(name, content, picture=None):
    data = saved(picture or drawing(), "PNG")
    return data[:33] + chunk(name, content) + data[33:]


def grey16(values):
    return saved(Image.fromarray(values.astype(np.uint16)), "PNG")


def dark_words():
    """Ink in 0 to 255 of 65535: black where bits are cut to the upper byte, words where scaled."""
    return np.asarray(drawing("L")).astype(np.uint16)


def palette_with_transparency():
    picture = drawing("P")
    return saved(picture, "PNG", transparency=bytes([0, 128] * 64))


def webp_exif():
    return saved(drawing(), "WEBP", exif=exif(6).tobytes(), lossless=True)


SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
XYZ = ImageCms.ImageCmsProfile(ImageCms.createProfile("XYZ")).tobytes()


def frames(format_, **options):
    """A file of two pictures."""
    first, second = drawing(), drawing().transpose(Image.Transpose.ROTATE_180)
    return saved(first, format_, save_all=True, append_images=[second], **options)


# Encodings that two decoders may read in two ways.
TWO_WAYS = {
    "png 16 bits, ink in the lowest byte": lambda: grey16(dark_words()),
    "png 16 bits, whole range": lambda: grey16(dark_words() * 257),
    "png 16 bits, highest": lambda: grey16(65535 - dark_words()),
    "png one bit": lambda: saved(drawing("1"), "PNG"),
    "png with zero alpha": lambda: saved(translucent(0), "PNG"),
    "png with half alpha": lambda: saved(translucent(128), "PNG"),
    "png with alpha that draws": lambda: saved(translucent(drawing("L")), "PNG"),
    "png of grey with alpha": lambda: saved(translucent(0).convert("LA"), "PNG"),
    "png palette with transparency": palette_with_transparency,
    "png colour key": lambda: saved(drawing(), "PNG", transparency=(200, 30, 30)),
    "png grey key": lambda: saved(drawing("L"), "PNG", transparency=7),
    "png with gamma": lambda: with_chunk(b"gAMA", (1_000_000).to_bytes(4, "big")),
    "png with chromaticities": lambda: with_chunk(b"cHRM", bytes(32)),
    "png with a profile": lambda: saved(drawing(), "PNG", icc_profile=SRGB),
    "png with exif turned": lambda: saved(drawing(), "PNG", exif=exif(6)),
    "png with exif upright": lambda: saved(drawing(), "PNG", exif=exif(1)),
    "png with a raw profile text": lambda: with_chunk(b"tEXt", b"Raw profile type exif\0x"),
    "png with compressed text": lambda: with_chunk(b"zTXt", b"a\0\0" + zlib.compress(b"x")),
    "png with significant bits": lambda: with_chunk(b"sBIT", b"\3\3\3"),
    "png with a background": lambda: with_chunk(b"bKGD", bytes(6)),
    "png of two frames": lambda: frames("PNG"),
    "png and another behind it": lambda: saved(drawing(), "PNG") + saved(drawing("L"), "PNG"),
    **{
        f"jpeg turned by exif {n}": lambda n=n: saved(drawing(), "JPEG", exif=exif(n))
        for n in range(2, 9)
    },
    "jpeg in cmyk": lambda: saved(drawing("CMYK"), "JPEG"),
    "jpeg in rgb": lambda: saved(drawing(), "JPEG", keep_rgb=True),
    "jpeg with a profile": lambda: saved(drawing(), "JPEG", icc_profile=SRGB),
    "jpeg with an odd profile": lambda: saved(drawing(), "JPEG", icc_profile=XYZ),
    "jpeg of several pictures": lambda: frames("MPO"),
    "jpeg and another behind it": lambda: saved(drawing(), "JPEG") + saved(drawing("L"), "JPEG"),
    "webp with alpha": lambda: saved(translucent(0), "WEBP", lossless=True, exact=True),
    "webp with alpha, lossy": lambda: saved(translucent(drawing("L")), "WEBP"),
    "webp turned by exif": webp_exif,
    "webp of two frames": lambda: frames("WEBP", lossless=True),
    "webp with a profile": lambda: saved(drawing(), "WEBP", icc_profile=SRGB),
    "gif": lambda: saved(drawing("P"), "GIF"),
    "gif of two frames": lambda: frames("GIF", duration=40),
    "gif with transparency": lambda: saved(drawing("P"), "GIF", transparency=3),
    "bmp palette": lambda: saved(drawing("P"), "BMP"),
    "bmp one bit": lambda: saved(drawing("1"), "BMP"),
    "bmp of 32 bits": lambda: saved(drawing("RGBA"), "BMP"),
    "tiff": lambda: saved(drawing(), "TIFF"),
    "tiff of two pages": lambda: frames("TIFF"),
    "tiff in cmyk": lambda: saved(drawing("CMYK"), "TIFF"),
    "tiff 16 bits": lambda: saved(Image.fromarray(dark_words()), "TIFF"),
    "tiff with alpha": lambda: saved(translucent(0), "TIFF"),
}

# Encodings that all decoders read alike.
ONE_WAY = {
    "png rgb": lambda: saved(drawing(), "PNG"),
    "png grey": lambda: saved(drawing("L"), "PNG"),
    "png palette": lambda: saved(drawing("P"), "PNG", bits=8),
    "png with opaque alpha": lambda: saved(translucent(255), "PNG"),
    "png with density and software": lambda: saved(
        drawing(), "PNG", dpi=(72, 72), pnginfo=software()
    ),
    "png that says it is srgb": lambda: with_chunk(b"sRGB", b"\0"),
    "png with the gamma of srgb": lambda: with_chunk(b"gAMA", (45455).to_bytes(4, "big")),
    "jpeg": lambda: saved(drawing(), "JPEG"),
    "jpeg grey": lambda: saved(drawing("L"), "JPEG"),
    "jpeg progressive": lambda: saved(drawing(), "JPEG", progressive=True),
    "jpeg with upright exif": lambda: saved(drawing(), "JPEG", exif=exif(1)),
    "jpeg with restarts": lambda: saved(drawing(), "JPEG", restart_marker_blocks=1),
    "webp lossy": lambda: saved(drawing(), "WEBP"),
    "webp lossless": lambda: saved(drawing(), "WEBP", lossless=True),
    "bmp": lambda: saved(drawing(), "BMP"),
}


def software():
    info = PngImagePlugin.PngInfo()
    info.add_text("Software", "a plotting library")
    return info


def by_convert(data):
    """How most programs open a picture."""
    with Image.open(io.BytesIO(data)) as picture:
        return np.asarray(picture.convert("RGB"))


def by_vllm(data):
    """As a server that scales 16 bits and puts alpha on white reads it, nothing turned."""
    picture = Image.open(io.BytesIO(data))
    picture.load()
    if picture.mode.startswith("I"):
        values = np.asarray(picture).astype(np.float64)
        picture = Image.fromarray((values * 255 / max(values.max(), 1)).astype(np.uint8))
    if picture.mode == "RGBA":
        white = Image.new("RGB", picture.size, "white")
        white.paste(picture, mask=picture.getchannel("A"))
        picture = white
    return np.asarray(picture.convert("RGB"))


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
        ours = np.asarray(decode_image(data, limits=Limits(), allowed_hosts=(), local_files=False))
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
    handed = canonical_image(turned, POLICY)
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
