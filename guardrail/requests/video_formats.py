"""Which encoded videos are accepted, by their first bytes: containers for FFmpeg, animations.

FFmpeg knows hundreds of formats, among them lists that name other files and addresses (concat, HLS,
DASH, SDP). It is only ever asked for the demuxers below, by name, so it never guesses.
"""

from __future__ import annotations

import re
from types import MappingProxyType
from typing import TYPE_CHECKING

from guardrail.errors import VideoDecodeError
from guardrail.requests.formats import sniffed_format
from guardrail.requests.medium import Medium

if TYPE_CHECKING:
    from collections.abc import Mapping

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
_SIGNATURES = (
    ("MP4", re.compile(rb".{4}(ftyp|moov|mdat|wide|free|skip|pnot)", re.DOTALL)),
    ("Matroska", re.compile(rb"\x1aE\xdf\xa3")),
    ("AVI", re.compile(rb"RIFF.{4}AVI ", re.DOTALL)),
    # packets of 188 bytes, or 192 with a time code before each
    ("MPEG-TS", re.compile(rb"G.{187}G.{187}G|.{4}G.{191}G.{191}G", re.DOTALL)),
    ("MPEG", re.compile(rb"\0\0\x01\xba")),
    ("Ogg", re.compile(rb"OggS\0")),
)
_MEDIA_TYPES = {
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
    return next((name for name, sign in _SIGNATURES if sign.match(data)), None)


VIDEO = Medium(
    name="video",
    limit="video_bytes",
    error=VideoDecodeError,
    sniffed=sniffed_video,
    media_types=_MEDIA_TYPES,
    head=800,  # three packets of a transport stream
    fetch_s=120.0,
)
HEAD_BYTES = 600
