"""The guard's AUROC beside those of its controls."""

from __future__ import annotations

from typing import TYPE_CHECKING

from guardrail.report.figures import COLOURS, FONT_SIZE, figure, plot_area, svg

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from markupsafe import Markup

    from guardrail.report.controls import Row


def control_dots(modality: str, guard: Mapping[str, float], rows: Sequence[Row]) -> Markup:
    """Dots with intervals, the guard on top; controls that were not run are left out."""
    run = [row for row in rows if row.value is not None]
    names = ["Guard", *(row.name for row in run)]
    drawn = figure(440, 70 + 34 * len(names))
    axes = plot_area(drawn, x="AUROC (dashed: chance)", grid="x")
    axes.axvline(0.5, color=COLOURS["muted"], linewidth=1, linestyle="--")
    axes.axvspan(guard["low"], guard["high"], color=COLOURS["accent"], alpha=0.12, linewidth=0)
    ends = [(guard["value"], guard["low"], guard["high"])]
    ends += [(r.value, r.low, r.high) for r in run]  # type: ignore[misc]
    for place, (value, low, high) in enumerate(ends):
        colour = COLOURS["muted" if place else "accent"]
        axes.plot([low, high], [place, place], color=colour, linewidth=2)
        axes.plot(value, place, "o" if place else "D", color=colour, markersize=7, clip_on=False)
    axes.set_yticks(range(len(names)), names, fontsize=FONT_SIZE - 1)
    axes.tick_params(axis="y", length=0)
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.set_xlim(min(0.3, *(low for _, low, _ in ends)), 1)
    words = "; ".join(
        f"{name} {value:.3f} ({low:.3f} to {high:.3f})"
        for name, (value, low, high) in zip(names, ends, strict=True)
    )
    return svg(drawn, f"Guard and controls, {modality}", f"AUROC with intervals: {words}.")
