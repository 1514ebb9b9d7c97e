"""Content parts of the usual message forms -> text and picture sources, bounded."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from PIL.Image import Image as PILImage

from guardrail.errors import InputError, LimitExceededError, UnsupportedContentError
from guardrail.requests.formats import check_media_type
from guardrail.requests.images import decode_image
from guardrail.requests.sources import decoded_base64

if TYPE_CHECKING:
    from collections.abc import Collection

    from guardrail.policy import Limits, Policy

_TEXT_KEYS = {"text": "text", "input_text": "text", "output_text": "text", "refusal": "refusal"}
_IMAGE_KEYS = {
    "image": ("image", "url", "path", "base64", "data"),
    "image_url": ("image_url",),
    "input_image": ("image_url",),
}
_ACCEPTED = ", ".join((*_TEXT_KEYS, *_IMAGE_KEYS))
# Say how to handle a part, never what is in it; `source_type` is LangChain's older form.
_ABOUT_PARTS = frozenset({"type", "id", "index", "cache_control", "detail"})
_ABOUT_IMAGES = _ABOUT_PARTS | {"mime_type", "media_type", "source_type"}


@dataclass(slots=True)
class Budget:
    """What the parts of one request have used so far of the policy's limits."""

    limits: Limits
    text_chars: int = 0
    images: int = 0
    pixels: int = 0

    def text(self, value: object, what: str) -> str:
        """The checked text: a str without lone surrogates; other control characters are kept."""
        if not isinstance(value, str):
            raise UnsupportedContentError(f"{what} must be a str, not {type(value).__name__}")
        self.text_chars += len(value)
        self._check("text_chars", self.text_chars, self.limits.text_chars)
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
        self._check("images", self.images, self.limits.images)

    def pixel_count(self, size: tuple[int, int]) -> None:
        """Count one picture's pixels."""
        self.pixels += size[0] * size[1]
        self._check("total_pixels", self.pixels, self.limits.total_pixels)

    def json(self, value: object, what: str) -> str:
        """Uncounted JSON of plain values, bounded as it is written: shared or cyclic ones too."""
        left, pieces = self.limits.text_chars - self.text_chars, list[str]()
        try:
            for piece in json.JSONEncoder(ensure_ascii=False).iterencode(value):
                left -= len(piece)
                self._check("text_chars", self.limits.text_chars - left, self.limits.text_chars)
                pieces.append(piece)
        except InputError:
            raise
        except (TypeError, ValueError, RecursionError) as exc:
            raise UnsupportedContentError(f"{what} cannot be written as JSON: {exc}") from exc
        return "".join(pieces)

    def _check(self, limit: str, found: int, allowed: int) -> None:
        if found > allowed:
            raise LimitExceededError(
                limit=limit, allowed=allowed, found=found, what="the request, read this far,"
            )


@dataclass(frozen=True, slots=True)
class PictureSource:
    """A picture that is not decoded yet: pictures are counted before the first is read."""

    source: PILImage | bytes | str | Path
    what: str
    media_type: str | None = None
    base64_only: bool = False

    def decoded(self, policy: Policy) -> PILImage:
        """The upright RGB picture; see `decode_image`."""
        source = self.source
        if self.base64_only and isinstance(source, str) and source[:5].lower() != "data:":
            source = decoded_base64(source, policy.limits, what=self.what)
        if self.media_type is not None and isinstance(source, bytes):
            check_media_type(source, self.media_type, what=self.what)
        return decode_image(
            source,
            limits=policy.limits,
            allowed_hosts=policy.allowed_hosts,
            local_files=policy.local_files,
            what=self.what,
        )


def read_part(part: object, what: str, budget: Budget) -> str | PictureSource:
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
    if kind in _IMAGE_KEYS:
        budget.image()
        return _picture(part, _IMAGE_KEYS[kind], what)
    hint = "pass its frames as image parts" if "video" in kind else f"accepted are {_ACCEPTED}"
    raise UnsupportedContentError(f"{what} has the type {kind[:80]!r}, which is not read; {hint}")


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


def _picture(part: Mapping[object, object], keys: tuple[str, ...], what: str) -> PictureSource:
    refuse_unknown(part, _ABOUT_IMAGES | set(keys), what)
    given = [key for key in keys if part.get(key) is not None]
    if len(given) != 1:
        raise UnsupportedContentError(
            f"{what} needs exactly one of {', '.join(keys)}; it has {', '.join(given) or 'none'}"
        )
    key, where = given[0], f"{what}.{given[0]}"
    source = part[key]
    if key == "image_url" and isinstance(source, Mapping):
        refuse_unknown(source, {"url", "detail"}, where)
        source, where = source.get("url"), f"{where}.url"
    media_type = part.get("mime_type") or part.get("media_type")
    if not isinstance(media_type, str | None):
        raise UnsupportedContentError(f"{what}: the media type must be a str")
    if key == "path" and isinstance(source, str):
        source = Path(source)
    if isinstance(source, bytearray | memoryview):
        source = bytes(source)
    if not isinstance(source, PILImage | bytes | str | Path):
        raise UnsupportedContentError(
            f"{where} is a {type(source).__name__}; accepted: a Pillow image, bytes, a path, a "
            "URL, a data URL or base64"
        )
    return PictureSource(source, where, media_type, base64_only=key in ("base64", "data"))
