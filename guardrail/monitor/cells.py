"""Quantiles of scores from a fixed grid: bounded, exact to merge, with a known error."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

WIDTH = 0.01  # text gaps
LAST = 1000  # cells run from -LAST to LAST - 1, that is from -10 to 10 text gaps


def cell_of(score: float) -> int:
    """The cell of a finite score; scores beyond the grid are counted in its ends."""
    return max(-LAST, min(LAST - 1, math.floor(max(-1e9, min(1e9, score)) / WIDTH)))


def quantile(
    cells: Sequence[tuple[int, int]], share: float, *, lowest: float, highest: float
) -> float:
    """The smallest score that at least `share` of all scores do not exceed.

    Off by at most half a cell, 0.005 text gaps, for scores between -10 and 10; of scores outside
    only the lowest and highest are known, and stand for the others.

    Args:
        cells: pairs of a cell and its positive count, ascending.
        share: 0 to 1.
        lowest: the smallest score of all.
        highest: the largest score of all.
    """
    rank = max(1, math.ceil(share * sum(count for _, count in cells) - 1e-9))
    seen = 0
    for cell, count in cells:
        seen += count
        if seen >= rank:
            return _middle(cell, lowest, highest)
    raise ValueError("there is no quantile without scores")


def _middle(cell: int, lowest: float, highest: float) -> float:
    if cell == -LAST and lowest < -LAST * WIDTH:
        return lowest
    if cell == LAST - 1 and highest >= LAST * WIDTH:
        return highest
    return max(lowest, min(highest, (cell + 0.5) * WIDTH))
