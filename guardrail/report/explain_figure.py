"""An explained request as one PNG: verdict, scale, pictures, and the prompt with its tokens."""

from __future__ import annotations

import io
import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from guardrail.extras import require
from guardrail.report.explain_lines import COLUMNS, Piece, lines_of
from guardrail.report.heat import (
    MIDDLE_SCORE,
    Scale,
    bar_range,
    marks,
    picture_name,
    scale_for,
)
from guardrail.report.heat_map import heat_map

if TYPE_CHECKING:
    from collections.abc import Sequence

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from guardrail.evaluation.explanation import Explanation, Picture

_DPI = 150
_FONT_PT = 9.0
_ADVANCE = 0.6021  # of DejaVu Sans Mono: a character's width in ems
_LINE, _MARGIN, _TOP, _SIDE, _AROUND = 0.24, 0.45, 1.85, 2.9, 0.75  # inches
_INK, _MUTED, _FRAME = "#1a1d21", "#565d66", "#cdd2d8"
_WIDTH = COLUMNS * _ADVANCE * _FONT_PT / 72 + 2 * _MARGIN


@dataclass(frozen=True)
class _Sheet:
    """A figure whose areas are given in inches from its top left corner."""

    figure: Figure
    height: float

    def axes(self, left: float, top: float, width: float, height: float) -> Axes:
        bottom = 1 - (top + height) / self.height
        box = (left / _WIDTH, bottom, width / _WIDTH, height / self.height)
        return self.figure.add_axes(box)

    def say(self, left: float, top: float, text: str, size: float, **style: Any) -> None:
        at = (left / _WIDTH, 1 - top / self.height)
        given: dict[str, Any] = {"color": _INK, "va": "top", "parse_math": False} | style
        self.figure.text(*at, text, fontsize=size, **given)


def explanation_png(explanation: Explanation) -> bytes:
    """The figure as a PNG of 150 dots an inch; a very long prompt is cut in its middle.

    Characters that DejaVu Sans Mono lacks appear as boxes; the page shows them all.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    require("matplotlib")
    from matplotlib.figure import Figure

    scale = scale_for(explanation.verdict)
    lines = lines_of(marks(explanation))
    height = _TOP + sum(map(_tall, explanation.pictures)) + _LINE * len(lines) + 0.75
    sheet = _Sheet(Figure(figsize=(_WIDTH, height), dpi=_DPI, facecolor="white"), height)
    _head(sheet, explanation, scale)
    top = _TOP
    for number, picture in enumerate(explanation.pictures, 1):
        _picture(sheet, top, number, picture, scale)
        top += _tall(picture)
    _text(sheet, top, lines, scale)
    note = "Outlined: the last position, on which the guard decides. Others are an illustration."
    sheet.say(_MARGIN, height - 0.42, note, 8, color=_MUTED)
    return _png(sheet.figure)


def _head(sheet: _Sheet, explanation: Explanation, scale: Scale) -> None:
    """Verdict and colour bar."""
    verdict = explanation.verdict
    shadow = "" if verdict.action == verdict.would_be else f" (would be {verdict.would_be})"
    score = "no score" if verdict.score is None else f"score {verdict.score:.2f}"
    sheet.say(_MARGIN, 0.32, f"{verdict.action}{shadow}, {score}", 16, weight="bold")
    about = f"{explanation.model}   {verdict.artefact_id}"
    sheet.say(_MARGIN, 0.66, about, 8, color=_MUTED)
    bar = sheet.axes(_MARGIN, 1.14, 4.2, 0.16)
    low, high = scale.ends
    steps = [low + (high - low) * i / 255 for i in range(256)]
    bar.imshow([[scale.rgb(step) for step in steps]], aspect="auto", extent=(low, high, 0, 1))
    bar.set_yticks([])
    bar.set_xticks([0, 1], ["0 safe", "1 unsafe"])
    bar.tick_params(labelsize=8, color=_MUTED, labelcolor=_MUTED)
    _thresholds(bar, {"steer": verdict.tau_steer, "flag": verdict.tau_flag}, scale)
    for spine in bar.spines.values():
        spine.set_color(_FRAME)


def _thresholds(bar: Axes, named: dict[str, float], scale: Scale) -> None:
    """The thresholds above the colour bar; the lower one's name stands to its left."""
    low, high = scale.ends
    for name, value in named.items():
        if low <= value <= high:
            bar.plot([value, value], [0, 1.5], color=_INK, linewidth=1.4, clip_on=False)
            side = "right" if name == "steer" else "left"
            shift = -0.02 if name == "steer" else 0.02
            at = value + shift * scale.half
            bar.text(at, 1.62, f"{name} {value:.2f}", fontsize=8, color=_INK, ha=side)
    bar.set_xlim(low, high)
    bar.set_ylim(0, 1)


def _picture(sheet: _Sheet, top: float, number: int, picture: Picture, scale: Scale) -> None:
    """The picture as given, beside its heat map or the bars of its positions."""
    title = picture_name(number, picture)
    sheet.say(_MARGIN, top, title[0].upper() + title[1:], 9, weight="bold")
    sheet.say(_MARGIN, top + 0.19, _caption(picture), 8, color=_MUTED)
    high = _tall(picture) - _AROUND
    over = heat_map(picture, scale, side=round(_SIDE * _DPI))
    if picture.original is not None:
        small = picture.original.copy()
        small.thumbnail((round(_SIDE * _DPI), round(_SIDE * _DPI)))
        _show(sheet.axes(_MARGIN, top + 0.45, _SIDE, high), small)
    if over is not None:
        _show(sheet.axes(_MARGIN + _SIDE + 0.3, top + 0.45, _SIDE, high), over)
        return
    left = _MARGIN + 0.45 if picture.original is None else _MARGIN + _SIDE + 0.75
    _bars(sheet.axes(left, top + 0.55, _WIDTH - left - _MARGIN, high - 0.5), picture, scale)


def _tall(picture: Picture) -> float:
    """Inches that a picture takes: less for wide ones, room for bars where there is no grid."""
    images = [image for image in (picture.original, picture.seen) if image is not None]
    shapes = [min(image.height / image.width, 1.0) for image in images]
    least = 0.25 if picture.grid is not None else 0.6
    return _AROUND + _SIDE * max([least, *shapes])


def _caption(picture: Picture) -> str:
    rows_columns = "" if picture.grid is None else "{} by {} positions".format(*picture.grid)
    if not picture.note:
        return f"left as given, right as the model got it, {rows_columns}"
    unread = sum(score is None for score in picture.scores)
    return picture.note + (f"; {unread} of them have no score" if unread else "")


def _show(axes: Axes, image: object) -> None:
    axes.imshow(image, interpolation="nearest")  # type: ignore[arg-type]
    axes.set_anchor("NW")
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set_color(_FRAME)


def _bars(axes: Axes, picture: Picture, scale: Scale) -> None:
    low, high = bar_range(picture, scale)
    for at, score in enumerate(picture.scores, 1):
        if score is not None:
            kept = max(low, min(high, score)) - MIDDLE_SCORE
            colour = tuple(part / 255 for part in scale.rgb(score))
            axes.bar(at, kept, bottom=MIDDLE_SCORE, width=0.8, color=colour)
    axes.axhline(MIDDLE_SCORE, color=_MUTED, linewidth=0.8)
    axes.set_ylim(low, high)
    axes.set_xlim(0.4, len(picture.scores) + 0.6)
    axes.set_xlabel("slot", fontsize=8)
    axes.set_ylabel("score", fontsize=8)
    axes.tick_params(labelsize=8)
    axes.tick_params(color=_MUTED, labelcolor=_MUTED)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(_MUTED)


def _text(sheet: _Sheet, top: float, lines: Sequence[Sequence[Piece]], scale: Scale) -> None:
    """The prompt in a fixed-width font, one coloured box per token."""
    width = _WIDTH - 2 * _MARGIN
    axes = sheet.axes(_MARGIN, top, width, _LINE * max(len(lines), 1))
    axes.set_xlim(0, COLUMNS)
    axes.set_ylim(len(lines), 0)
    axes.axis("off")
    for number, line in enumerate(lines):
        for piece in line:
            _box(axes, number, piece, scale)


def _box(axes: Axes, line: int, piece: Piece, scale: Scale) -> None:
    from matplotlib.patches import Rectangle

    mark, kind = piece.mark, piece.mark.kind
    ground = "none"
    if mark.score is not None and kind != "picture":
        ground = "#{:02x}{:02x}{:02x}".format(*scale.rgb(mark.score, 0.62))
    edge = _INK if mark.decides else "none"
    # of template tokens only a line below, of others the whole height
    y, high = (
        (line + 0.84, 0.09) if kind == "template" and not mark.decides else (line + 0.08, 0.84)
    )
    axes.add_patch(
        Rectangle((piece.column, y), piece.width, high, facecolor=ground, edgecolor=edge, lw=1.2)
    )
    axes.text(
        piece.column,
        line + 0.5,
        piece.text,
        fontsize=_FONT_PT,
        family="DejaVu Sans Mono",
        color=_INK if kind == "text" or mark.decides else _MUTED,
        va="center_baseline",
        parse_math=False,
    )


def _png(figure: Figure) -> bytes:
    data = io.BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*missing from font.*")
        figure.savefig(data, format="png", dpi=_DPI, metadata={"Software": None})
    return data.getvalue()
