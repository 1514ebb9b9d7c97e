"""What the scores of one modality look like: the ROC curve and the two histograms."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from guardrail.report.curves import Scores, histogram, level, operating_point, roc_points
from guardrail.report.figures import COLOURS, FONT_SIZE, figure, legend, plot_area, svg

if TYPE_CHECKING:
    from collections.abc import Sequence

    from markupsafe import Markup
    from matplotlib.axes import Axes

_MARKS = {"steer": ("o", "series-2", "--"), "flag": ("s", "unsafe", "-")}


def roc(scores: Scores) -> Markup:
    """The ROC curve with the chance line and the thresholds in force; both sides need scores."""
    drawn = figure(400, 360)
    axes = plot_area(
        drawn, x="false positive rate (harmless inputs)", y="true positive rate (harmful inputs)"
    )
    axes.plot([0, 1], [0, 1], "--", color=COLOURS["muted"], linewidth=1, label="chance")
    axes.plot(*roc_points(scores), color=COLOURS["accent"], linewidth=2, label="guard")
    for name, value in scores.thresholds.items():
        marker, colour, _ = _MARKS.get(name, ("D", "ink", ":"))
        axes.plot(
            *operating_point(scores, value),
            marker,
            color=COLOURS[colour],
            markeredgecolor=COLOURS["paper"],
            markersize=8,
            clip_on=False,
            zorder=5,
            label=level(name, value),
        )
    axes.set(xlim=(0, 1), ylim=(0, 1), aspect="equal")
    legend(axes, loc="lower right")
    points = "; ".join(_point(scores, name) for name in scores.thresholds)
    return svg(
        drawn,
        f"ROC curve, {scores.modality}",
        f"Share of harmful inputs caught against share of harmless inputs hit, over all "
        f"thresholds ({scores.counts}). {points}",
    )


def score_histogram(scores: Scores) -> Markup:
    """How the scores of harmful and harmless inputs are spread, and where the thresholds lie."""
    drawn = figure(440, 300)
    axes = plot_area(
        drawn, x="score (0 = text-safe, 1 = text-unsafe)", y="% of inputs of a label", grid="y"
    )
    edges, shares = histogram(scores)
    if "harmless" in shares:
        name = f"harmless, n = {len(scores.harmless)}"
        _bars(axes, edges, shares["harmless"], "safe", (0, (4, 1.5)), name)
    if "harmful" in shares:
        name = f"harmful, n = {len(scores.harmful)}"
        _bars(axes, edges, shares["harmful"], "unsafe", "-", name)
    for name, value in scores.reached(edges).items():
        _threshold(axes, name, value)
    legend(axes, loc="lower center", bbox_to_anchor=(0.5, 1.05), ncols=2)
    limits = ", ".join(level(name, value) for name, value in scores.thresholds.items())
    return svg(
        drawn,
        f"Scores, {scores.modality}",
        f"Histograms of the scores ({scores.counts}). Thresholds: {limits or 'none given'}.",
    )


def _bars(
    axes: Axes,
    edges: Sequence[float],
    shares: Sequence[float],
    colour: str,
    line: Any,
    name: str,
) -> None:
    """One label's histogram; the lines differ, too, for those who see no difference in colour."""
    heights = [100 * share for share in shares]
    axes.stairs(heights, edges, fill=True, alpha=0.25, color=COLOURS[colour])
    axes.stairs(heights, edges, color=COLOURS[colour], linewidth=1.6, linestyle=line, label=name)


def _threshold(axes: Axes, name: str, value: float) -> None:
    _, _, line = _MARKS.get(name, ("D", "ink", ":"))
    axes.axvline(value, color=COLOURS["ink"], linewidth=1.2, linestyle=line)
    axes.annotate(
        name,
        (value, 1),
        xycoords=("data", "axes fraction"),
        xytext=(0, 3),
        textcoords="offset points",
        ha="right" if name == "steer" else "left",
        fontsize=FONT_SIZE - 1,
        color=COLOURS["ink"],
    )


def _point(scores: Scores, name: str) -> str:
    false, true = operating_point(scores, scores.thresholds[name])
    return f"At the {name} threshold {true:.0%} of the harmful and {false:.0%} of the harmless"
