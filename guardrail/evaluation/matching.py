"""Pairs of nearly equal length."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence


def matched_pairs(
    first: Sequence[int], second: Sequence[int], tolerance: int
) -> list[tuple[int, int]]:
    """Places (i, j) of a largest set of disjoint pairs with |first[i] - second[j]| <= tolerance.

    On a line the shortest that are left go together whenever they may: whatever else the shorter
    of two partners could be matched with, the other end could be, too (an exchange argument), so
    no larger matching exists.
    """
    a = sorted(range(len(first)), key=lambda place: first[place])
    b = sorted(range(len(second)), key=lambda place: second[place])
    pairs, i, j = [], 0, 0
    while i < len(a) and j < len(b):
        apart = first[a[i]] - second[b[j]]
        if abs(apart) <= tolerance:
            pairs.append((a[i], b[j]))
            i, j = i + 1, j + 1
        elif apart < 0:
            i += 1
        else:
            j += 1
    return pairs
