"""Any form of picture people send -> one upright RGB picture, within the policy's limits.

Pillow's classes are called by name, not through `Image.open`: what is accepted is the list below
whatever plug-ins a program has registered, and the policy's pixel limit rules alone. Headers are
checked before a pixel is decoded.
"""

from __future__ import annotations

import re
import struct
import zlib
from contextlib import contextmanager
from functools import partial
from io import BytesIO
from typing import TYPE_CHECKING, TypeVar

import numpy as np
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
    UnsupportedContentError,
)
from guardrail.inputs.media import sniffed_format
from guardrail.inputs.sources import picture_bytes
from guardrail.inputs.structure import check_exif, counted_frames
from guardrail.inputs.threads import DECODERS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from PIL.ImageFile import ImageFile

    from guardrail.policy import Limits, Policy

T = TypeVar("T")

_OPENERS: dict[str, Callable[[BytesIO], ImageFile]] = {
    "PNG": PngImagePlugin.PngImageFile,
    "JPEG": JpegImagePlugin.jpeg_factory,  # MPO included
    "WEBP": WebPImagePlugin.WebPImageFile,
    "GIF": GifImagePlugin.GifImageFile,
    "BMP": BmpImagePlugin.BmpImageFile,
    "TIFF": TiffImagePlugin.TiffImageFile,
}
FORMATS = tuple(_OPENERS)
_RUN_LENGTH = 2_000_000  # pixels, and bytes: Pillow unfolds such BMPs in Python, about 1 us each
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
_OPAQUE = frozenset({"1", "L", "P", "RGB", "RGBX", "CMYK", "YCbCr", "HSV"})

_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def decode_image(
    source: Image.Image | bytes | bytearray | memoryview | str | Path,
    policy: Policy,
    *,
    what: str = "picture",
) -> Image.Image:
    """Decode a picture to RGB: upright by its EXIF, alpha on white, 16 bits scaled to 8.

    A string is read by the first rule that fits:

    1. `data:` - a data URL, base64 or percent-encoded; its media type must fit the content;
    2. `http://`, `https://` - fetched when the policy's `allowed_hosts` has the host, see
       `guardrail.inputs.fetch`;
    3. `file:` - a local file;  any other `scheme://` is refused;
    4. base64 whose first bytes are the signature of an accepted format (so that a JPEG's `/9j/...`
       never reaches the disk), alphabet and padding checked, ASCII whitespace ignored;
    5. a path, `~` not expanded.

    Rules 3 and 5 and `Path` objects need the policy's `local_files`; only regular files are read,
    through links. Encoded pictures are PNG, JPEG (MPO), WebP, GIF, BMP or TIFF by content, never by
    name. Of an animation the first frame counts. Encoded size, structure, pixels and frames are
    checked before decoding, which one of the process's `Decoders` does.

    A Pillow picture is copied, never changed, though a lazily opened one is loaded; the frame it
    stands on counts, its format is the caller's business, its pixels are checked. Modes without a
    fixed range or with a colour space of their own (F, LAB, `I` outside 16 bits) are refused.

    Args:
        source: the picture in any of the forms above.
        policy: its bounds, and what of hosts and disk may be read.
        what: how error messages call the picture, e.g. `messages[0].content[1]`.

    Raises:
        InputError: one of its kinds, whatever the bytes are.
    """
    if not isinstance(source, Image.Image):
        source = picture_bytes(source, policy, what)
    return upright_picture(source, policy.limits, what)


def upright_picture(picture: Image.Image | bytes, limits: Limits, what: str) -> Image.Image:
    """`decode_image` for what needs nothing from outside: a Pillow picture or an encoded one."""
    upright = partial(_upright, limits=limits, what=what)
    if isinstance(picture, bytes):
        return _decoded(picture, limits, upright, what=what)
    check_size(picture.size, limits, what=what)
    return DECODERS.result(partial(upright, picture), pixels=picture.width * picture.height)


def loaded_picture(data: bytes, limits: Limits, *, what: str) -> ImageFile:
    """The first frame of an encoded picture, decoded once all that is known of it is allowed."""
    return _decoded(data, limits, lambda picture: picture, what=what)


def orientation_of(picture: Image.Image, *, damaged: int = 1) -> int:
    """How a picture is to be turned by its EXIF data, 1 to 8; 1 is upright.

    `damaged` stands for what cannot be read: such pixels are shown as they are stored, as most
    viewers do.
    """
    try:
        return int(picture.getexif().get(0x0112, 1))
    except PILLOW_ERRORS:
        return damaged


def rgb_of(picture: Image.Image, what: str) -> Image.Image:
    """A new picture in RGB, alpha on white, 16 bits scaled to 8.

    Raises:
        UnsupportedContentError: its mode has no colours of a fixed range.
    """
    if picture.mode == "I" or picture.mode.startswith("I;16"):
        return _grey_from_16_bits(picture, what)
    if picture.mode == "La":
        picture = picture.convert("LA")
    if picture.mode in _OPAQUE and not picture.has_transparency_data:
        return picture.convert("RGB")
    if not picture.has_transparency_data:
        raise UnsupportedContentError(
            f"{what} has the Pillow mode {picture.mode!r}, whose colours are not defined here; "
            "convert it to RGB first"
        )
    white = Image.new("RGBA", picture.size, "white")
    return Image.alpha_composite(white, picture.convert("RGBA")).convert("RGB")


def _grey_from_16_bits(picture: Image.Image, what: str) -> Image.Image:
    """Grey of 0 to 65535, (height, width), rounded to 8 bits; transparent grey becomes white."""
    values = np.asarray(picture).astype(np.int32)
    if values.min() < 0 or values.max() > 0xFFFF:
        raise UnsupportedContentError(
            f"{what} has values outside 0 to 65535; convert it to RGB first"
        )
    grey = ((values + 128) // 257).astype(np.uint8)
    if isinstance(key := picture.info.get("transparency"), int):
        grey[values == key] = 255
    return Image.fromarray(grey).convert("RGB")


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


def check_size(size: tuple[int, int], limits: Limits, *, what: str) -> None:
    """Refuse a picture without pixels, or with more or a longer shape than the policy allows."""
    width, height = size
    if width < 1 or height < 1:
        raise ImageDecodeError(f"{what} is {width} x {height}: it has no pixels")
    limits.check("image_pixels", width * height, what=what)
    # A processor that scales the shorter side up makes gigabytes of a long strip.
    limits.check("image_aspect", -(-max(size) // min(size)), what=what)


def _upright(picture: Image.Image, *, limits: Limits, what: str) -> Image.Image:
    with pillow_errors(what, limits):
        rgb = rgb_of(picture, what)
        if (orientation := orientation_of(picture)) in _UPRIGHT:
            rgb = rgb.transpose(_UPRIGHT[orientation])
    rgb.info.clear()  # a second reader must not turn it again
    return rgb


def _decoded(data: bytes, limits: Limits, then: Callable[[ImageFile], T], *, what: str) -> T:
    """What `then` makes of a loaded picture; it is called by one of the process's `Decoders`, too.

    Raises:
        InputError: it cannot be read, or is larger than the policy allows.
    """
    picture = DECODERS.result(partial(_opened, data, limits, what))

    def finished() -> T:
        with pillow_errors(what, limits):
            picture.load()
        check_exif(picture.info, what)
        return then(picture)

    return DECODERS.result(finished, pixels=picture.width * picture.height)


def _opened(data: bytes, limits: Limits, what: str) -> ImageFile:
    """An encoded picture whose structure, size and frames are within the limits; no pixels yet."""
    name = sniffed_format(data)
    if name is None:
        raise ImageDecodeError(
            f"{what} ({len(data)} bytes) is no picture of a known format; "
            f"accepted: {', '.join(FORMATS)}"
        )
    with pillow_errors(what, limits):
        limits.check("frames", counted_frames(name, data, limits, what=what), what=what)
        if name == "WEBP":  # Pillow makes the canvas while it reads the header
            check_size(_webp_size(data), limits, what=what)
        picture = _OPENERS[name](BytesIO(data))
        check_size(picture.size, limits, what=what)
        if name not in ("GIF", "TIFF"):  # whose frames Pillow counts without a bound
            limits.check("frames", int(getattr(picture, "n_frames", 1)), what=what)
        runs = name == "BMP" and picture.info.get("compression") in (1, 2)
        if runs and max(picture.width * picture.height, len(data)) > _RUN_LENGTH:
            raise ImageDecodeError(
                f"{what} is a run-length coded BMP of more than {_RUN_LENGTH} pixels or bytes; "
                "save it again without compression, or as PNG"
            )
    return picture


def _webp_size(data: bytes) -> tuple[int, int]:
    """Width and height of the canvas, from the first chunk of a WebP file."""
    match data[12:16]:
        case b"VP8X":
            width, height = (int.from_bytes(data[at : at + 3], "little") for at in (24, 27))
            return width + 1, height + 1
        case b"VP8L":
            bits = int.from_bytes(data[21:25], "little")
            return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
        case b"VP8 ":
            width, height = struct.unpack_from("<HH", data, 26)
            return width & 0x3FFF, height & 0x3FFF
        case chunk:
            raise ImageDecodeError(f"a WebP file cannot begin with the chunk {chunk!r}")
