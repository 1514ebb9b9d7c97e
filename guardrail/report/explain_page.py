"""An explained request as HTML: a page of its own, or a part of another page."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from guardrail.report.figures import COLOURS, figure, plot_area, png_data, svg
from guardrail.report.heat import (
    MIDDLE_SCORE,
    Scale,
    bar_range,
    highest_rows,
    marks,
    picture_name,
    scale_for,
)
from guardrail.report.heat_map import heat_map
from guardrail.report.page import render
from guardrail.report.video_figures import video_parts, window_curve

if TYPE_CHECKING:
    from markupsafe import Markup

    from guardrail.evaluation.explanation import Explanation, Picture

_SIDE = 448


def explanation_page(explanation: Explanation) -> str:
    """One self-contained page: verdict, prompt, pictures, the highest positions.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    return render("explain.html.j2", part=explanation_html(explanation), **_context(explanation))


def explanation_html(
    explanation: Explanation, *, heading: str = "h2", brief: bool = False
) -> Markup:
    """The same without the page around it, to be put into a template based on `base.html.j2`.

    Its style comes along; several on one page repeat it without harm. `heading` is the element of
    its headings; a `brief` part has the prompt and the pictures alone.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    if heading not in ("h2", "h3", "h4"):
        raise ValueError(f"headings of a part are h2, h3 or h4; got {heading!r}")
    context = _context(explanation)
    html = render("explain_part.html.j2", heading=heading, brief=brief, **context)
    from markupsafe import Markup

    return Markup(html)


def _context(explanation: Explanation) -> dict[str, Any]:
    scale = scale_for(explanation.verdict)
    return {
        "explanation": explanation,
        "verdict": explanation.verdict,
        "marks": marks(explanation),
        "scale": scale,
        "ticks": _ticks(explanation, scale),
        "pictures": [_figures(n, p, scale) for n, p in enumerate(explanation.pictures, 1)],
        "videos": video_parts(explanation),
        "windows": window_curve(explanation),
        "highest": highest_rows(explanation),
    }


def _ticks(explanation: Explanation, scale: Scale) -> list[dict[str, Any]]:
    """What is marked on the colour bar, and where, in per cent of its length."""
    verdict = explanation.verdict
    named = [("safe", 0.0, "low"), ("unsafe", 1.0, "low")]
    named += [("steer", verdict.tau_steer, "high"), ("flag", verdict.tau_flag, "high")]
    low, high = scale.ends
    return [
        {"name": name, "score": score, "row": row, "at": 50 * (1 + scale.share(score))}
        for name, score, row in named
        if low <= score <= high
    ]


def _figures(number: int, picture: Picture, scale: Scale) -> dict[str, Any]:
    over = heat_map(picture, scale, _SIDE)
    return {
        "name": picture_name(number, picture),
        "number": number,
        "grid": picture.grid,
        "note": picture.note,
        "unread": sum(score is None for score in picture.scores),
        "original": None if picture.original is None else png_data(picture.original, _SIDE),
        "map": None if over is None else png_data(over, max(over.size)),
        "strip": _strip(number, picture, scale) if over is None else None,
    }


def _strip(number: int, picture: Picture, scale: Scale) -> Markup:
    """Scores of a picture's positions as bars, in order."""
    drawn = figure(640, 190)
    axes = plot_area(drawn, x=f"slot of picture {number}", y="score", grid="y")
    low, high = bar_range(picture, scale)
    for at, score in enumerate(picture.scores, 1):
        if score is not None:
            kept = max(low, min(high, score))
            colour = COLOURS["safe" if score < MIDDLE_SCORE else "unsafe"]
            axes.bar(at, kept - MIDDLE_SCORE, bottom=MIDDLE_SCORE, width=0.8, color=colour)
    axes.axhline(MIDDLE_SCORE, color=COLOURS["muted"], linewidth=0.8)
    axes.set_ylim(low, high)
    axes.set_xlim(0.4, len(picture.scores) + 0.6)
    known = [score for score in picture.scores if score is not None]
    told = f"{len(known)} of {len(picture.scores)} positions are read"
    if known:
        told += f"; the highest score is {max(known):.2f}"
    return svg(drawn, f"Scores of picture {number}, position by position", told)
