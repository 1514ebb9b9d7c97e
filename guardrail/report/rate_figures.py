"""What the guard does and what is refused, as bars and dots by modality and label."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from guardrail.report.figures import COLOURS, FONT_SIZE, figure, legend, plot_area, short, svg

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from markupsafe import Markup
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_ACTIONS = (("passed", "grid"), ("steered", "series-2"), ("flagged", "unsafe"))


def action_bars(groups: Sequence[Mapping[str, Any]]) -> Markup | None:
    """Stacked shares passed, steered and flagged of each modality and label; None without any."""
    rows = [(_name(group, label), found) for group, label, found in _each(groups, "actions")]
    if not rows:
        return None
    drawn, axes = _rows_of([f"{name}, n = {a['passed']['n']}" for name, a in rows], "% of inputs")
    for place, (_, actions) in enumerate(rows):
        left = 0.0
        for action, colour in _ACTIONS:
            width = 100 * actions[action]["rate"]
            axes.barh(
                place,
                width,
                left=left,
                height=0.62,
                color=COLOURS[colour],
                edgecolor=COLOURS["paper"],
                label=action if place == 0 else None,
            )
            left += width
    axes.set_xlim(0, 100)
    legend(axes, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=3)
    words = "; ".join(
        f"{name}: {_percent(a['steered'])} steered, {_percent(a['flagged'])} flagged"
        for name, a in rows
    )
    return svg(drawn, "Actions by modality and label", words)


def refusal_dots(groups: Sequence[Mapping[str, Any]]) -> Markup | None:
    """Refusal rates of the plain and the guarded model with intervals; None without any."""
    rows = [(_name(group, label), found) for group, label, found in _each(groups, "refusals")]
    if not rows:
        return None
    drawn, axes = _rows_of([f"{n}, n = {r['guarded']['n']}" for n, r in rows], "% refused")
    for place, (_, rates) in enumerate(rows):
        ends = [100 * rates[side]["rate"] for side in ("plain", "guarded")]
        axes.plot(ends, [place, place], color=COLOURS["grid"], linewidth=4, solid_capstyle="butt")
        _dot(axes, rates["plain"], place - 0.12, "muted", "o", "" if place else "model alone")
        _dot(axes, rates["guarded"], place + 0.12, "accent", "D", "" if place else "guarded")
    axes.set_xlim(-4, 104)
    legend(axes, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=2)
    words = "; ".join(
        f"{name}: {_percent(r['plain'])} alone, {_percent(r['guarded'])} guarded"
        for name, r in rows
    )
    return svg(drawn, "Refusals, the model alone and guarded", words)


def _dot(
    axes: Axes, share: Mapping[str, Any], height: float, colour: str, marker: str, name: str
) -> None:
    """A share with its interval, at a height of its own."""
    ends = [100 * share["low"], 100 * share["high"]]
    axes.plot(ends, [height, height], color=COLOURS[colour], linewidth=1.4)
    axes.plot(
        100 * share["rate"],
        height,
        marker,
        color=COLOURS[colour],
        linestyle="none",
        markersize=7,
        clip_on=False,
        label=name or None,
    )


def _each(groups: Sequence[Mapping[str, Any]], what: str) -> list[tuple[Any, str, Any]]:
    """(group, label, figures) wherever there are figures, harmful first."""
    return [
        (group, label, group[what][label])
        for group in groups
        for label in ("harmful", "harmless")
        if label in group[what]
    ]


def _rows_of(names: Sequence[str], x: str) -> tuple[Figure, Axes]:
    """A plot area with one named row each, the first on top."""
    drawn = figure(440, 90 + 34 * len(names))
    axes = plot_area(drawn, x=x, grid="x")
    axes.set_yticks(range(len(names)), names, fontsize=FONT_SIZE - 1)
    axes.tick_params(axis="y", length=0)
    axes.set_ylim(len(names) - 0.4, -0.6)
    return drawn, axes


def _name(group: Mapping[str, Any], label: str) -> str:
    return f"{short(group['name'])}, {label}"


def _percent(share: Mapping[str, Any]) -> str:
    return f"{share['rate']:.0%}"
