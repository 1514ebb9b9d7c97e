"""One picture of a run: where the scores lie, and what happened to some of the inputs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import matplotlib
import numpy as np

from guardrail import Modality, Policy

if TYPE_CHECKING:
    from collections.abc import Sequence

    from comparing import Row

    from guardrail import Artefact

matplotlib.use("Agg")
COLOURS = {"harmful": "#c0392b", "harmless": "#2471a3"}
SHOWN = 8


def draw(rows: Sequence[Row], artefact: Artefact, path: Path) -> Path:
    """Score histograms per modality with their thresholds, above pictures with their verdicts."""
    from matplotlib import pyplot as plt

    figure = plt.figure(figsize=(15, 10), layout="constrained")
    upper, lower = figure.subfigures(2, 1, height_ratios=(1, 1.3))
    scores = [row.verdict.score for row in rows if row.verdict.score is not None]
    bins = np.linspace(min(scores) - 0.05, max(scores) + 0.05, 25)
    for axes, modality in zip(upper.subplots(1, 2), (Modality.TEXT, Modality.IMAGE), strict=True):
        _histogram(axes, [r for r in rows if r.verdict.modality == modality], bins)
        thresholds = artefact.thresholds(modality, Policy())
        axes.axvline(thresholds.steer, color="#b7950b", linestyle="--", label="steer")
        axes.axvline(thresholds.flag, color="black", linestyle="--", label="flag")
        axes.set_title(f"{modality.value}: score (0 = text-safe centroid, 1 = text-unsafe)")
        axes.legend()
    for axes, row in zip(lower.subplots(2, SHOWN // 2).flat, _examples(rows), strict=False):
        axes.imshow(row.item.image)
        axes.set_axis_off()
        axes.set_title(
            f"{row.item.label}: {row.verdict.action.value} at {row.verdict.score:.2f}",
            color=COLOURS[row.item.label],
        )
    figure.savefig(path, dpi=90)
    plt.close(figure)
    return path


def _histogram(axes: Any, rows: Sequence[Row], bins: Any) -> None:
    for label, colour in COLOURS.items():
        scores = [r.verdict.score for r in rows if r.item.label == label]
        axes.hist(scores, bins=bins, color=colour, alpha=0.6, label=f"{label} (n={len(scores)})")


def _examples(rows: Sequence[Row]) -> list[Row]:
    """Pictures of both classes, alternating."""
    seen = [row for row in rows if row.item.image is not None and row.verdict.score is not None]
    harmful = [row for row in seen if row.item.harmful][: SHOWN // 2]
    harmless = [row for row in seen if not row.item.harmful][: SHOWN // 2]
    return [row for pair in zip(harmful, harmless, strict=False) for row in pair]
