"""Content parts of the usual message forms -> text, picture and video sources, bounded.

A new modality begins here: `MEDIA` says which parts hold it and under which keys, `read_part` makes
a source of such a part, and `messages` reads the source once all parts of a request are counted.
"Where a new modality begins" in guardrail/inputs/README.md names every place after that.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from PIL.Image import Image as PILImage

from guardrail.errors import InputError, UnsupportedContentError
from guardrail.inputs.images import upright_picture
from guardrail.inputs.labels import is_label
from guardrail.inputs.media import PICTURE, VIDEO
from guardrail.inputs.sources import decoded_base64, picture_bytes
from guardrail.inputs.videos import VideoSource

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

    from guardrail.inputs.media import Medium
    from guardrail.policy import Limits, Policy

_TEXT_KEYS = {"text": "text", "input_text": "text", "output_text": "text", "refusal": "refusal"}
# By a part's type: what it holds, and the keys that may name it.
MEDIA: Mapping[str, tuple[Medium, tuple[str, ...]]] = {
    "image": (PICTURE, ("image", "url", "path", "base64", "data")),
    "image_url": (PICTURE, ("image_url",)),
    "input_image": (PICTURE, ("image_url",)),
    "video": (VIDEO, ("video", "url", "path", "base64", "data")),
    "video_url": (VIDEO, ("video_url",)),
    "input_video": (VIDEO, ("video_url",)),
}
MEDIA_KEYS = frozenset(key for _, keys in MEDIA.values() for key in keys)
_ACCEPTED = ", ".join((*_TEXT_KEYS, *MEDIA))
# Say how to handle a part, never what is in it; `source_type` is LangChain's older form.
_ABOUT_PARTS = frozenset({"type", "id", "index", "cache_control", "detail"})
_ABOUT_MEDIA = _ABOUT_PARTS | {"mime_type", "media_type", "source_type"}
# Nobody reads what stands there, in a part or around it: so it may be no words. An id may be long,
# so one that is no label is judged by whoever sends it on (`shown_labels`).
_WORDLESS = (_ABOUT_MEDIA | {"status"}) - {"type", "id"}


@dataclass(slots=True)
class Budget:
    """Counts, checked one by one, so that nothing is decoded that could not be accepted."""

    limits: Limits
    text_chars: int = 0
    images: int = 0
    videos: int = 0
    pixels: int = 0

    def text(self, value: object, what: str) -> str:
        """The checked text: a str without lone surrogates; other control characters are kept."""
        if not isinstance(value, str):
            raise UnsupportedContentError(f"{what} must be a str, not {type(value).__name__}")
        self.text_chars += len(value)
        self._check("text_chars", self.text_chars)
        try:
            value.encode()
        except UnicodeEncodeError as exc:
            raise UnsupportedContentError(
                f"{what} holds a lone surrogate at character {exc.start}, which no tokenizer can "
                "read; decode the text with errors='replace'"
            ) from exc
        return str(value)

    def image(self) -> None:
        """Count one picture."""
        self.images += 1
        self._check("images", self.images)

    def video(self) -> int:
        """Count one video; its number in the request, from 0."""
        self.videos += 1
        self._check("videos", self.videos)
        return self.videos - 1

    def pixel_count(self, size: tuple[int, int]) -> None:
        """Count the pixels of one picture, or of one frame of a clip."""
        self.pixels += size[0] * size[1]
        self._check("total_pixels", self.pixels)

    def json(self, value: object, what: str) -> str:
        """Uncounted JSON of plain values, bounded as it is written: shared or cyclic ones too."""
        left, pieces = self.limits.text_chars - self.text_chars, list[str]()
        try:
            for piece in json.JSONEncoder(ensure_ascii=False).iterencode(value):
                left -= len(piece)
                self._check("text_chars", self.limits.text_chars - left)
                pieces.append(piece)
        except InputError:
            raise
        except (TypeError, ValueError, RecursionError) as exc:
            raise UnsupportedContentError(f"{what} cannot be written as JSON: {exc}") from exc
        return "".join(pieces)

    def _check(self, limit: str, found: int) -> None:
        self.limits.check(limit, found, what="the request, read this far,")


@dataclass(frozen=True, slots=True)
class PictureSource:
    """A picture that is not decoded yet: pictures are counted before the first is read.

    `is_bare` says that a str is base64, whatever it begins with.
    """

    source: PILImage | bytes | bytearray | memoryview | str | Path
    what: str
    media_type: str | None = None
    is_bare: bool = False

    def decoded(self, policy: Policy) -> PILImage:
        """The upright RGB picture; see `guardrail.inputs.images.decode_image`."""
        picture = self.source if isinstance(self.source, PILImage) else self.encoded(policy)
        return upright_picture(picture, policy.limits, self.what)

    def encoded(self, policy: Policy) -> bytes:
        """The encoded picture that the source is or names; a Pillow picture has none."""
        source = self.source
        if self.is_bare and isinstance(source, str):
            source = decoded_base64(source, PICTURE, policy.limits, what=self.what)
        if self.media_type is not None and isinstance(source, bytes):
            PICTURE.check_media_type(source, self.media_type, what=self.what)
        return picture_bytes(source, policy, self.what)


Piece = str | PictureSource | VideoSource


def read_part(part: object, what: str, budget: Budget) -> Piece:
    """One content part; a plain str is a text part.

    Raises:
        UnsupportedContentError: the part's type or a key with content is not understood.
    """
    if isinstance(part, str):
        return budget.text(part, what)
    kind = as_mapping(part, what).get("type")
    if not isinstance(part, Mapping) or not isinstance(kind, str):
        raise UnsupportedContentError(f"{what} needs a 'type': one of {_ACCEPTED}")
    if kind in _TEXT_KEYS:
        key = _TEXT_KEYS[kind]
        refuse_unknown(part, _ABOUT_PARTS | {key}, what)
        return budget.text(part.get(key), f"{what}.{key}")
    if (picture := picture_in(part, what)) is not None:
        budget.image()
        return picture[1]
    if medium_of(part) is VIDEO:
        return _video(part, what, budget.video())
    raise UnsupportedContentError(
        f"{what} has the type {kind[:80]!r}, which is not read; accepted are {_ACCEPTED}"
    )


def as_mapping(value: object, what: str) -> Mapping[object, object]:
    """The value itself when it is a mapping; other objects are refused by their type's name."""
    if isinstance(value, Mapping):
        return value
    raise UnsupportedContentError(
        f"{what} is a {type(value).__name__}, not a mapping; convert it first "
        "(a pydantic object: .model_dump())"
    )


def refuse_unknown(value: Mapping[object, object], known: Collection[str], what: str) -> None:
    """Refuse keys that nobody here reads, unless they are empty: None, '', [] or {}.

    Words are refused, too, as an empty key's name and in the place of a label.
    """
    for key, content in value.items():
        empty = content is None or (isinstance(content, str | list | tuple | dict) and not content)
        if key not in known and not (empty and is_label(str(key))):
            raise UnsupportedContentError(
                f"{what} has the key {str(key)[:80]!r}, which is not read and would be lost; "
                "turn it into text or image parts, or leave it out"
            )
        text = key == "id" and isinstance(content, str)
        if key in {"id", *_WORDLESS} and not (text or _is_wordless(content)):
            raise UnsupportedContentError(
                f"{what}.{key} is not read, so it may hold labels and numbers alone; put words "
                "into the content"
            )


def _is_wordless(value: object) -> bool:
    """Whether a value is a label or a number, or an object of such; a list could be a sentence."""
    waiting = [value]
    while waiting:
        match waiting.pop():
            case Mapping() as held:
                waiting += [*held, *held.values()]
            case str(text) if is_label(text):
                pass
            case None | bool() | int() | float() | [] | ():
                pass
            case _:
                return False
    return True


def medium_of(part: Mapping[object, object]) -> Medium | None:
    """What a part holds by its type; None for texts, and for types that nobody here reads."""
    kind = part.get("type")
    return MEDIA[kind][0] if isinstance(kind, str) and kind in MEDIA else None


def picture_in(part: Mapping[object, object], what: str) -> tuple[str, PictureSource] | None:
    """The key that holds a part's picture, and the picture; None for other parts.

    Raises:
        UnsupportedContentError: a picture in no form that is read, or beside keys that are not.
    """
    if medium_of(part) is not PICTURE:
        return None
    key, source, where = _source(part, _ABOUT_MEDIA, what)
    if not isinstance(source, PILImage | bytes | str | Path):
        raise UnsupportedContentError(
            f"{where} is a {type(source).__name__}; accepted: a Pillow image, bytes, a path, a "
            "URL, a data URL or base64"
        )
    return key, PictureSource(source, where, _media_type(part, what), _is_bare(key, source))


def strings_in(value: object, *, leave_out: Collection[str] = ()) -> Iterator[tuple[str, bool]]:
    """Every string inside of JSON, and whether it is the data of a picture or video.

    What stands under the keys to `leave_out` is not looked at.
    """
    waiting = [(value, False)]
    while waiting:
        match waiting.pop():
            case str(text), media:
                yield text, media
            case list(items), media:
                waiting += [(each, media) for each in reversed(items)]
            case dict(items), _:
                waiting += [
                    (each, key in MEDIA_KEYS)
                    for key, each in reversed(items.items())
                    if key not in leave_out
                ]


def _video(part: Mapping[object, object], what: str, number: int) -> VideoSource:
    key, source, where = _source(part, _ABOUT_MEDIA | {"fps"}, what)
    media_type, fps = _media_type(part, what), part.get("fps")
    return VideoSource(source, where, number, media_type, _is_bare(key, source), fps)


def _source(
    part: Mapping[object, object], about: Collection[str], what: str
) -> tuple[str, object, str]:
    """The one key that names the content, what it holds, and how messages call it."""
    keys = MEDIA[str(part["type"])][1]
    refuse_unknown(part, {*about, *keys}, what)
    given = [key for key in keys if part.get(key) is not None]
    if len(given) != 1:
        raise UnsupportedContentError(
            f"{what} needs exactly one of {', '.join(keys)}; it has {', '.join(given) or 'none'}"
        )
    key, where = given[0], f"{what}.{given[0]}"
    source = part[key]
    if key in ("image_url", "video_url") and isinstance(source, Mapping):
        refuse_unknown(source, {"url", "detail"}, where)
        source, where = source.get("url"), f"{where}.url"
    if key == "path" and isinstance(source, str):
        source = Path(source)
    if isinstance(source, bytearray | memoryview):
        source = bytes(source)
    return key, source, where


def _is_bare(key: str, source: object) -> bool:
    """Whether a source is base64 without the head of a `data:` URL, under a key for that."""
    bare = isinstance(source, str) and source[:5].lower() != "data:"
    return bare and key in ("base64", "data")


def _media_type(part: Mapping[object, object], what: str) -> str | None:
    media_type = part.get("mime_type") or part.get("media_type")
    if not isinstance(media_type, str | None):
        raise UnsupportedContentError(f"{what}: the media type must be a str")
    return media_type
