"""Small copies of the inputs' pictures, for people to recognise them by."""

from __future__ import annotations

import struct
import warnings
import zlib
from typing import TYPE_CHECKING

from guardrail.report.figures import png_data

if TYPE_CHECKING:
    from pathlib import Path

    from PIL.Image import Image

MAX_BYTES, MAX_PIXELS = 50_000_000, 64_000_000
# what Pillow's decoders raise, whatever the bytes are
_DAMAGED = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    EOFError,
    LookupError,
    MemoryError,
    OSError,
    RuntimeError,
    struct.error,
    SyntaxError,
    TypeError,
    ValueError,
    zlib.error,
)
_FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")


def thumbnail(base: Path | None, name: str | None, size: int = 176) -> str | None:
    """A picture as a small PNG data URL, or None where there is none to show.

    None covers everything that is no readable picture of a believable size: a missing or damaged
    file, a folder, another kind of file. Pixels are re-encoded, so no metadata travels along.

    Args:
        base: the folder that relative names start from; without one, they are not looked for.
        name: the picture's path, as the report has it.
        size: the longer side at most, in pixels.
    """
    from pathlib import Path

    from PIL.Image import DecompressionBombError

    if not name or (base is None and not Path(name).is_absolute()):
        return None
    try:
        with warnings.catch_warnings(action="ignore"):
            picture = _opened((base or Path()) / name)
            return None if picture is None else png_data(picture, size)
    except (DecompressionBombError, *_DAMAGED):
        return None


def _opened(path: Path) -> Image | None:
    """The first frame, upright, on white where it is transparent."""
    from PIL import Image, ImageOps

    if not path.is_file() or path.stat().st_size > MAX_BYTES:
        return None
    Image.init()  # all formats, which `open` loads one by one, but not those it is asked for
    with Image.open(path, formats=_FORMATS) as opened:
        if opened.width * opened.height > MAX_PIXELS:
            return None
        opened.draft("RGB", (512, 512))  # a large JPEG is decoded small
        upright = ImageOps.exif_transpose(opened)
        if not upright.has_transparency_data:
            return upright.convert("RGB")
        white = Image.new("RGBA", upright.size, "white")
        return Image.alpha_composite(white, upright.convert("RGBA")).convert("RGB")
