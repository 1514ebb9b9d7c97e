"""Marked runs broken into lines of a fixed-width font."""

from __future__ import annotations

import unicodedata
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from guardrail.report.heat import Mark

if TYPE_CHECKING:
    from collections.abc import Sequence

COLUMNS = 120
MOST_LINES = 160


@dataclass(frozen=True, slots=True)
class Piece:
    """A run, or a part of one, on one line: where it starts and how many columns it takes."""

    mark: Mark
    text: str
    column: int
    width: int


def lines_of(
    marks: Sequence[Mark], *, columns: int = COLUMNS, most: int = MOST_LINES
) -> list[list[Piece]]:
    """The runs in lines of at most `columns`; of too many lines those in the middle are left out.

    A run is broken only where it is longer than what is left of a line; what was left out is said
    in its place.
    """
    lines: list[list[Piece]] = [[]]
    for mark in marks:
        for number, part in enumerate((mark.text + mark.after).split("\n")):
            if number:
                lines.append([])
            for chunk in _fitting(part, columns - _end(lines[-1]), columns):
                if _end(lines[-1]) + _columns(chunk) > columns:
                    lines.append([])
                lines[-1].append(Piece(mark, chunk, _end(lines[-1]), _columns(chunk)))
    while len(lines) > 1 and not lines[-1]:
        lines.pop()
    return lines if len(lines) <= most else _shortened(lines, most)


def _fitting(text: str, first: int, columns: int) -> list[str]:
    """A text in chunks: whole if it fits into a line, else cut to what is left of each."""
    if _columns(text) <= columns:
        return [text] if text else []
    chunks, chunk, left = [], "", first
    for character in text:
        if _columns(chunk + character) > left:
            chunks.append(chunk)
            chunk, left = "", columns
        chunk += character
    return [part for part in (*chunks, chunk) if part]


def _shortened(lines: list[list[Piece]], most: int) -> list[list[Piece]]:
    head, tail = most // 2, most - most // 2 - 1
    text = f"[{len(lines) - head - tail} lines left out]"
    gap = Piece(replace(_NOTHING, text=text), text, 0, len(text))
    return [*lines[:head], [gap], *lines[-tail:]]


def _end(line: Sequence[Piece]) -> int:
    return line[-1].column + line[-1].width if line else 0


def _columns(text: str) -> int:
    """How wide a text is: none for combining marks, two for East Asian wide characters."""
    return sum(
        0
        if unicodedata.combining(character) or unicodedata.category(character) in ("Cf", "Mn")
        else 2
        if unicodedata.east_asian_width(character) in "WF"
        else 1
        for character in text
    )


_NOTHING = Mark(text="", kind="picture")
