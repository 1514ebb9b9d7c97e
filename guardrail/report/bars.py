"""Two histograms and two thresholds as SVG by hand: quick, and without matplotlib."""

from __future__ import annotations

from typing import TYPE_CHECKING

from guardrail.extras import require

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from markupsafe import Markup

WIDE, HIGH = 440, 260
_LEFT, _RIGHT, _TOP, _BOTTOM = 48, 404, 46, 214
_TICKS = 5
_LINES = {"steer": "6 3", "flag": "none"}  # told apart without colours


def score_bars(
    edges: Sequence[float],
    shares: Mapping[str, Sequence[float] | None],
    thresholds: Mapping[str, float | None],
    *,
    title: str,
    counts: Mapping[str, int],
) -> Markup:
    """Shares of scores in bins: `now` as bars, `calibration` as an outline, thresholds as lines.

    Args:
        edges: ascending, one more than bins.
        shares: of `now`, and of `calibration` if there is one; 0 to 1 each.
        thresholds: `steer` and `flag`; what lies outside the figure is told in words only.
        title: a few words, read out by screen readers.
        counts: how many scores the shares are of.
    """
    require("jinja2")
    from markupsafe import Markup, escape

    most = max(max(found) for found in shares.values() if found)
    wide = edges[-1] - edges[0]
    reached = [t for t in thresholds.values()
               if t is not None and edges[0] - wide <= t <= edges[-1] + wide]  # fmt: skip
    scale = _Scale(min(edges[0], *reached, edges[-1]), max(edges[0], *reached, edges[-1]), most)
    told = [f"{name} at {value:.2f}" for name, value in thresholds.items() if value is not None]
    counted = ", ".join(f"{name} n = {count}" for name, count in counts.items() if count)
    parts = [
        *_axes(scale),
        *_bars(scale, edges, shares["now"] or ()),
        *_outline(scale, edges, shares.get("calibration") or ()),
        *_levels(scale, thresholds),
        *_legend(counts),
    ]
    name = "s" + "".join(c for c in title.lower() if c.isalnum())
    return Markup(
        f'<svg class="drawn" role="img" aria-labelledby="{name}-t {name}-d"'
        f' viewBox="0 0 {WIDE} {HIGH}" width="{WIDE}" height="{HIGH}" font-size="12">'
        f'<title id="{name}-t">{escape(title)}</title>'
        f'<desc id="{name}-d">Histograms of scores ({escape(counted)}). '
        f"Thresholds: {escape(', '.join(told) or 'none')}.</desc>{''.join(parts)}</svg>"
    )


class _Scale:
    """From scores and shares to places in the figure."""

    def __init__(self, low: float, high: float, most: float) -> None:
        self.low, self.high, self.most = low, high, most

    def x(self, score: float) -> float:
        part = (score - self.low) / (self.high - self.low)
        return round(_LEFT + part * (_RIGHT - _LEFT), 1)

    def y(self, share: float) -> float:
        return round(_BOTTOM - share / self.most * (_BOTTOM - _TOP), 1)


def _axes(scale: _Scale) -> Iterator[str]:
    for step in (0.5, 1.0):
        y = scale.y(scale.most * step)
        yield f'<path d="M{_LEFT} {y}H{_RIGHT}" stroke="var(--grid)"/>'
        yield _text(_LEFT - 6, y + 4, f"{100 * scale.most * step:.3g} %", "end")
    yield f'<path d="M{_LEFT} {_BOTTOM}H{_RIGHT}" stroke="var(--muted)"/>'
    for step in range(_TICKS):
        score = scale.low + (scale.high - scale.low) * step / (_TICKS - 1)
        told = f"{score:.2f}".replace("-", "\N{MINUS SIGN}")
        yield _text(scale.x(score), _BOTTOM + 17, told, "middle")
    yield _text((_LEFT + _RIGHT) / 2, HIGH - 8, "score (0 = text-safe, 1 = text-unsafe)", "middle")


def _bars(scale: _Scale, edges: Sequence[float], shares: Sequence[float]) -> Iterator[str]:
    for share, low, high in zip(shares, edges, edges[1:], strict=False):
        if share > 0:
            x, y = scale.x(low), scale.y(share)
            wide, tall = round(scale.x(high) - x, 1), round(_BOTTOM - y, 1)
            yield (
                f'<rect x="{x}" y="{y}" width="{wide}" height="{tall}" fill="var(--accent)"'
                ' fill-opacity=".35" stroke="var(--accent)" stroke-width=".8"/>'
            )


def _outline(scale: _Scale, edges: Sequence[float], shares: Sequence[float]) -> Iterator[str]:
    if shares:
        steps = [
            f"V{scale.y(share)}H{scale.x(high)}"
            for share, high in zip(shares, edges[1:], strict=True)
        ]
        path = f"M{scale.x(edges[0])} {_BOTTOM}{''.join(steps)}V{_BOTTOM}"
        yield f'<path d="{path}" fill="none" stroke="var(--series-2)" stroke-width="1.6"/>'


def _levels(scale: _Scale, thresholds: Mapping[str, float | None]) -> Iterator[str]:
    for name, value in thresholds.items():
        if value is None or not scale.low <= value <= scale.high:
            continue
        x = scale.x(value)
        yield (
            f'<path d="M{x} {_TOP - 4}V{_BOTTOM}" stroke="var(--ink)" stroke-width="1.2"'
            f' stroke-dasharray="{_LINES[name]}"/>'
        )
        yield _text(x + (-3 if name == "steer" else 3), _TOP - 8, name,
                    "end" if name == "steer" else "start")  # fmt: skip


def _legend(counts: Mapping[str, int]) -> Iterator[str]:
    yield (
        f'<rect x="{_LEFT}" y="8" width="14" height="10" fill="var(--accent)" fill-opacity=".35"'
        ' stroke="var(--accent)"/>'
    )
    yield _text(_LEFT + 20, 17, f"now, n = {counts['now']}", "start")
    if counts.get("calibration"):
        yield '<path d="M236 13H252" stroke="var(--series-2)" stroke-width="1.6"/>'
        yield _text(258, 17, f"calibration, n = {counts['calibration']}", "start")


def _text(x: float, y: float, words: str, anchor: str) -> str:
    return f'<text x="{x:g}" y="{y:g}" text-anchor="{anchor}">{words}</text>'
