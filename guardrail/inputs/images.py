"""Any form of picture people send -> one upright RGB picture, within the policy's limits.

What every kind of video comes down to: pictures with the times at which they are shown.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from guardrail.errors import UnsupportedContentError
from guardrail.inputs.media import PILLOW_ERRORS, check_size, decoded, pillow_errors
from guardrail.inputs.sources import Access, picture_bytes
from guardrail.inputs.structure import DECODERS

if TYPE_CHECKING:
    from collections.abc import Callable, Collection
    from pathlib import Path

    from numpy.typing import NDArray
    from PIL.Image import Image as PILImage

    from guardrail.policy import Limits

SIDE = 32  # of thumbnails, in pixels


@dataclass(frozen=True, slots=True)
class Shot:
    """One frame as it was decoded; colours are made only of those that are taken."""

    time: float  # s since the first frame, ascending
    picture: Callable[[], PILImage]  # upright, RGB
    thumbnail: Callable[[], NDArray[np.uint8]]  # RGB, (SIDE, SIDE, 3)
    lasts: float = 0.0  # s; as far as a video states it


def small(picture: PILImage) -> NDArray[np.uint8]:
    """An RGB picture's thumbnail, (SIDE, SIDE, 3)."""
    return np.asarray(picture.resize((SIDE, SIDE), Image.Resampling.BOX))


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
    *,
    limits: Limits,
    allowed_hosts: Collection[str],
    local_files: bool,
    what: str = "picture",
) -> Image.Image:
    """Decode a picture to RGB: upright by its EXIF, alpha on white, 16 bits scaled to 8.

    A string is read by the first rule that fits:

    1. `data:` - a data URL, base64 or percent-encoded; its media type must fit the content;
    2. `http://`, `https://` - fetched when the host is in `allowed_hosts`, see
       `guardrail.inputs.fetch`;
    3. `file:` - a local file;  any other `scheme://` is refused;
    4. base64 whose first bytes are the signature of an accepted format (so that a JPEG's `/9j/...`
       never reaches the disk), alphabet and padding checked, ASCII whitespace ignored;
    5. a path, `~` not expanded.

    Rules 3 and 5 and `Path` objects need `local_files`; only regular files are read, through links.
    Encoded pictures are PNG, JPEG (MPO), WebP, GIF, BMP or TIFF by content, never by name. Of an
    animation the first frame counts. Encoded size, structure, pixels and frames are checked before
    decoding, which one of the process's `decoders` does.

    A Pillow picture is copied, never changed, though a lazily opened one is loaded; the frame it
    stands on counts, its format is the caller's business, its pixels are checked. Modes without a
    fixed range or with a colour space of their own (F, LAB, `I` outside 16 bits) are refused.

    Args:
        source: the picture in any of the forms above.
        limits: the policy's bounds.
        allowed_hosts: hosts that may be fetched from.
        local_files: whether the disk may be read.
        what: how error messages call the picture, e.g. `messages[0].content[1]`.

    Raises:
        InputError: one of its kinds, whatever the bytes are.
    """
    upright = partial(_upright, limits=limits, what=what)
    if isinstance(source, Image.Image):
        check_size(source.size, limits, what=what)
        return DECODERS.result(partial(upright, source), pixels=source.width * source.height)
    data = picture_bytes(source, Access(limits, allowed_hosts, local_files), what)
    return decoded(data, limits, upright, what=what)


def _upright(picture: Image.Image, *, limits: Limits, what: str) -> Image.Image:
    with pillow_errors(what, limits):
        rgb = rgb_of(picture, what)
        if (orientation := orientation_of(picture)) in _UPRIGHT:
            rgb = rgb.transpose(_UPRIGHT[orientation])
    rgb.info.clear()  # a second reader must not turn it again
    return rgb


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
