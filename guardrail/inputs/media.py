"""Which encoded pictures are accepted, and their headers checked before a pixel is decoded.

Pillow's classes are called by name, not through `Image.open`: what is accepted is the list below
whatever plug-ins a program has registered, and the policy's pixel limit rules alone.

What pictures and videos differ in while nothing of them is decoded: size, signature, errors.

Which encoded videos are accepted, by their first bytes: containers for FFmpeg, animations.

FFmpeg knows hundreds of formats, among them lists that name other files and addresses (concat, HLS,
DASH, SDP). It is only ever asked for the demuxers below, by name, so it never guesses.
"""

from __future__ import annotations

import re
import struct
import zlib
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from io import BytesIO
from types import MappingProxyType
from typing import TYPE_CHECKING, TypeVar

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
    VideoDecodeError,
)
from guardrail.inputs.structure import DECODERS, check_exif, counted_frames

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from PIL.ImageFile import ImageFile

    from guardrail.policy import Limits


@dataclass(frozen=True, slots=True)
class Medium:
    """A kind of encoded content, told by its first bytes and never by its name."""

    name: str
    limit: str  # of `Limits`: the encoded size
    error: type[InputError]  # of bytes that cannot be read as this
    sniffed: Callable[[bytes], str | None]  # the accepted format that the first bytes open
    media_types: Mapping[str, str]  # to the format they promise
    head: int  # base64 characters that hold any signature
    fetch_s: float  # how long fetching one may take

    def max_bytes(self, limits: Limits) -> int:
        """The largest encoded size that is accepted."""
        allowed: int = getattr(limits, self.limit)
        return allowed

    def check_bytes(self, size: int, limits: Limits, *, what: str) -> None:
        """Refuse what is larger than the policy allows.

        Raises:
            LimitExceededError: it is.
        """
        if size > (allowed := self.max_bytes(limits)):
            raise LimitExceededError(limit=self.limit, allowed=allowed, found=size, what=what)

    def check_media_type(self, data: bytes, declared: str, *, what: str) -> None:
        """Refuse a declared media type that is not accepted or that the content contradicts."""
        expected = self.media_types.get(declared.strip().lower())
        if expected is None:
            raise UnsupportedContentError(
                f"{what} has the media type {declared[:80]!r}; accepted: "
                f"{', '.join(self.media_types)}"
            )
        if (found := self.sniffed(data)) != expected:
            raise self.error(
                f"{what} is declared as {declared[:80]!r} but holds {found or 'no known format'}; "
                "declare the true media type"
            )


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
    """The first frame of an encoded picture, decoded once all that is known of it is allowed."""
    return decoded(data, limits, lambda picture: picture, what=what)


def decoded(data: bytes, limits: Limits, then: Callable[[ImageFile], T], *, what: str) -> T:
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
        _check_frames(counted_frames(name, data, limits, what=what), limits, what)
        if name == "WEBP":  # Pillow makes the canvas while it reads the header
            check_size(_webp_size(data), limits, what=what)
        picture = _OPENERS[name](BytesIO(data))
        check_size(picture.size, limits, what=what)
        if name not in ("GIF", "TIFF"):  # whose frames Pillow counts without a bound
            _check_frames(int(getattr(picture, "n_frames", 1)), limits, what)
        if name == "BMP" and picture.info.get("compression") in (1, 2):
            _check_runs(picture, data, what)
    return picture


def _check_frames(found: int, limits: Limits, what: str) -> None:
    if found > limits.frames:
        raise LimitExceededError(limit="frames", allowed=limits.frames, found=found, what=what)


def _check_runs(picture: ImageFile, data: bytes, what: str) -> None:
    if max(picture.width * picture.height, len(data)) > _RUN_LENGTH:
        raise ImageDecodeError(
            f"{what} is a run-length coded BMP of more than {_RUN_LENGTH} pixels or bytes; save it "
            "again without compression, or as PNG"
        )


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


DEMUXERS: Mapping[str, str] = MappingProxyType(
    {
        "MP4": "mov",  # QuickTime and 3GP included
        "Matroska": "matroska",  # WebM included
        "AVI": "avi",
        "MPEG-TS": "mpegts",
        "MPEG": "mpeg",
        "Ogg": "ogg",
    }
)

ANIMATIONS = frozenset({"GIF", "WEBP", "PNG"})  # through Pillow, which knows their transparency

_VIDEO_SIGNATURES = (
    ("MP4", re.compile(rb".{4}(ftyp|moov|mdat|wide|free|skip|pnot)", re.DOTALL)),
    ("Matroska", re.compile(rb"\x1aE\xdf\xa3")),
    ("AVI", re.compile(rb"RIFF.{4}AVI ", re.DOTALL)),
    # packets of 188 bytes, or 192 with a time code before each
    ("MPEG-TS", re.compile(rb"G.{187}G.{187}G|.{4}G.{191}G.{191}G", re.DOTALL)),
    ("MPEG", re.compile(rb"\0\0\x01\xba")),
    ("Ogg", re.compile(rb"OggS\0")),
)

_VIDEO_MEDIA_TYPES = {
    "video/mp4": "MP4",
    "video/quicktime": "MP4",
    "video/x-m4v": "MP4",
    "video/3gpp": "MP4",
    "video/3gpp2": "MP4",
    "video/webm": "Matroska",
    "video/matroska": "Matroska",
    "video/x-matroska": "Matroska",
    "video/avi": "AVI",
    "video/vnd.avi": "AVI",
    "video/x-msvideo": "AVI",
    "video/mp2t": "MPEG-TS",
    "video/mpeg": "MPEG",
    "video/ogg": "Ogg",
    "image/gif": "GIF",
    "image/webp": "WEBP",
    "image/png": "PNG",
    "image/apng": "PNG",
}


def sniffed_video(data: bytes) -> str | None:
    """The accepted format whose signature opens `data`, or None."""
    picture = sniffed_format(data)
    if picture in ANIMATIONS:
        return picture
    return next((name for name, sign in _VIDEO_SIGNATURES if sign.match(data)), None)


VIDEO = Medium(
    name="video",
    limit="video_bytes",
    error=VideoDecodeError,
    sniffed=sniffed_video,
    media_types=_VIDEO_MEDIA_TYPES,
    head=800,  # three packets of a transport stream
    fetch_s=120.0,
)

HEAD_BYTES = 600
