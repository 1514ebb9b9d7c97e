"""The drift report as a page: the verdict first, then every figure behind it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from guardrail.report.figures import COLOURS, figure, legend, plot_area, svg
from guardrail.report.page import render

if TYPE_CHECKING:
    from collections.abc import Sequence

    from markupsafe import Markup

    from guardrail.drift.schema import DriftReport, Label, LayerDrift, Scores, Verdict

BINS = 30
When = Literal["fitted", "now"]
_STYLES: tuple[tuple[Label, When], ...] = (
    ("safe", "fitted"),
    ("unsafe", "fitted"),
    ("safe", "now"),
    ("unsafe", "now"),
)
_WHEN: dict[When, str] = {"fitted": "at the fit", "now": "now"}
MEANING: dict[Verdict, str] = {
    "keep": "The artefact still holds on this model.",
    "recalibrate": "The directions still hold, but thresholds or what pictures do have moved.",
    "refit": "The directions no longer hold on this model.",
}
TERMS = (
    ("Score", "The highest reading of a prompt: at the ends of its turns and in windows over its "
              "words, in text gaps. 0 is the centroid of safe, 1 that of unsafe texts at the fit."),
    ("AUROC", "Chance that a random unsafe prompt scores above a random safe one; 0.5 is chance."),
    ("At the fit", "The same figure of the same prompts on the model the artefact was fitted on."),
    ("New fit", "A readout at the ends of turns, fitted on this model's own activations; windows "
                "are not trained for a check."),
    ("p", "Exact McNemar test of whether the share of the same prompts has changed."),
    ("What pictures leave", "How far requests score from where they do alone when a meaningless "
                            "picture or video is beside them."),
)  # fmt: skip


def drift_page(report: DriftReport) -> str:
    """A self-contained HTML page of a drift report; `DriftReport.from_json` reads one from a file.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    forms = dict.fromkeys(row.form for row in report.scores)
    return render(
        "drift.html.j2",
        report=report,
        meaning=MEANING[report.verdict],
        cosines=None if report.figures is None else cosine_curve(report.figures.layers),
        histograms=[(form, score_histogram(form, report.scores)) for form in forms],
        terms=TERMS,
    )


def cosine_curve(layers: Sequence[LayerDrift]) -> Markup | None:
    """Cosine of each layer's old and new direction; None where no layer has both."""
    known = [(row, row.cosine) for row in layers if row.cosine is not None]
    if not known:
        return None
    drawn = figure(620, 280)  # names the extra if matplotlib is missing
    from matplotlib.ticker import MaxNLocator

    axes = plot_area(drawn, x="decoder layer", y="cosine of old and new direction")
    places, cosines = [row.layer for row, _ in known], [cosine for _, cosine in known]
    axes.plot(places, cosines, color=COLOURS["accent"], linewidth=1.6)
    read = [(row.layer, cosine) for row, cosine in known if row.read]
    edited = [(row.layer, cosine) for row, cosine in known if row.edited]
    for name, chosen, marker, colour in (
        ("read", read, "o", "series-2"),
        ("edited", edited, "D", "series-3"),
    ):
        axes.plot(
            [layer for layer, _ in chosen],
            [cosine for _, cosine in chosen],
            linestyle="none",
            marker=marker,
            color=COLOURS[colour],
            label=f"{name} by the guard" if chosen else None,
        )
    axes.set_ylim(min(-0.05, min(cosines) - 0.05), 1.05)
    axes.axhline(1.0, color=COLOURS["muted"], linewidth=0.8, linestyle="--")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    legend(axes, loc="best")
    at_read = [cosine for _, cosine in read]
    told = f" At the layers read it is {min(at_read):.3f} to {max(at_read):.3f}." if read else ""
    return svg(
        drawn,
        "Cosine of old and new direction by layer",
        f"{len(known)} layers, from {places[0]} to {places[-1]}.{told} 1 means the same direction.",
    )


def score_histogram(form: str, scores: Sequence[Scores]) -> Markup:
    """Scores of one form's held-out prompts on the fitted model (filled) and now (outlined)."""
    import numpy as np

    series: dict[tuple[Label, When], tuple[float, ...]] = {}
    for row in scores:
        if row.form == form and row.fitted is not None:
            series[row.label, "fitted"] = row.fitted
        if row.form == form:
            series[row.label, "now"] = row.now
    edges = np.histogram_bin_edges([s for found in series.values() for s in found], BINS)
    drawn = figure(440, 280)
    axes = plot_area(drawn, x="score (text gaps)", y="prompts", grid="y")
    for label, when in _STYLES:
        if (label, when) in series:
            axes.hist(
                series[label, when],
                bins=edges.tolist(),
                histtype="step" if when == "now" else "stepfilled",
                alpha=0.3 if when == "fitted" else 1.0,
                linewidth=1.6,
                color=COLOURS[label],
                label=f"{label}, {_WHEN[when]}",
            )
    legend(axes)
    means = "; ".join(
        f"{label} {_WHEN[when]} {np.mean(found):.2f} (n = {len(found)})"
        for (label, when), found in series.items()
    )
    return svg(drawn, f"Scores of {form} prompts, then and now", f"Mean scores: {means}.")
