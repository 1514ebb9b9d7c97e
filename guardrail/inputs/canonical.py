"""Pictures for another model: handed on in a form that every decoder reads as it was judged.

Decoders differ. Sixteen bits are scaled by one and clipped by the next; colours under full
transparency show or do not; a rotation in the EXIF data, a gamma, a colour profile is followed or
ignored; of several frames one counts, or all. So whoever hands a request to another model first
makes it canonical, has *that* judged, and hands *that* on. A canonical picture is 8-bit RGB,
upright, one frame, without anything beside its pixels.

In shadow mode nothing is changed or refused. Videos are not rewritten.
"""

from __future__ import annotations

import base64
import struct
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from io import BytesIO
from typing import TYPE_CHECKING, Any

from PIL.Image import Image as PILImage

from guardrail.errors import UnsupportedContentError
from guardrail.inputs.images import loaded_picture, orientation_of
from guardrail.inputs.media import sniffed_format
from guardrail.inputs.parts import Budget, PictureSource, picture_in
from guardrail.inputs.structure import JPEG_MARKER
from guardrail.inputs.threads import DECODERS
from guardrail.policy.acting import enforces, one_reading
from guardrail.types import ImagePart, Message, Request

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from guardrail.policy import Policy

# Lossless up to here; a photograph of 12 million pixels would be 20 MB, which few servers take.
_MOST_PNG_BYTES = 4_000_000
_PNG_HEADER = struct.Struct(">IIBBBBB")
_SILENT_CHUNKS = frozenset({b"PLTE", b"IDAT", b"IEND", b"pHYs", b"sRGB", b"tIME", b"tEXt"})
_SRGB_GAMMA = (45455).to_bytes(4, "big")
# Frame headers of all JPEG processes; C4, C8 and CC are other segments.
_JPEG_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_JPEG_END = 0xD9
_PARTS_KEYS = ("content", "output")  # of messages, and of the items of an OpenAI response


@dataclass(frozen=True, slots=True)
class Encoded:
    """An encoded picture and its media type."""

    data: bytes
    media_type: str

    @property
    def base64(self) -> str:
        """The bytes in plain base64."""
        return base64.b64encode(self.data).decode("ascii")

    @property
    def data_url(self) -> str:
        """The picture as a `data:` URL."""
        return f"data:{self.media_type};base64,{self.base64}"


def canonical_picture(
    source: PILImage | bytes | bytearray | memoryview | str | Path,
    policy: Policy,
    *,
    what: str = "picture",
) -> Encoded:
    """The picture as it is handed on, under the policy's `pictures`.

    Canonical: a PNG of 8-bit RGB, which stays as it is where it is one; where it would be over
    4 MB, a JPEG of high quality, and then the JPEG's own pixels are those to be judged. Refuse: the
    bytes as they are.

    Args:
        source: a Pillow image, bytes, path, URL, `data:` URL or base64, as for `decode_image`.
        policy: its limits, hosts and files hold, too.
        what: how error messages call the picture.

    Raises:
        InputError: it cannot be read, or has two readings under `pictures = "refuse"`.
    """
    return _Canonical(policy).encoded(PictureSource(source, what))


def canonical_chat(value: Any, policy: Policy) -> Any:
    """A prompt, a picture or a chat in any form that a guard takes, its pictures canonical.

    The form stays: each picture is replaced under its own key, Pillow images by Pillow images,
    bytes by bytes, and what names a picture (a path, a URL) by a `data:` URL.

    Raises:
        InputError: a picture cannot be read, or has two readings under `pictures = "refuse"`.
    """
    return _Canonical(policy).value(value)


def require_one_reading(value: Any, policy: Policy) -> None:
    """Refuse a picture, or a chat with one, that decoders may read in two ways.

    For whoever leaves a request's bytes as they are, or is given values that others made of them.

    Raises:
        UnsupportedContentError: there is one; the message says why, and what to send instead.
        InputError: one cannot be read.
    """
    _Canonical(one_reading(policy)).value(value)


def second_reading(data: bytes, picture: PILImage) -> str | None:
    """Why decoders may differ on an encoded picture; None: they agree.

    PNG, JPEG, WebP and BMP are told by their structure. GIF and TIFF hold several pictures of one
    file by design, and have no such form.

    Args:
        data: the encoded picture, which `loaded_picture` could read.
        picture: what it read.
    """
    match sniffed_format(data):
        case "PNG":
            return _second_of_png(data, picture)
        case "JPEG":
            return _second_of_jpeg(data, picture)
        case "WEBP":
            return _second_of_webp(data)
        case "BMP":
            header, bits, packing = struct.unpack_from("<I10xHI", data, 14)
            plain = (header, bits, packing) == (40, 24, 0)
            return None if plain else "a BMP that is not plain 24-bit RGB"
        case other:
            return f"a {other}, which may hold several pictures"


class _Canonical:
    """One value's pictures, counted together."""

    def __init__(self, policy: Policy) -> None:
        self._policy, self._budget = policy, Budget(policy.limits)

    def value(self, value: Any) -> Any:
        if not enforces(self._policy):
            return value
        match value:
            case PILImage():
                return self._decoded(PictureSource(value, "picture"))
            case Request():
                return replace(value, messages=tuple(map(self._read_message, value.messages)))
            case Mapping():
                return self._message(value, "messages[0]")
            case list() | tuple():
                found = [self._message(each, f"messages[{i}]") for i, each in enumerate(value)]
                return tuple(found) if isinstance(value, tuple) else found
        return value

    def encoded(self, picture: PictureSource) -> Encoded:
        """The picture as it is handed on."""
        policy = self._policy
        if isinstance(picture.source, PILImage):
            return _written(self._decoded(picture))
        data = picture.encoded(policy)
        if enforces(policy) and policy.pictures == "canonical":
            found = self._decoded(PictureSource(data, picture.what))
            return Encoded(data, "image/png") if _is_canonical(data) else _written(found)
        if enforces(policy):
            loaded = loaded_picture(data, policy.limits, what=picture.what)
            self._budget.pixel_count(loaded.size)
            if (why := second_reading(data, loaded)) is not None:
                raise UnsupportedContentError(
                    f"{picture.what} is {why}; decoders may read it in two ways: save it as an "
                    "8-bit RGB PNG, upright, of one frame and without transparency or profiles"
                )
        return Encoded(data, f"image/{sniffed_format(data)}".lower())

    def _decoded(self, picture: PictureSource) -> PILImage:
        decoded = picture.decoded(self._policy)
        self._budget.pixel_count(decoded.size)
        return decoded

    def _read_message(self, message: Message) -> Message:
        """A message that was read before: its pictures are decoded."""
        parts = [
            ImagePart(self._decoded(PictureSource(part.image, "picture")))
            if isinstance(part, ImagePart)
            else part
            for part in message.parts
        ]
        return replace(message, parts=tuple(parts))

    def _message(self, message: Any, what: str) -> Any:
        if not isinstance(message, Mapping):
            return message  # to be refused by whoever reads it
        changed = {}
        for key in _PARTS_KEYS:
            if isinstance(parts := message.get(key), list | tuple):
                found = [self._part(p, f"{what}.{key}[{i}]") for i, p in enumerate(parts)]
                changed[key] = tuple(found) if isinstance(parts, tuple) else found
        return {**message, **changed} if changed else message

    def _part(self, part: Any, what: str) -> Any:
        found = picture_in(part, what) if isinstance(part, Mapping) else None
        if found is None:
            return part
        self._budget.image()
        key, picture = found
        if isinstance(picture.source, PILImage):
            return {**part, key: self._decoded(picture)}
        encoded = self.encoded(picture)
        media = {k: encoded.media_type for k in ("mime_type", "media_type") if part.get(k)}
        if isinstance(picture.source, bytes):
            return {**part, key: encoded.data, **media}
        if key == "path":  # a data: URL is none
            rest = {k: v for k, v in part.items() if k != key}
            return {**rest, "url": encoded.data_url, **media}
        named = encoded.base64 if picture.is_bare else encoded.data_url
        held = part[key]
        return {
            **part,
            key: {**held, "url": named} if isinstance(held, Mapping) else named,
            **media,
        }


def _written(picture: PILImage) -> Encoded:
    """The picture in the canonical encoding, made by one of the process's `Decoders`."""
    return DECODERS.result(partial(_compressed, picture), pixels=picture.width * picture.height)


def _compressed(picture: PILImage) -> Encoded:
    file = BytesIO()
    picture.save(file, "PNG", compress_level=1)  # higher levels take four times as long
    if file.tell() <= _MOST_PNG_BYTES:
        return Encoded(file.getvalue(), "image/png")
    file = BytesIO()
    picture.save(file, "JPEG", quality=95, subsampling=0)
    return Encoded(file.getvalue(), "image/jpeg")


def _chunks(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Names and contents of a PNG's chunks; one without a name is what stands behind the end."""
    position = 8
    while position + 12 <= len(data):
        length, name = struct.unpack_from(">I4s", data, position)
        yield name, data[position + 8 : position + 8 + length]
        position += 12 + length
        if name == b"IEND":
            break
    if position != len(data):
        yield b"", data[position:]


def _is_canonical(data: bytes) -> bool:
    if sniffed_format(data) != "PNG":
        return False
    first, *between, last = [name for name, _ in _chunks(data)]
    plain = first == b"IHDR" and set(between) == {b"IDAT"} and last == b"IEND"
    return plain and data[24:26] == b"\x08\x02"


def _second_of_png(data: bytes, picture: PILImage) -> str | None:
    for number, (name, content) in enumerate(_chunks(data)):
        if name == b"":
            return "a PNG with bytes behind its end"
        if name == b"IHDR" and number == 0:
            _, _, depth, colours, *_ = _PNG_HEADER.unpack_from(content)
            if depth != 8:
                return f"a PNG of {depth} bits a channel"
            opaque = colours not in (4, 6) or picture.getchannel("A").getextrema() == (255, 255)
            if not opaque:
                return "a PNG with transparency"
        elif name == b"gAMA" and content == _SRGB_GAMMA:
            continue
        elif name not in _SILENT_CHUNKS or content.startswith(b"Raw profile"):
            return f"a PNG with a chunk {name.decode('latin-1')}"
    return None


def _segments(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Markers of a JPEG and their contents; the last one has what stands behind the end."""
    position = 2
    while (marker := JPEG_MARKER.search(data, position)) is not None:
        kind, start = marker[1][0], marker.end()
        if kind == _JPEG_END:
            yield kind, data[start:]
            return
        position = start + int.from_bytes(data[start : start + 2])
        yield kind, data[start + 2 : position]


def _second_of_jpeg(data: bytes, picture: PILImage) -> str | None:
    if orientation_of(picture, damaged=0) != 1:
        return "a JPEG that its EXIF data turn"
    named, told, kind, content = False, False, 0, b""
    for kind, content in _segments(data):
        why = None
        if content.startswith(b"Exif\0"):
            why = "a JPEG with EXIF data twice" if told else None
            told = True
        elif kind in _JPEG_FRAMES:
            why = _second_of_frame(kind, content, named=named)
        elif kind == 0xE2 and content.startswith((b"ICC_PROFILE\0", b"MPF\0")):
            why = "a JPEG with a colour profile or several pictures"
        elif kind == 0xEE and content.startswith(b"Adobe") and content[11:12] != b"\1":
            why = "a JPEG in other colours than YCbCr"
        if why is not None:
            return why
        named = named or content.startswith((b"JFIF\0", b"Adobe"))
    return None if (kind, content) == (_JPEG_END, b"") else "a JPEG with bytes behind its end"


def _second_of_frame(kind: int, content: bytes, *, named: bool) -> str | None:
    """Of a JPEG's frame header; `named`: a segment before it says that three channels are YCbCr."""
    channels, names = content[5:6], content[6:15:3]
    if kind not in (0xC0, 0xC1, 0xC2) or content[:1] != b"\x08":
        return "a JPEG of a kind that few decoders read"
    if channels not in (b"\1", b"\3"):
        return "a JPEG in CMYK"
    if channels == b"\3" and (names == b"RGB" or not (named or names == b"\1\2\3")):
        return "a JPEG that does not say in which colours it is"
    return None


def _second_of_webp(data: bytes) -> str | None:
    size, pixels = (int.from_bytes(data[at : at + 4], "little") for at in (4, 16))
    alone = 20 + pixels + (pixels & 1) == size + 8 == len(data)
    if data[12:16] == b"VP8X" or not alone:
        return "a WebP with transparency, several frames, profiles, or bytes behind its end"
    if data[12:16] == b"VP8L" and data[24] & 0x10:
        return "a WebP with transparency"
    return None
