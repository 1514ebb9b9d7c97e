"""One row of a source, read when its turn comes, and what every source can do."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


class Loaded(NamedTuple):
    """A row's key and the value to check, or the error that stands in its place."""

    key: str
    value: Any


@dataclass(frozen=True, slots=True)
class Item:
    """A row: its number in the source, from 0, and how it is read (in a reading thread)."""

    number: int
    load: Callable[[], Loaded]


class Wanted(Protocol):
    """Which rows are still to be scored."""

    def row(self, number: int) -> bool:
        """Whether this one is."""

    def any(self, start: int, stop: int) -> bool:
        """Whether any of the rows from `start` to before `stop` is."""


class Source(Protocol):
    """A source of rows in a stable order."""

    kind: str
    rows: int

    def digest(self) -> str:
        """Over names, sizes and times of change of all files, as they are now."""

    def items(self, wanted: Wanted) -> Iterator[Item]:
        """The wanted rows, in order."""


def plain_key(value: object, otherwise: str) -> str:
    """An id as text that any file can hold; `otherwise` where a row has no usable id."""
    usable = isinstance(value, str | int) and not isinstance(value, bool)
    text = str(value) if usable else otherwise
    return text.encode("utf-8", "backslashreplace").decode()
