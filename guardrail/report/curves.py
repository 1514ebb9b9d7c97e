"""Scores as curves and bars of a bounded size, whatever the number of inputs."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

ROC_POINTS = 300
_HUGE = 1e6  # text gaps
BINS = 36


@dataclass(frozen=True)
class Scores:
    """The scores of one modality by label, and the thresholds in force (`steer`, `flag`)."""

    modality: str
    harmful: tuple[float, ...]
    harmless: tuple[float, ...]
    thresholds: Mapping[str, float]

    def reached(self, edges: Sequence[float]) -> dict[str, float]:
        """The thresholds that a figure over these edges can show without shrinking its bars."""
        wide = edges[-1] - edges[0]
        low, high = edges[0] - wide, edges[-1] + wide
        return {name: value for name, value in self.thresholds.items() if low <= value <= high}

    @property
    def counts(self) -> str:
        """How many there are, in words."""
        return f"{len(self.harmful)} harmful, {len(self.harmless)} harmless"


def level(name: str, value: float) -> str:
    """A threshold in words; reports write the largest float for infinity."""
    if abs(value) < _HUGE:
        return f"{name} at {value:.2f}"
    if abs(value) < sys.float_info.max:
        return f"{name} at {value:.2g}"
    return f"{name} at {'-' if value < 0 else ''}infinity"


def scores_by_modality(report: Mapping[str, Any]) -> list[Scores]:
    """The scores of a report's items; modalities in the order in which they first occur."""
    items = report["items"]
    found = []
    for modality in dict.fromkeys(item["modality"] for item in items):
        mine = [item for item in items if item["modality"] == modality]
        sides = {
            label: tuple(item["score"] for item in mine if item["label"] == label)
            for label in ("harmful", "harmless")
        }
        limits = report["thresholds"].get(modality, {})
        known = {name: value for name, value in limits.items() if value is not None}
        found.append(Scores(modality, **sides, thresholds=known))
    return found


def roc_points(scores: Scores, most: int = ROC_POINTS) -> tuple[list[float], list[float]]:
    """False and true positive rates of every threshold, thinned to at most `most` points.

    Points are kept evenly along the curve, so what is left out of a straight stretch is at most
    2 / (most - 1) long, in rates. Both sides must hold a score.
    """
    import numpy as np
    from sklearn.metrics import roc_curve

    labels = [1] * len(scores.harmful) + [0] * len(scores.harmless)
    fpr, tpr, _ = roc_curve(labels, [*scores.harmful, *scores.harmless])
    if len(fpr) > most:
        along = np.linspace(0, 2, most)
        keep = np.unique(np.searchsorted(fpr + tpr, along - 1e-12).clip(max=len(fpr) - 1))
        fpr, tpr = fpr[keep], tpr[keep]
    return fpr.tolist(), tpr.tolist()


def operating_point(scores: Scores, threshold: float) -> tuple[float, float]:
    """False and true positive rate above a threshold; a score equal to it passes."""
    sides = (scores.harmless, scores.harmful)
    first, second = (sum(s > threshold for s in side) / len(side) for side in sides)
    return first, second


def histogram(scores: Scores, bins: int = BINS) -> tuple[list[float], dict[str, list[float]]]:
    """`bins` + 1 common edges, and the share of each label's inputs per bin (empty side: none)."""
    import numpy as np

    both = np.asarray([*scores.harmful, *scores.harmless], dtype=float)
    low, high = float(both.min()), float(both.max())
    if high - low < 1e-9 * max(1.0, abs(low), abs(high)):  # nothing between the bins' edges
        low, high = low - 0.5, high + 0.5
    edges = np.linspace(low, high, bins + 1)
    shares = {
        label: (np.histogram(side, edges)[0] / len(side)).tolist()
        for label, side in (("harmful", scores.harmful), ("harmless", scores.harmless))
        if side
    }
    return edges.tolist(), shares
