"""Where in the model the difference lies, and what each steering strength did."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from guardrail.report.figures import COLOURS, figure, legend, plot_area, svg

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from markupsafe import Markup
    from matplotlib.axes import Axes

_STYLES = (("series-1", "-", "o"), ("series-2", "--", "s"), ("series-3", "-.", "^"))
_ABOVE = {"loc": "lower center", "bbox_to_anchor": (0.5, 1.0)}


def layer_map(points: Sequence[Mapping[str, Any]]) -> Markup | None:
    """AUROC of every layer by modality, the readout's and the edited layer marked."""
    from matplotlib.ticker import MaxNLocator

    modalities = list(dict.fromkeys(name for point in points for name in point["auroc"]))
    if not modalities:
        return None
    drawn = figure(760, 320)
    axes = plot_area(drawn, x="decoder layer (0 is the first)", y="AUROC")
    axes.axhline(0.5, color=COLOURS["muted"], linewidth=1, linestyle="--", label="chance")
    for place, modality in enumerate(modalities):
        colour, line, marker = _STYLES[place % len(_STYLES)]
        mine = [(p["layer"], p["auroc"][modality]) for p in points if modality in p["auroc"]]
        axes.plot(
            *zip(*mine, strict=True),
            color=COLOURS[colour],
            linestyle=line,
            marker=marker,
            markersize=4,
            linewidth=1.8,
            label=modality,
        )
    _mark(axes, [p["layer"] for p in points if p["read"]], "score read here", (0, (1, 1.5)))
    _mark(axes, [p["layer"] for p in points if p["edited"]], "direction added here", (0, (6, 2)))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    legend(axes, loc="best")
    best = {
        name: max((p["auroc"][name], p["layer"]) for p in points if name in p["auroc"])
        for name in modalities
    }
    words = "; ".join(f"{name}: best {a:.3f} at layer {layer}" for name, (a, layer) in best.items())
    return svg(drawn, "AUROC by layer", words)


def shown_trials(points: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The trials of the chosen layer and positions by factor; those with most trials if none is."""
    groups: dict[tuple[int, int], list[Mapping[str, Any]]] = {}
    for point in points:
        groups.setdefault((point["layer"], point["tokens"]), []).append(point)
    if not groups:
        return []
    best = max(groups.values(), key=lambda g: (any(p["chosen"] for p in g), len(g)))
    return sorted(best, key=lambda point: point["factor"])


def strength_curve(points: Sequence[Mapping[str, Any]]) -> Markup:
    """Induced and false refusal by factor, with intervals; `points` from `shown_trials`."""
    drawn = figure(440, 300)
    axes = plot_area(drawn, x="factor of the difference of means", y="% refused")
    factors = [point["factor"] for point in points]
    names = ("induced (harmful, all steered)", "false (harmless, behind the gate)")
    _shares(axes, factors, [p["induced"] for p in points], ("unsafe", "o", "-"), names[0])
    _shares(axes, factors, [p["false_refusal"] for p in points], ("safe", "s", "--"), names[1])
    axes.set_ylim(-3, 103)
    _mark_chosen(axes, points)
    legend(axes, **_ABOVE)
    words = "; ".join(
        f"factor {p['factor']:g}: induced {p['induced']['rate']:.0%}, "
        f"false {p['false_refusal']['rate']:.0%}"
        for p in points
    )
    return svg(drawn, "Refusals by steering strength", words)


def divergence_curve(points: Sequence[Mapping[str, Any]]) -> Markup:
    """KL divergence by factor; `points` from `shown_trials`."""
    drawn = figure(440, 300)
    axes = plot_area(drawn, x="factor of the difference of means", y="KL divergence (nats)")
    factors, values = [p["factor"] for p in points], [p["kl"] for p in points]
    axes.plot(factors, values, color=COLOURS["accent"], marker="o", markersize=5, linewidth=1.8)
    axes.set_ylim(0, 1.15 * max(values) or 1)
    _mark_chosen(axes, points)
    legend(axes, **_ABOVE)
    words = "; ".join(f"factor {p['factor']:g}: {p['kl']:.3g}" for p in points)
    return svg(drawn, "KL divergence by steering strength", words)


def _shares(
    axes: Axes,
    factors: Sequence[float],
    shares: Sequence[Mapping[str, Any]],
    style: tuple[str, str, str],
    name: str,
) -> None:
    """Shares by factor with their intervals; `style`: colour, marker and line."""
    colour, marker, line = style
    spread = (
        [100 * (share["rate"] - share["low"]) for share in shares],
        [100 * (share["high"] - share["rate"]) for share in shares],
    )
    axes.errorbar(
        factors,
        [100 * share["rate"] for share in shares],
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


def _mark_chosen(axes: Axes, points: Sequence[Mapping[str, Any]]) -> None:
    _mark(axes, [point["factor"] for point in points if point["chosen"]], "chosen", (0, (1, 1.5)))


def _mark(axes: Axes, places: Sequence[float], name: str, line: Any) -> None:
    """Upright lines that the legend names once."""
    for x in places:
        label = name if x == places[0] else None
        axes.axvline(x, color=COLOURS["ink"], linewidth=1.3, linestyle=line, zorder=1, label=label)
