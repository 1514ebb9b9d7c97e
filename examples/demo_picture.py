"""One picture of a run: where the scores lie, and what happened to some of the inputs."""

from __future__ import annotations

from pathlib import Path
from textwrap import wrap
from typing import TYPE_CHECKING, Any

import matplotlib

from guardrail import Modality, Policy

if TYPE_CHECKING:
    from collections.abc import Sequence

    from comparing import Row

    from guardrail import Artefact

matplotlib.use("Agg")
COLOURS = {"harmful": "#c0392b", "harmless": "#2471a3"}
PAIRS = 6
WIDEST = 42  # characters of a line under a picture


def draw(rows: Sequence[Row], artefact: Artefact, path: Path) -> Path:
    """Every score beside the thresholds, and pictures of all forms with what became of them."""
    from matplotlib import pyplot as plt

    figure = plt.figure(figsize=(15, 9), layout="constrained")
    left, right = figure.subfigures(1, 2, width_ratios=(1, 2.9))
    modalities = (Modality.IMAGE, Modality.TEXT)
    axes = left.subplots(2, 1, sharex=True, height_ratios=(6, 1))
    for one, modality in zip(axes, modalities, strict=True):
        _scores(one, [r for r in rows if r.verdict.modality == modality])
        thresholds = artefact.thresholds(modality, Policy())
        one.axvline(thresholds.steer, color="#b7950b", linestyle="--", label="steer from here")
        one.axvline(thresholds.flag, color="black", linestyle="--", label="flag from here")
        one.set_title("with a picture" if modality is Modality.IMAGE else "words only")
    axes[0].legend(loc="upper center", bbox_to_anchor=(0.45, -0.03), ncols=2, fontsize=9)
    axes[1].set_xlabel("score (0: mean of safe texts, 1: of unsafe ones)")
    for place, row in zip(right.subplots(3, 4).flat, examples(rows), strict=False):
        _picture(place, row)
    figure.savefig(path, dpi=100)
    plt.close(figure)
    return path


def _scores(axes: Any, rows: Sequence[Row]) -> None:
    """One line a form, one dot an input."""
    forms = list(dict.fromkeys(row.item.shown for row in rows))
    for label, colour in COLOURS.items():
        dots = [
            (row.verdict.score, forms.index(row.item.shown))
            for row in rows
            if row.item.label == label and row.verdict.score is not None
        ]
        axes.scatter(*zip(*dots, strict=True), s=90, color=colour, alpha=0.7, label=label)
    axes.set_yticks(range(len(forms)), forms)
    axes.set_ylim(len(forms) - 0.5, -0.5)
    axes.grid(axis="y", alpha=0.3)


def _picture(axes: Any, row: Row) -> None:
    """An input, its verdict above it and its answer below."""
    colour = COLOURS[row.item.label]
    axes.imshow(row.item.image)
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set(color=colour, linewidth=2.5)
    axes.set_title(f"{row.verdict.action.value} at {row.verdict.score:.2f}", color=colour)
    asked = wrap(row.item.text, WIDEST) if row.item.form == "photograph" else []
    answer = wrap(f"-> {row.guarded.text}", WIDEST, max_lines=2, placeholder=" ...")
    axes.set_xlabel("\n".join((*asked, *answer)).replace("$", r"\$"), fontsize=9)


def examples(rows: Sequence[Row]) -> list[Row]:
    """A harmful and a harmless picture of each form."""
    seen = [row for row in rows if row.item.image is not None and row.verdict.score is not None]
    first = {(row.item.shown, row.item.label): row for row in reversed(seen)}
    forms = dict.fromkeys(row.item.shown for row in seen)
    pairs = [[first.get((form, label)) for label in COLOURS] for form in forms]
    return [row for pair in pairs[:PAIRS] for row in pair if row is not None]
