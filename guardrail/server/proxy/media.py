"""Pictures and videos on their way to an upstream: each must be in the body, in one plain form."""

from __future__ import annotations

import re

from guardrail.errors import UnsupportedContentError
from guardrail.requests.parts import MEDIA_KEYS

# Possessive, so that a long text that does not fit is not gone over again and again.
_PLAIN = re.compile(
    r"(?:data:[\w.+-]+/[\w.+-]+;base64,)?[A-Za-z0-9+/\s]++={0,2}+\s*+", re.ASCII | re.IGNORECASE
)
_ARGUMENTS = frozenset({"arguments", "args"})  # of tool calls: read as text, whatever their keys


def refuse_unclear_media(value: object) -> None:
    """Refuse addresses, files and forms of base64 that readers take for different pictures.

    The upstream would open an address by itself, and perhaps get another picture than the guard; so
    would a reader that skips a percent sign, or that looks for another comma in a `data:` URL.

    Raises:
        UnsupportedContentError: there is one.
    """
    if _unclear(value, media=False):
        raise UnsupportedContentError(
            "pictures and videos are sent on as data: URLs with plain base64 alone "
            "(data:image/png;base64,...); send their bytes so"
        )


def _unclear(value: object, *, media: bool) -> bool:
    match value:
        case str():
            return media and _PLAIN.fullmatch(value) is None
        case list():
            return any(_unclear(each, media=media) for each in value)
        case dict():
            return any(
                _unclear(each, media=key in MEDIA_KEYS)
                for key, each in value.items()
                if key not in _ARGUMENTS
            )
    return False
