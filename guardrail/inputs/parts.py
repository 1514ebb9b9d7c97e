"""Content parts of the usual message forms -> text, picture and video sources, bounded."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from PIL.Image import Image as PILImage

from guardrail.errors import UnsupportedContentError
from guardrail.inputs.images import decode_image
from guardrail.inputs.media import PICTURE
from guardrail.inputs.sources import Access, decoded_base64, picture_bytes
from guardrail.inputs.videos import VideoSource

if TYPE_CHECKING:
    from collections.abc import Collection

    from guardrail.inputs.limits import Budget
    from guardrail.policy import Policy

_TEXT_KEYS = {"text": "text", "input_text": "text", "output_text": "text", "refusal": "refusal"}
_IMAGE_KEYS = {
    "image": ("image", "url", "path", "base64", "data"),
    "image_url": ("image_url",),
    "input_image": ("image_url",),
}
_VIDEO_KEYS = {
    "video": ("video", "url", "path", "base64", "data"),
    "video_url": ("video_url",),
    "input_video": ("video_url",),
}
MEDIA_KEYS = frozenset(
    key for keys in (*_IMAGE_KEYS.values(), *_VIDEO_KEYS.values()) for key in keys
)
_ACCEPTED = ", ".join((*_TEXT_KEYS, *_IMAGE_KEYS, *_VIDEO_KEYS))
# Say how to handle a part, never what is in it; `source_type` is LangChain's older form.
_ABOUT_PARTS = frozenset({"type", "id", "index", "cache_control", "detail"})
_ABOUT_MEDIA = _ABOUT_PARTS | {"mime_type", "media_type", "source_type"}


@dataclass(frozen=True, slots=True)
class PictureSource:
    """A picture that is not decoded yet: pictures are counted before the first is read."""

    source: PILImage | bytes | bytearray | memoryview | str | Path
    what: str
    media_type: str | None = None
    base64_only: bool = False

    def decoded(self, policy: Policy) -> PILImage:
        """The upright RGB picture; see `decode_image`."""
        whole = isinstance(self.source, PILImage)
        return decode_image(
            self.source if whole else self.encoded(policy),
            limits=policy.limits,
            allowed_hosts=policy.allowed_hosts,
            local_files=policy.local_files,
            what=self.what,
        )

    @property
    def is_bare(self) -> bool:
        """Whether the source is base64 without the head of a `data:` URL, under a key for that."""
        source = self.source
        return self.base64_only and isinstance(source, str) and source[:5].lower() != "data:"

    def encoded(self, policy: Policy) -> bytes:
        """The encoded picture that the source is or names; a Pillow picture has none."""
        source, limits = self.source, policy.limits
        if self.is_bare and isinstance(source, str):
            source = decoded_base64(source, PICTURE, limits, what=self.what)
        if self.media_type is not None and isinstance(source, bytes):
            PICTURE.check_media_type(source, self.media_type, what=self.what)
        access = Access(limits, policy.allowed_hosts, policy.local_files)
        return picture_bytes(source, access, self.what)


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
    if kind in _VIDEO_KEYS:
        return _video(part, _VIDEO_KEYS[kind], what, budget.video())
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
    """Refuse keys that nobody here reads, unless they are empty: None, '', [] or {}."""
    for key, content in value.items():
        empty = content is None or (isinstance(content, str | list | tuple | dict) and not content)
        if key not in known and not empty:
            raise UnsupportedContentError(
                f"{what} has the key {str(key)[:80]!r}, which is not read and would be lost; "
                "turn it into text or image parts, or leave it out"
            )


def picture_in(part: Mapping[object, object], what: str) -> tuple[str, PictureSource] | None:
    """The key that holds a part's picture, and the picture; None for other parts.

    Raises:
        UnsupportedContentError: a picture in no form that is read, or beside keys that are not.
    """
    kind = part.get("type")
    if not isinstance(kind, str) or kind not in _IMAGE_KEYS:
        return None
    keys = _IMAGE_KEYS[kind]
    refuse_unknown(part, _ABOUT_MEDIA | set(keys), what)
    key, source, where = _source(part, keys, what)
    if not isinstance(source, PILImage | bytes | str | Path):
        raise UnsupportedContentError(
            f"{where} is a {type(source).__name__}; accepted: a Pillow image, bytes, a path, a "
            "URL, a data URL or base64"
        )
    media_type = _media_type(part, what)
    return key, PictureSource(source, where, media_type, base64_only=key in ("base64", "data"))


def _video(
    part: Mapping[object, object], keys: tuple[str, ...], what: str, number: int
) -> VideoSource:
    refuse_unknown(part, _ABOUT_MEDIA | {"fps", *keys}, what)
    key, source, where = _source(part, keys, what)
    return VideoSource(
        source,
        where,
        number,
        media_type=_media_type(part, what),
        base64_only=key in ("base64", "data"),
        fps=part.get("fps"),
    )


def _source(
    part: Mapping[object, object], keys: tuple[str, ...], what: str
) -> tuple[str, object, str]:
    """The one key that names the content, what it holds, and how messages call it."""
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


def _media_type(part: Mapping[object, object], what: str) -> str | None:
    media_type = part.get("mime_type") or part.get("media_type")
    if not isinstance(media_type, str | None):
        raise UnsupportedContentError(f"{what}: the media type must be a str")
    return media_type
