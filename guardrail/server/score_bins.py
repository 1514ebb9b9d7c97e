"""Scores of now and of the calibration in the same bins of a handy width."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from guardrail.monitor.snapshot import LAST, WIDTH, cell_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from guardrail.monitor.snapshot import ModalityCounts

_MOST = 32  # bins
_WIDTHS = (5, 10, 20, 25, 50, 100, 200)  # in cells of the monitor's grid


def binned(counts: ModalityCounts, calibration: Sequence[float]) -> dict[str, Any] | None:
    """Shares of both in bins between common `edges`; None where nothing was scored.

    Scores beyond the monitor's grid (10 text gaps to each side) are in its outermost bins.
    """
    now, before = list(counts.cells), [(cell_of(score), 1) for score in calibration]
    if not now:
        return None
    cells = [cell for cell, _ in (*now, *before)]
    low, high = min(cells), max(cells)
    wide = next((w for w in _WIDTHS if high // w - low // w < _MOST), _WIDTHS[-1])
    first, last = low // wide, high // wide
    return {
        "edges": [round(place * wide * WIDTH, 2) for place in range(first, last + 2)],
        "now": _shares(now, wide, first, last),
        "calibration": _shares(before, wide, first, last) if before else None,
    }


def _shares(cells: Iterable[tuple[int, int]], wide: int, first: int, last: int) -> list[float]:
    found = [0] * (last - first + 1)
    for cell, count in cells:
        found[max(-LAST, cell) // wide - first] += count
    total = sum(found)
    return [count / total for count in found]
