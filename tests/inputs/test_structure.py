"""Files of endless pieces are refused before a parser sees them; sound ones are not."""

from __future__ import annotations

import struct
import zlib
from io import BytesIO
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import GifImagePlugin, Image, TiffImagePlugin

from guardrail.errors import ImageDecodeError, InputError, LimitExceededError
from guardrail.inputs import images
from guardrail.inputs.images import decode_image
from guardrail.inputs.structure import counted_frames
from guardrail.policy import Limits, Policy

if TYPE_CHECKING:
    from collections.abc import Callable

JUNK = 70_000


def decode(data: bytes, **limits: int) -> Image.Image:
    return decode_image(data, Policy(limits=Limits(**limits)))


def encoded(name: str, size: tuple[int, int] = (8, 8), count: int = 1, **options: Any) -> bytes:
    pictures = [Image.new("RGB", size, (i % 256, i // 256, 90)) for i in range(count)]
    more = {"save_all": True, "append_images": pictures[1:]} if count > 1 else {}
    buffer = BytesIO()
    pictures[0].save(buffer, name, **more, **options)
    return buffer.getvalue()


JPEG, PNG, GIF, WEBP = (encoded(name) for name in ("JPEG", "PNG", "GIF", "WEBP"))

GIF_HEAD = 13 + (3 << ((GIF[10] & 7) + 1))

END = JPEG[-2:]


def segment(marker: int, body: bytes = b"") -> bytes:
    return b"\xff" + bytes([marker]) + struct.pack(">H", 2 + len(body)) + body


def in_jpeg(more: bytes) -> bytes:
    return JPEG[:2] + segment(0xFE) + more + JPEG[2:]


def behind_scan(more: bytes) -> bytes:
    return JPEG[:-2] + more + END


def chunk(kind: bytes, body: bytes = b"") -> bytes:
    crc = zlib.crc32(kind + body)
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", crc)


def in_png(before: bytes = b"", behind: bytes = b"") -> bytes:
    return PNG[:33] + before + PNG[33:-12] + behind + PNG[-12:]


def in_gif(more: bytes) -> bytes:
    return GIF[:GIF_HEAD] + more + GIF[GIF_HEAD:]


def in_webp(more: bytes) -> bytes:
    return b"RIFF" + struct.pack("<I", len(WEBP) - 8 + len(more)) + WEBP[8:] + more


def entry(
    tag: int, kind: int, count: int, value: int, order: str = "<", big: bool = False
) -> bytes:
    form = {3: "H2x", 16: "Q"}.get(kind, "L") if big or kind == 3 else "L"
    head = struct.pack(order + ("HHQ" if big else "HHL"), tag, kind, count)
    return (head + struct.pack(order + form, value)).ljust(20 if big else 12, b"\0")


def tiff(
    entries: list[tuple[int, int, int, int]],
    behind: bytes = b"",
    *,
    order: str = "<",
    big: bool = False,
) -> bytes:
    """A TIFF of 4 x 4 grey pixels and more entries; 16 bytes of pixels and `behind` at its end."""
    known = [(256, 4, 1, 4), (257, 4, 1, 4), (258, 3, 1, 8), (259, 3, 1, 1), (262, 3, 1, 1)]
    known += [(277, 3, 1, 1), (278, 4, 1, 4), (279, 4, 1, 16)]
    sign, count, step = (43, "Q", 20) if big else (42, "H", 12)
    begin = 16 if big else 8
    end = begin + (8 if big else 2) + step * (len(known) + 1 + len(entries)) + (8 if big else 4)
    rows = sorted([*known, (273, 4, 1, end), *entries])
    head = (b"II" if order == "<" else b"MM") + struct.pack(order + "H", sign)
    head += struct.pack(order + "HHQ", 8, 0, 16) if big else struct.pack(order + "L", 8)
    table = b"".join(entry(*row, order, big) for row in rows)
    return (
        head
        + struct.pack(order + count, len(rows))
        + table
        + bytes(8 if big else 4)
        + (bytes(16) + behind)
    )


def end_of(entries: int, *, big: bool = False) -> int:
    """Where `behind` is in a TIFF of so many entries more."""
    return len(tiff([(40_000 + i, 3, 1, 0) for i in range(entries)], big=big))


def directory(entries: int, *, big: bool = False) -> bytes:
    rows = b"".join(entry(i + 1, 3, 1, 0, big=big) for i in range(entries))
    return struct.pack("<Q" if big else "<H", entries) + rows + bytes(8 if big else 4)


ENDLESS: dict[str, Callable[[], bytes]] = {
    "jpeg segments": lambda: in_jpeg(segment(0xFE) * 2_000),
    "jpeg markers without a length": lambda: in_jpeg(b"\xff\xd0" * 2_000),
    "jpeg markers of extensions": lambda: in_jpeg(b"\xff\xf0" * 2_000),
    "jpeg fill bytes": lambda: in_jpeg(b"\xff" * JUNK),
    "jpeg fill bytes to the end": lambda: JPEG[:2] + b"\xff" * JUNK,
    "jpeg junk": lambda: in_jpeg(b"a" * JUNK),
    "jpeg junk in pieces": lambda: in_jpeg((b"\xff\0" * 100 + segment(0xFE)) * 400),
    "jpeg frame headers": lambda: in_jpeg(JPEG[JPEG.index(b"\xff\xc0") :][:19]),
    "jpeg quantization tables": lambda: in_jpeg(segment(0xDB, (b"\0" + b"\1" * 64) * 9)),
    "jpeg photoshop blocks": lambda: in_jpeg(segment(0xED, b"Photoshop 3.0\0" + b"8BIM" * 2_000)),
    "jpeg exif": lambda: in_jpeg(segment(0xE1, b"Exif\0\0" + bytes(60_000)) * 5),
    "jpeg segments behind its data": lambda: behind_scan(segment(0xFE) * 2_000),
    "jpeg fill bytes in its data": lambda: behind_scan(b"\xff" * JUNK),
    "jpeg escaped fill bytes": lambda: behind_scan(b"\xff" * JUNK + b"\0"),
    "jpeg scans": lambda: behind_scan(segment(0xDA, bytes(6)) * 100),
    "jpeg hidden scans": lambda: behind_scan(segment(0x02, segment(0xDA, bytes(6)) * 100)),
    "png chunks": lambda: in_png(chunk(b"tEXt") * 4_100),
    "png chunks behind its data": lambda: in_png(behind=chunk(b"teXt") * 4_100),
    "png empty data": lambda: in_png(chunk(b"IDAT") * 4_100),
    "png empty data behind its data": lambda: in_png(behind=chunk(b"IDAT") * 4_100),
    "png profiles": lambda: in_png(chunk(b"iCCP", b"a\0\0" + zlib.compress(b"b")) * 101),
    "png texts": lambda: in_png(behind=chunk(b"zTXt", b"\0\0" + zlib.compress(b"b")) * 101),
    "gif comments": lambda: in_gif(b"!\xfe\0" * 4_100),
    "gif pieces of a comment": lambda: in_gif(b"!\xfe" + b"\1a" * 5_000 + b"\0"),
    "gif pieces of its data": lambda: GIF[:-1] + GIF[GIF_HEAD:-2] + b"\1a" * 5_000 + b"\0;",
    "gif junk": lambda: in_gif(b"a" * JUNK),
    "gif junk to the end": lambda: GIF[:GIF_HEAD] + b"a" * JUNK,
    "gif junk in pieces": lambda: in_gif((b"a" * 100 + b"!\xfe\0") * 700),
    "gif empty extension": lambda: in_gif(b"!\xf9\0" + b"\1a" * 5_000),
    "gif empty loop": lambda: in_gif(b"!\xff\x0bNETSCAPE2.0\0" + b"\1a" * 5_000),
    "webp chunks": lambda: in_webp(b"abcd\0\0\0\0" * 4_100),
    "tiff entries": lambda: tiff([(40_000 + i, 3, 1, 0) for i in range(2_000)]),
    "tiff entries, motorola": lambda: tiff(
        [(40_000 + i, 3, 1, 0) for i in range(2_000)], order=">"
    ),
    "tiff entries, big": lambda: tiff([(40_000 + i, 3, 1, 0) for i in range(2_000)], big=True),
    "tiff entries of its exif": lambda: tiff([(34665, 4, 1, end_of(1))], directory(2_000)),
    "tiff entries of its gps": lambda: tiff([(34853, 13, 1, end_of(1))], directory(2_000)),
    "tiff entries of both": lambda: tiff(
        [(34665, 4, 1, end_of(2)), (34853, 4, 1, end_of(2) + 6 + 12 * 1_000)],
        directory(1_000) + directory(1_000),
    ),
    "tiff entries of its exif, big": lambda: tiff(
        [(34665, 16, 1, end_of(1, big=True))], directory(2_000, big=True), big=True
    ),
    "tiff exif by a list": lambda: tiff([(34665, 4, 2, end_of(1))], bytes(8)),
    "tiff exif by a fraction": lambda: tiff([(34665, 5, 1, 8)]),
    "tiff strips": lambda: tiff([(324, 4, 100_001, end_of(1))], bytes(400_004)),
    "tiff ratios": lambda: tiff([(282, 5, 100_001, end_of(1))], bytes(800_008)),
    "tiff numbers of its exif": lambda: tiff(
        [(34665, 4, 1, end_of(1))],
        struct.pack("<H", 1) + entry(1, 6, 100_001, 8) + bytes(100_001),
    ),
}


@pytest.mark.parametrize("kind", ENDLESS)
def test_endless_pieces_are_refused_before_they_are_parsed(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = dict.fromkeys(images.FORMATS, lambda _: pytest.fail("it was parsed"))
    monkeypatch.setattr(images, "_OPENERS", opened)
    with pytest.raises(ImageDecodeError, match="save it again"):
        decode(ENDLESS[kind]())


def test_too_many_frames_are_refused_before_they_are_parsed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    opened = dict.fromkeys(images.FORMATS, lambda _: pytest.fail("it was parsed"))
    monkeypatch.setattr(images, "_OPENERS", opened)
    for name in ("GIF", "TIFF"):
        with pytest.raises(LimitExceededError) as caught:
            decode(encoded(name, count=4), frames=3)
        assert (caught.value.limit, caught.value.found) == ("frames", 4)


def test_frames_behind_junk_count() -> None:
    data = encoded("GIF", count=3)
    at = data.index(b"!\xf9", data.index(b","))  # of the second frame
    with pytest.raises(LimitExceededError):
        decode(data[:at] + b"junk" + data[at:], frames=2)


@pytest.mark.parametrize("name", ["PNG", "WEBP"])
def test_exif_that_is_too_large_is_not_read(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image.Exif, "load", lambda *_: pytest.fail("it was read"))
    data = b"Exif\0\0II*\0" + struct.pack("<L", 8) + bytes(262_144)
    with pytest.raises(ImageDecodeError, match="EXIF"):
        decode(encoded(name, exif=data))


def test_exif_in_the_text_of_a_png_is_bounded_as_well(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image.Exif, "load", lambda *_: pytest.fail("it was read"))
    text = b"Raw profile type exif\0" + b"\n\n\n" + b"00" * 140_000
    for kind in (chunk(b"tEXt", text), chunk(b"tEXt", b"exif\0" + bytes(270_000))):
        with pytest.raises(ImageDecodeError, match="EXIF"):
            decode(in_png(kind))


def bitmap(size: tuple[int, int], data: bytes) -> bytes:
    """A BMP of 256 greys, run-length coded."""
    head = struct.pack("<LLLHHLLLLLL", 40, *size, 1, 8, 1, len(data), 0, 0, 256, 0)
    table = b"".join(bytes([i, i, i, 0]) for i in range(256))
    offset = 14 + len(head) + len(table)
    return b"BM" + struct.pack("<LHHL", offset + len(data), 0, 0, offset) + head + table + data


def test_run_lengths_are_unfolded_of_small_bitmaps_only(monkeypatch: pytest.MonkeyPatch) -> None:
    row = bytes([200, 90, 0, 0])
    small = decode(bitmap((200, 100), row * 100))
    assert set(small.get_flattened_data()) == {(90, 90, 90)}
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", lambda _: pytest.fail("it was unfolded"))
    for data in (bitmap((2_000, 1_001), b"\0\1"), bitmap((200, 100), row * 500_000)):
        with pytest.raises(ImageDecodeError, match="without compression"):
            decode(data)


# ---- what cameras, editors and encoders write


@pytest.mark.parametrize("name", ["GIF", "TIFF", "PNG", "WEBP"])
def test_an_animation_of_all_the_frames_that_are_allowed_is_accepted(name: str) -> None:
    options = {"lossless": True} if name == "WEBP" else {}
    data = encoded(name, (4, 4), count=Limits().frames, **options)
    assert decode(data).size == (4, 4)


def test_a_jpeg_of_many_segments_and_a_divided_profile_is_accepted() -> None:
    profile = [b"ICC_PROFILE\0" + bytes([i + 1, 255]) + bytes(90) for i in range(255)]
    data = in_jpeg(b"".join(segment(0xE2, part) for part in profile) + segment(0xFE) * 1_700)
    assert decode(data).size == (8, 8)


def test_a_jpeg_with_fill_bytes_and_exif_is_accepted() -> None:
    exif = Image.Exif()
    exif[0x010E] = "a" * 60_000
    data = encoded("JPEG", exif=exif, progressive=True)
    assert decode(data[:2] + b"\xff" * 60_000 + data[2:]).size == (8, 8)


def test_what_stands_behind_a_jpegs_end_is_not_counted() -> None:
    assert decode(JPEG + segment(0xFE) * 3_000 + b"\xff" * JUNK).size == (8, 8)


def test_white_pixels_in_a_segment_are_no_fill_bytes() -> None:
    white = segment(0xE0, b"JFXX\0\x13" + b"\xff" * 65_000)
    assert decode(in_jpeg(white * 2)).size == (8, 8)


def test_a_large_png_in_small_chunks_of_data_is_accepted() -> None:
    noise = Image.effect_noise((1_000, 2_500), 120)
    buffer = BytesIO()
    noise.save(buffer, "PNG", compress_level=0)
    data = buffer.getvalue()
    head, packed = data[:33], b""
    at = 33
    while at < len(data):
        length, kind = struct.unpack_from(">L4s", data, at)
        packed += data[at + 8 : at + 8 + length] if kind == b"IDAT" else b""
        at += 12 + length
    pieces = [chunk(b"IDAT", packed[i : i + 1_024]) for i in range(0, len(packed), 1_024)]
    assert len(pieces) > 2_400
    small = head + b"".join(pieces) + chunk(b"IEND")
    assert decode(small).tobytes() == noise.convert("RGB").tobytes()


def test_a_tiff_of_a_strip_for_each_row_is_accepted() -> None:
    TiffImagePlugin.STRIP_SIZE, before = 1, TiffImagePlugin.STRIP_SIZE
    try:
        data = encoded("TIFF", (100, 20_000))
    finally:
        TiffImagePlugin.STRIP_SIZE = before
    assert decode(data).size == (100, 20_000)


@pytest.mark.parametrize(("order", "big"), [("<", False), (">", False), ("<", True)])
def test_a_tiff_with_exif_is_accepted_in_either_order_and_size(order: str, big: bool) -> None:
    link = [(34665, 4, 1, end_of(1, big=big))]
    inner = struct.pack(order + ("Q" if big else "H"), 0) + bytes(8)
    assert decode(tiff(link, inner, order=order, big=big)).size == (4, 4)


@pytest.mark.parametrize("target", [8, 34665])
def test_a_tiff_whose_directories_lead_to_themselves_has_an_end(target: int) -> None:
    data = bytearray(tiff([(34665, 4, 1, 8)] if target == 34665 else []))
    if target == 8:
        data[-20:-16] = struct.pack("<L", 8)  # the page behind it
    assert decode(bytes(data)).size == (4, 4)


# ---- the count is that of the parser


def damaged(data: bytes, edits: list[tuple[int, int]], inserted: bytes, where: int) -> bytes:
    changed = bytearray(data)
    for at, value in edits:
        changed[at % len(data)] = value
    where %= len(data)
    return bytes(changed[:where]) + inserted + bytes(changed[where:])


@given(
    st.sampled_from(["GIF", "TIFF"]),
    st.lists(st.tuples(st.integers(0, 5_000), st.integers(0, 255)), max_size=4),
    st.sampled_from([b"", b"ab", b"!\xfe\0", b"!\xf9\0", b"!\xff\x0bNETSCAPE2.0\0", b"\0" * 9]),
    st.integers(13, 5_000),
)
@settings(max_examples=300, deadline=None)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_pillow_never_finds_more_frames(
    name: str, edits: list[tuple[int, int]], inserted: bytes, where: int
) -> None:
    data = damaged(SHORT[name], edits, inserted, where)
    opener = GifImagePlugin.GifImageFile if name == "GIF" else TiffImagePlugin.TiffImageFile
    try:
        counted = counted_frames(name, data, Limits(frames=50), what="it")
        found = opener(BytesIO(data)).n_frames
    except (InputError, Image.DecompressionBombError, *images.PILLOW_ERRORS):
        return
    assert found <= counted


SHORT = {name: encoded(name, (4, 4), count=3) for name in ("GIF", "TIFF")}
