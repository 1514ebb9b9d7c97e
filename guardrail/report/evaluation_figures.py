"""What the page of an evaluation draws: scores, rates, controls, layers and strengths."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from guardrail.extras import require
from guardrail.report.figures import COLOURS, FONT_SIZE, figure, legend, plot_area, short, svg

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from markupsafe import Markup
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from guardrail.evaluation.schema import Group, Label, LayerPoint, Report, StrengthPoint
    from guardrail.report.controls import ControlRow
    from guardrail.stats import Estimate, Share


ROC_POINTS = 300
_HUGE = 1e6  # text gaps
BINS = 36
LABELS: tuple[Label, Label] = ("harmful", "harmless")
_MARKS = {"steer": ("o", "series-2", "--"), "flag": ("s", "unsafe", "-")}
_STYLES = (("series-1", "-", "o"), ("series-2", "--", "s"), ("series-3", "-.", "^"))
_ABOVE = {"loc": "lower center", "bbox_to_anchor": (0.5, 1.0)}
T = TypeVar("T")


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


def scores_by_modality(report: Report) -> list[Scores]:
    """The scores of a report's items; modalities in the order in which they first occur."""
    found = []
    for modality in dict.fromkeys(item.modality for item in report.items):
        mine = [item for item in report.items if item.modality == modality]
        harmful, harmless = (
            tuple(item.score for item in mine if item.label == label) for label in LABELS
        )
        found.append(Scores(modality, harmful, harmless, report.thresholds.get(modality, {})))
    return found


def roc_points(scores: Scores, most: int = ROC_POINTS) -> tuple[list[float], list[float]]:
    """False and true positive rates of every threshold, thinned to at most `most` points.

    Points are kept evenly along the curve, so what is left out of a straight stretch is at most
    2 / (most - 1) long, in rates. Both sides must hold a score.
    """
    import numpy as np

    labels = [1] * len(scores.harmful) + [0] * len(scores.harmless)
    fpr, tpr, _ = require("sklearn.metrics").roc_curve(labels, [*scores.harmful, *scores.harmless])
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


def action_bars(groups: Sequence[Group]) -> Markup | None:
    """Stacked shares passed, steered and flagged of each modality and label; None without any."""
    rows = _by_label(groups, lambda group: group.actions)
    if not rows:
        return None
    drawn, axes = _rows_of([f"{name}, n = {found.passed.n}" for name, found in rows], "% of inputs")
    for place, (_, found) in enumerate(rows):
        left = 0.0
        for action, share, colour in (
            ("passed", found.passed, "grid"),
            ("steered", found.steered, "series-2"),
            ("flagged", found.flagged, "unsafe"),
        ):
            axes.barh(
                place,
                100 * share.rate,
                left=left,
                height=0.62,
                color=COLOURS[colour],
                edgecolor=COLOURS["paper"],
                label=action if place == 0 else None,
            )
            left += 100 * share.rate
    axes.set_xlim(0, 100)
    legend(axes, **_ABOVE, ncols=3)
    words = "; ".join(
        f"{name}: {found.steered.rate:.0%} steered, {found.flagged.rate:.0%} flagged"
        for name, found in rows
    )
    return svg(drawn, "Actions by modality and label", words)


def refusal_dots(groups: Sequence[Group]) -> Markup | None:
    """Refusal rates of the plain and the guarded model with intervals; None without any."""
    rows = _by_label(groups, lambda group: group.refusals)
    if not rows:
        return None
    drawn, axes = _rows_of([f"{name}, n = {found.guarded.n}" for name, found in rows], "% refused")
    for place, (_, found) in enumerate(rows):
        ends = [100 * found.plain.rate, 100 * found.guarded.rate]
        axes.plot(ends, [place, place], color=COLOURS["grid"], linewidth=4, solid_capstyle="butt")
        _dot(axes, found.plain, place - 0.12, "muted", "o", "" if place else "model alone")
        _dot(axes, found.guarded, place + 0.12, "accent", "D", "" if place else "guarded")
    axes.set_xlim(-4, 104)
    legend(axes, **_ABOVE, ncols=2)
    words = "; ".join(
        f"{name}: {found.plain.rate:.0%} alone, {found.guarded.rate:.0%} guarded"
        for name, found in rows
    )
    return svg(drawn, "Refusals, the model alone and guarded", words)


def _dot(axes: Axes, share: Share, height: float, colour: str, marker: str, name: str) -> None:
    """A share with its interval, at a height of its own."""
    ends = [100 * share.low, 100 * share.high]
    axes.plot(ends, [height, height], color=COLOURS[colour], linewidth=1.4)
    axes.plot(
        100 * share.rate,
        height,
        marker,
        color=COLOURS[colour],
        linestyle="none",
        markersize=7,
        clip_on=False,
        label=name or None,
    )


def _by_label(
    groups: Sequence[Group], figures_of: Callable[[Group], Mapping[Label, T]]
) -> list[tuple[str, T]]:
    """Name and figures of each modality and label that has any, harmful first."""
    return [
        (f"{short(group.name)}, {label}", figures_of(group)[label])
        for group in groups
        for label in LABELS
        if label in figures_of(group)
    ]


def _rows_of(names: Sequence[str], x: str, above: int = 90) -> tuple[Figure, Axes]:
    """A plot area with one named row each, the first on top; `above` pixels are for the rest."""
    drawn = figure(440, above + 34 * len(names))
    axes = plot_area(drawn, x=x, grid="x")
    axes.set_yticks(range(len(names)), names, fontsize=FONT_SIZE - 1)
    axes.tick_params(axis="y", length=0)
    axes.set_ylim(len(names) - 0.4, -0.6)
    return drawn, axes


def control_dots(modality: str, guard: Estimate, rows: Sequence[ControlRow]) -> Markup:
    """Dots with intervals, the guard on top; controls that were not run are left out."""
    shown = [("Guard", guard)] + [(row.name, row.figure) for row in rows if row.figure is not None]
    drawn, axes = _rows_of([name for name, _ in shown], "AUROC (dashed: chance)", above=70)
    axes.axvline(0.5, color=COLOURS["muted"], linewidth=1, linestyle="--")
    axes.axvspan(guard.low, guard.high, color=COLOURS["accent"], alpha=0.12, linewidth=0)
    for place, (_, e) in enumerate(shown):
        colour = COLOURS["muted" if place else "accent"]
        axes.plot([e.low, e.high], [place, place], color=colour, linewidth=2)
        axes.plot(e.value, place, "o" if place else "D", color=colour, markersize=7, clip_on=False)
    axes.set_xlim(min(0.3, *(e.low for _, e in shown)), 1)
    words = "; ".join(f"{name} {e.value:.3f} ({e.low:.3f} to {e.high:.3f})" for name, e in shown)
    return svg(drawn, f"Guard and controls, {modality}", f"AUROC with intervals: {words}.")


def layer_map(points: Sequence[LayerPoint]) -> Markup | None:
    """AUROC of every layer by modality, the readout's and the edited layer marked."""
    from matplotlib.ticker import MaxNLocator

    modalities = list(dict.fromkeys(name for point in points for name in point.auroc))
    if not modalities:
        return None
    drawn = figure(760, 320)
    axes = plot_area(drawn, x="decoder layer (0 is the first)", y="AUROC")
    axes.axhline(0.5, color=COLOURS["muted"], linewidth=1, linestyle="--", label="chance")
    for place, modality in enumerate(modalities):
        colour, line, marker = _STYLES[place % len(_STYLES)]
        mine = [(p.layer, p.auroc[modality]) for p in points if modality in p.auroc]
        axes.plot(
            *zip(*mine, strict=True),
            color=COLOURS[colour],
            linestyle=line,
            marker=marker,
            markersize=4,
            linewidth=1.8,
            label=modality,
        )
    _mark(axes, [p.layer for p in points if p.read], "score read here", (0, (1, 1.5)))
    _mark(axes, [p.layer for p in points if p.edited], "direction added here", (0, (6, 2)))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    legend(axes, loc="best")
    best = {
        name: max((p.auroc[name], p.layer) for p in points if name in p.auroc)
        for name in modalities
    }
    words = "; ".join(f"{name}: best {a:.3f} at layer {layer}" for name, (a, layer) in best.items())
    return svg(drawn, "AUROC by layer", words)


def shown_trials(points: Sequence[StrengthPoint]) -> list[StrengthPoint]:
    """The trials of the chosen layer and positions by factor; those with most trials if none is."""
    groups: dict[tuple[int, int], list[StrengthPoint]] = {}
    for point in points:
        groups.setdefault((point.layer, point.tokens), []).append(point)
    if not groups:
        return []
    best = max(groups.values(), key=lambda g: (any(p.chosen for p in g), len(g)))
    return sorted(best, key=lambda point: point.factor)


def strength_curve(points: Sequence[StrengthPoint]) -> Markup:
    """Induced and false refusal by factor, with intervals; `points` from `shown_trials`."""
    drawn = figure(440, 300)
    axes = plot_area(drawn, x="factor of the difference of means", y="% refused")
    factors = [point.factor for point in points]
    names = ("induced (harmful, all steered)", "false (harmless, behind the gate)")
    _shares(axes, factors, [p.induced for p in points], ("unsafe", "o", "-"), names[0])
    _shares(axes, factors, [p.false_refusal for p in points], ("safe", "s", "--"), names[1])
    axes.set_ylim(-3, 103)
    _mark_chosen(axes, points)
    legend(axes, **_ABOVE)
    words = "; ".join(
        f"factor {p.factor:g}: induced {p.induced.rate:.0%}, false {p.false_refusal.rate:.0%}"
        for p in points
    )
    return svg(drawn, "Refusals by steering strength", words)


def divergence_curve(points: Sequence[StrengthPoint]) -> Markup:
    """KL divergence by factor; `points` from `shown_trials`."""
    drawn = figure(440, 300)
    axes = plot_area(drawn, x="factor of the difference of means", y="KL divergence (nats)")
    factors, values = [p.factor for p in points], [p.kl for p in points]
    axes.plot(factors, values, color=COLOURS["accent"], marker="o", markersize=5, linewidth=1.8)
    axes.set_ylim(0, 1.15 * max(values) or 1)
    _mark_chosen(axes, points)
    legend(axes, **_ABOVE)
    words = "; ".join(f"factor {p.factor:g}: {p.kl:.3g}" for p in points)
    return svg(drawn, "KL divergence by steering strength", words)


def _shares(
    axes: Axes,
    factors: Sequence[float],
    shares: Sequence[Share],
    style: tuple[str, str, str],
    name: str,
) -> None:
    """Shares by factor with their intervals; `style`: colour, marker and line."""
    colour, marker, line = style
    spread = (
        [100 * (share.rate - share.low) for share in shares],
        [100 * (share.high - share.rate) for share in shares],
    )
    axes.errorbar(
        factors,
        [100 * share.rate for share in shares],
        yerr=spread,
        color=COLOURS[colour],
        marker=marker,
        markersize=5,
        linewidth=1.8,
        elinewidth=1,
        capsize=3,
        linestyle=line,
        label=name,
    )


def _mark_chosen(axes: Axes, points: Sequence[StrengthPoint]) -> None:
    _mark(axes, [point.factor for point in points if point.chosen], "chosen", (0, (1, 1.5)))


def _mark(axes: Axes, places: Sequence[float], name: str, line: Any) -> None:
    """Upright lines that the legend names once."""
    for x in places:
        label = name if x == places[0] else None
        axes.axvline(x, color=COLOURS["ink"], linewidth=1.3, linestyle=line, zorder=1, label=label)
