"""What the parts of one request have used so far of the policy's limits."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING

from guardrail.errors import InputError, LimitExceededError, UnsupportedContentError

if TYPE_CHECKING:
    from guardrail.policy import Limits


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

    def video(self) -> int:
        """Count one video; its number in the request, from 0."""
        self.videos += 1
        self._check("videos", self.videos, self.limits.videos)
        return self.videos - 1

    def pixel_count(self, size: tuple[int, int]) -> None:
        """Count the pixels of one picture, or of one frame of a clip."""
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
