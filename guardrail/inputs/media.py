"""Which encoded pictures and videos are accepted, told by their first bytes, never by their name.

A `Medium` is all in which pictures and videos differ while nothing of them is decoded. FFmpeg knows
hundreds of video formats, among them lists that name other files and addresses (concat, HLS, DASH,
SDP). It is only ever asked for the demuxers below, by name, so it never guesses.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING

from guardrail.errors import ImageDecodeError, InputError, UnsupportedContentError, VideoDecodeError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from guardrail.policy import Limits

HEAD_BYTES = 600  # which tell any format

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

_PICTURE_SIGNATURES = (
    ("PNG", re.compile(rb"\x89PNG\r\n\x1a\n")),
    ("JPEG", re.compile(rb"\xff\xd8\xff")),
    ("WEBP", re.compile(rb"RIFF.{4}WEBP", re.DOTALL)),
    ("GIF", re.compile(rb"GIF8[79]a")),
    ("BMP", re.compile(rb"BM.{4}\0{4}", re.DOTALL)),  # 4 reserved bytes: "BM" alone is too common
    ("TIFF", re.compile(rb"II[*+]\0|MM\0[*+]")),
)
_VIDEO_SIGNATURES = (
    ("MP4", re.compile(rb".{4}(ftyp|moov|mdat|wide|free|skip|pnot)", re.DOTALL)),
    ("Matroska", re.compile(rb"\x1aE\xdf\xa3")),
    ("AVI", re.compile(rb"RIFF.{4}AVI ", re.DOTALL)),
    # packets of 188 bytes, or 192 with a time code before each
    ("MPEG-TS", re.compile(rb"G.{187}G.{187}G|.{4}G.{191}G.{191}G", re.DOTALL)),
    ("MPEG", re.compile(rb"\0\0\x01\xba")),
    ("Ogg", re.compile(rb"OggS\0")),
)


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
        limits.check(self.limit, size, what=what)

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


def sniffed_format(data: bytes) -> str | None:
    """The accepted format whose signature opens `data`, or None."""
    return next((name for name, sign in _PICTURE_SIGNATURES if sign.match(data)), None)


def sniffed_video(data: bytes) -> str | None:
    """The accepted format whose signature opens `data`, or None."""
    picture = sniffed_format(data)
    if picture in ANIMATIONS:
        return picture
    return next((name for name, sign in _VIDEO_SIGNATURES if sign.match(data)), None)


PICTURE = Medium(
    name="picture",
    limit="image_bytes",
    error=ImageDecodeError,
    sniffed=sniffed_format,
    media_types={
        "image/png": "PNG",
        "image/apng": "PNG",
        "image/jpeg": "JPEG",
        "image/jpg": "JPEG",
        "image/webp": "WEBP",
        "image/gif": "GIF",
        "image/bmp": "BMP",
        "image/x-ms-bmp": "BMP",
        "image/tiff": "TIFF",
    },
    head=24,
    fetch_s=20.0,
)
VIDEO = Medium(
    name="video",
    limit="video_bytes",
    error=VideoDecodeError,
    sniffed=sniffed_video,
    media_types={
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
    },
    head=800,  # three packets of a transport stream
    fetch_s=120.0,
)
