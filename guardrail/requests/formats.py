"""Which encoded pictures are accepted, and their headers checked before a pixel is decoded.

Pillow's classes are called by name, not through `Image.open`: what is accepted is the list below
whatever plug-ins a program has registered, and the policy's pixel limit rules alone.
"""

from __future__ import annotations

import re
import struct
import zlib
from contextlib import contextmanager
from io import BytesIO
from typing import TYPE_CHECKING

from PIL import (
    BmpImagePlugin,
    GifImagePlugin,
    Image,
    JpegImagePlugin,
    PngImagePlugin,
    TiffImagePlugin,
    WebPImagePlugin,
)

from guardrail.errors import (
    ImageDecodeError,
    InputError,
    LimitExceededError,
)
from guardrail.requests.medium import Medium

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from PIL.ImageFile import ImageFile

    from guardrail.policy import Limits

_OPENERS: dict[str, Callable[[BytesIO], ImageFile]] = {
    "PNG": PngImagePlugin.PngImageFile,
    "JPEG": JpegImagePlugin.jpeg_factory,  # MPO included
    "WEBP": WebPImagePlugin.WebPImageFile,
    "GIF": GifImagePlugin.GifImageFile,
    "BMP": BmpImagePlugin.BmpImageFile,
    "TIFF": TiffImagePlugin.TiffImageFile,
}
FORMATS = tuple(_OPENERS)
_SIGNATURES = (
    ("PNG", re.compile(rb"\x89PNG\r\n\x1a\n")),
    ("JPEG", re.compile(rb"\xff\xd8\xff")),
    ("WEBP", re.compile(rb"RIFF.{4}WEBP", re.DOTALL)),
    ("GIF", re.compile(rb"GIF8[79]a")),
    ("BMP", re.compile(rb"BM.{4}\0{4}", re.DOTALL)),  # 4 reserved bytes: "BM" alone is too common
    ("TIFF", re.compile(rb"II[*+]\0|MM\0[*+]")),
)
_MEDIA_TYPES = {
    "image/png": "PNG",
    "image/apng": "PNG",
    "image/jpeg": "JPEG",
    "image/jpg": "JPEG",
    "image/webp": "WEBP",
    "image/gif": "GIF",
    "image/bmp": "BMP",
    "image/x-ms-bmp": "BMP",
    "image/tiff": "TIFF",
}
# Each scan of a progressive JPEG costs a pass over all pixels and may be 50 bytes short; encoders
# write about ten. A hundred passes over a picture of the largest size take a few seconds.
_JPEG_SCANS = 100
JPEG_MARKER = re.compile(rb"\xff+([^\x00\x01\xd0-\xd7\xff])")
# What Pillow's parsers raise on damaged files is not documented and differs from format to format.
PILLOW_ERRORS = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    LookupError,
    MemoryError,
    NameError,
    OSError,
    RuntimeError,
    SyntaxError,
    TypeError,
    ValueError,
    EOFError,
    Warning,  # under -W error
    struct.error,
    zlib.error,
)


@contextmanager
def pillow_errors(what: str, limits: Limits) -> Iterator[None]:
    """Turn whatever Pillow raises in the block into errors of this package."""
    try:
        yield
    except InputError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as exc:
        found = re.search(r"\d+", str(exc))
        allowed = min(limits.image_pixels, Image.MAX_IMAGE_PIXELS or limits.image_pixels)
        raise LimitExceededError(
            limit="image_pixels",
            allowed=allowed,
            found=int(found[0]) if found else allowed + 1,
            what=what,
        ) from exc
    except PILLOW_ERRORS as exc:
        raise ImageDecodeError(
            f"{what} is damaged or cut short: {exc or type(exc).__name__}"
        ) from exc


def sniffed_format(data: bytes) -> str | None:
    """The accepted format whose signature opens `data`, or None."""
    return next((name for name, sign in _SIGNATURES if sign.match(data)), None)


PICTURE = Medium(
    name="picture",
    limit="image_bytes",
    error=ImageDecodeError,
    sniffed=sniffed_format,
    media_types=_MEDIA_TYPES,
    head=24,
    fetch_s=20.0,
)


def check_size(size: tuple[int, int], limits: Limits, *, what: str) -> None:
    """Refuse a picture without pixels, or with more or a longer shape than the policy allows."""
    width, height = size
    if width < 1 or height < 1:
        raise ImageDecodeError(f"{what} is {width} x {height}: it has no pixels")
    if width * height > limits.image_pixels:
        raise LimitExceededError(
            limit="image_pixels", allowed=limits.image_pixels, found=width * height, what=what
        )
    # A processor that scales the shorter side up makes gigabytes of a long strip.
    if (aspect := -(-max(size) // min(size))) > limits.image_aspect:
        raise LimitExceededError(
            limit="image_aspect", allowed=limits.image_aspect, found=aspect, what=what
        )


def loaded_picture(data: bytes, limits: Limits, *, what: str) -> ImageFile:
    """The first frame of an encoded picture, decoded once its header is within the limits."""
    name = sniffed_format(data)
    if name is None:
        raise ImageDecodeError(
            f"{what} ({len(data)} bytes) is no picture of a known format; "
            f"accepted: {', '.join(FORMATS)}"
        )
    with pillow_errors(what, limits):
        if name == "WEBP":  # Pillow makes the canvas while it reads the header
            check_size(_webp_size(data), limits, what=what)
        picture = _OPENERS[name](BytesIO(data))
        check_size(picture.size, limits, what=what)
        _check_frames(picture, data, limits, what)
        if name == "JPEG" and _jpeg_scans(data) > _JPEG_SCANS:
            raise ImageDecodeError(f"{what} is a JPEG of over {_JPEG_SCANS} scans; save it again")
        picture.load()
    return picture


def _check_frames(picture: ImageFile, data: bytes, limits: Limits, what: str) -> None:
    if picture.format == "GIF":  # Pillow's own count has no bound
        frames = _gif_frames(data, limits.frames)
    elif picture.format == "TIFF":
        frames = _tiff_frames(picture, limits.frames)
    else:
        frames = int(getattr(picture, "n_frames", 1))
    if frames > limits.frames:
        raise LimitExceededError(limit="frames", allowed=limits.frames, found=frames, what=what)


def _tiff_frames(picture: ImageFile, most: int) -> int:
    """Directories of a TIFF, read one by one without pixels; stops at `most` + 1."""
    frames = 1
    try:
        while frames <= most:
            picture.seek(frames)
            frames += 1
    except EOFError:
        return frames
    finally:
        picture.seek(0)
    return frames


def _gif_frames(data: bytes, most: int) -> int:
    """Image blocks of a GIF, counted by block lengths alone; stops at `most` + 1."""
    position = 13 + _colour_table(data[10])
    frames = 0
    while frames <= most and data[position : position + 1] in (b"!", b","):
        if data[position] == ord(","):
            frames += 1
            position += 11 + _colour_table(data[position + 9])
        else:
            position += 2
        while length := data[position]:
            position += 1 + length
        position += 1
    return frames


def _colour_table(flags: int) -> int:
    return 3 << ((flags & 7) + 1) if flags & 0x80 else 0


def _webp_size(data: bytes) -> tuple[int, int]:
    """Width and height of the canvas, from the first chunk of a WebP file."""
    match data[12:16]:
        case b"VP8X":
            return (
                int.from_bytes(data[24:27], "little") + 1,
                int.from_bytes(data[27:30], "little") + 1,
            )
        case b"VP8L":
            bits = int.from_bytes(data[21:25], "little")
            return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
        case b"VP8 ":
            width, height = struct.unpack_from("<HH", data, 26)
            return width & 0x3FFF, height & 0x3FFF
        case chunk:
            raise ImageDecodeError(f"a WebP file cannot begin with the chunk {chunk!r}")


def _jpeg_scans(data: bytes) -> int:
    """Scans of the first picture in a JPEG file."""
    scans, position = 0, 2
    while scans <= _JPEG_SCANS and (marker := JPEG_MARKER.search(data, position)):
        if marker[1] == b"\xd9":  # end of the picture
            break
        scans += marker[1] == b"\xda"
        position = marker.end() + int.from_bytes(data[marker.end() : marker.end() + 2])
    return scans
