"""The drift report's figures: directions by layer, and scores then and now."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from guardrail.report.figures import COLOURS, figure, legend, plot_area, svg

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from markupsafe import Markup

BINS = 30
_STYLES = (("safe", "fitted"), ("unsafe", "fitted"), ("safe", "now"), ("unsafe", "now"))


def cosine_curve(layers: Sequence[Mapping[str, Any]]) -> Markup | None:
    """Cosine of each layer's old and new direction; None where no layer has both."""
    known = [row for row in layers if row["cosine"] is not None]
    if not known:
        return None
    drawn = figure(620, 280)  # names the extra if matplotlib is missing
    from matplotlib.ticker import MaxNLocator

    axes = plot_area(drawn, x="decoder layer", y="cosine of old and new direction")
    places = [row["layer"] for row in known]
    axes.plot(places, [row["cosine"] for row in known], color=COLOURS["accent"], linewidth=1.6)
    for job, marker, colour in (("read", "o", "series-2"), ("edited", "D", "series-3")):
        chosen = [row for row in known if row[job]]
        axes.plot(
            [row["layer"] for row in chosen],
            [row["cosine"] for row in chosen],
            linestyle="none",
            marker=marker,
            color=COLOURS[colour],
            label=f"{job} by the guard" if chosen else None,
        )
    lowest = min(row["cosine"] for row in known)
    axes.set_ylim(min(-0.05, lowest - 0.05), 1.05)
    axes.axhline(1.0, color=COLOURS["muted"], linewidth=0.8, linestyle="--")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    legend(axes, loc="best")
    read = [row["cosine"] for row in known if row["read"]]
    told = f" At the layers read it is {min(read):.3f} to {max(read):.3f}." if read else ""
    return svg(
        drawn,
        "Cosine of old and new direction by layer",
        f"{len(known)} layers, from {places[0]} to {places[-1]}.{told} 1 means the same direction.",
    )


def score_histogram(form: str, rows: Sequence[Mapping[str, Any]]) -> Markup:
    """Scores of one form's held-out prompts on the fitted model (filled) and now (outlined)."""
    import numpy as np

    series = {
        (row["label"], when): row[when]
        for row in rows
        for when in ("fitted", "now")
        if row[when] is not None
    }
    edges = np.histogram_bin_edges([s for scores in series.values() for s in scores], BINS)
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
                label=f"{label}, {'now' if when == 'now' else 'at the fit'}",
            )
    legend(axes)
    means = "; ".join(
        f"{label} {'now' if when == 'now' else 'at the fit'} {np.mean(scores):.2f} "
        f"(n = {len(scores)})"
        for (label, when), scores in series.items()
    )
    return svg(drawn, f"Scores of {form} prompts, then and now", f"Mean scores: {means}.")
