"""Pictures become small copies, or nothing: no file breaks a page."""

from __future__ import annotations

import base64
import io
import os
import struct
import zlib

import pytest
from PIL import Image

from guardrail.report.thumbnails import thumbnail


def decoded(url: str | None) -> Image.Image:
    assert url is not None
    return Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2])))


def huge_png() -> bytes:
    """A few bytes that claim 60,000 x 60,000 pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"0"))


def test_a_picture_is_found_below_its_base(pictures):
    assert decoded(thumbnail(pictures, "pictures/0.png", 64)).size == (64, 40)


def test_an_absolute_path_needs_no_base(pictures):
    assert thumbnail(None, str(pictures / "pictures" / "0.png")) is not None
    assert thumbnail(None, "pictures/0.png") is None


@pytest.mark.parametrize(
    "name",
    ["../../../../../../etc/passwd", "pictures/3.png", "pictures/none.png", "pictures", "", None,
     "https://example.org/x.png", "data:image/png;base64,AAAA", "a\0b", "x" * 5000, "\ud800",
     "~nobody/x.png"],
)  # fmt: skip
def test_what_is_no_picture_gives_none(pictures, name):
    assert thumbnail(pictures, name) is None


def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    assert thumbnail(tmp_path, "pipe.png") is None


def test_a_picture_that_claims_too_many_pixels_is_not_decoded(tmp_path):
    (tmp_path / "huge.png").write_bytes(huge_png())
    assert thumbnail(tmp_path, "huge.png") is None


@pytest.mark.parametrize("cut", [10, 40, 100, 300])
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF", "TIFF", "BMP"])
def test_a_cut_file_gives_none(tmp_path, kind, cut):
    data = io.BytesIO()
    Image.linear_gradient("L").convert("RGB").save(data, kind)
    (tmp_path / "whole").write_bytes(data.getvalue())
    (tmp_path / "cut").write_bytes(data.getvalue()[:cut])
    assert decoded(thumbnail(tmp_path, "whole", 64)).size == (64, 64)
    assert thumbnail(tmp_path, "cut") is None


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK", "I;16"])
def test_every_mode_can_be_shown(tmp_path, mode):
    kind = "TIFF" if mode == "CMYK" else "PNG"
    Image.new(mode, (30, 20)).save(tmp_path / "p", kind)
    assert decoded(thumbnail(tmp_path, "p")).mode == "RGB"


def test_transparent_ground_is_white(tmp_path):
    Image.new("RGBA", (8, 8), (255, 0, 0, 0)).save(tmp_path / "p.png")
    assert decoded(thumbnail(tmp_path, "p.png")).getpixel((0, 0)) == (255, 255, 255)


def test_a_turned_photo_stands_upright(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (40, 20)).save(tmp_path / "p.jpg", exif=exif)
    assert decoded(thumbnail(tmp_path, "p.jpg")).size == (20, 40)


def test_no_metadata_travels_along(pictures):
    assert "taken at home" in (pictures / "pictures" / "0.png").read_bytes().decode("latin-1")
    url = thumbnail(pictures, "pictures/0.png")
    assert url is not None
    assert b"taken at home" not in base64.b64decode(url.partition(",")[2])
