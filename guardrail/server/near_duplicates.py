"""Requests of one client that are nearly the same: so looks a search for one that passes.

Kept of a client's last requests are hashes of pieces of their texts, never a text. The hashes are
those of this process, so nobody can make texts for them.
"""

from __future__ import annotations

import heapq
from collections import OrderedDict, deque
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from guardrail.requests.parts import MEDIA_KEYS

if TYPE_CHECKING:
    from collections.abc import Iterator

_CLIENTS, _REQUESTS = 1024, 32  # remembered at most: clients, and of each the last requests
_CHARS = 2_000  # at either end of a text; between them nothing is compared
_PIECE = 5  # characters
_HASHES = 32  # the smallest of a text's; their share in common is about that of all pieces
_ALIKE = 0.5
_SAMPLES = 4_096  # characters of each end and of the rest of a picture's data
_NOT_SAID = frozenset({"role", "type", "id", "detail"})


@dataclass(frozen=True, slots=True)
class _Signature:
    pieces: frozenset[int]
    media: frozenset[int]

    def is_near(self, other: _Signature) -> bool:
        if self.media != other.media:
            return False
        both, either = self.pieces & other.pieces, self.pieces | other.pieces
        wanted = _ALIKE * min(_HASHES, len(either))
        if len(both) < wanted:  # the usual case, and quick
            return False
        return sum(each in both for each in heapq.nsmallest(_HASHES, either)) >= wanted


class NearDuplicates:
    """The last requests of each client; belongs to one event loop."""

    def __init__(self) -> None:
        self._last: OrderedDict[str | None, deque[_Signature]] = OrderedDict()

    def seen(self, client: str | None, value: object) -> bool:
        """Whether this client lately asked nearly the same; it is remembered from now on.

        Compared are what the user said last, and its pictures and videos, which must be the same:
        a chat that goes on is no duplicate, nor is one question about many pictures.
        """
        signature = _signature(_newest(value))
        if not (signature.pieces or signature.media):
            return False
        last = self._last.setdefault(client, deque(maxlen=_REQUESTS))
        self._last.move_to_end(client)
        if len(self._last) > _CLIENTS:
            self._last.popitem(last=False)
        near = any(signature.is_near(other) for other in last)
        last.append(signature)
        return near


def _newest(value: object) -> object:
    """The last message of a user's in a chat; anything else as it is."""
    if not isinstance(value, list):
        return value
    users = [each for each in value if isinstance(each, Mapping) and each.get("role") == "user"]
    return users[-1] if users else value[-1:]


def _signature(value: object) -> _Signature:
    said = [*_strings(value, media=False)]
    text = "\n".join(text for text, media in said if not media)
    if len(text) > 2 * _CHARS:
        text = text[:_CHARS] + text[-_CHARS:]
    text = " ".join(text.casefold().split())
    pieces = {hash(text[i : i + _PIECE]) for i in range(max(len(text) - _PIECE + 1, 1))}
    return _Signature(
        frozenset(heapq.nsmallest(_HASHES, pieces if text else ())),
        frozenset(_digest(data) for data, media in said if media),
    )


def _strings(value: object, *, media: bool) -> Iterator[tuple[str, bool]]:
    match value:
        case str():
            yield value, media
        case list():
            for each in value:
                yield from _strings(each, media=media)
        case Mapping():
            for key, each in value.items():
                if key not in _NOT_SAID:
                    yield from _strings(each, media=key in MEDIA_KEYS)


def _digest(data: str) -> int:
    """A hash of a picture's data, of which a part is enough: it is compressed."""
    step = max(len(data) // _SAMPLES, 1)
    return hash((len(data), data[:_SAMPLES], data[-_SAMPLES:], data[::step]))
