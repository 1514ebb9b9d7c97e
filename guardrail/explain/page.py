"""An explained request as one figure, and as HTML with that figure in it.

The figure is black on nothing, with the scale's own colours: `report.figures.svg` makes the black
the page's ink, so that the same figure fits the light, the dark and the printed page, and a PNG.
"""

from __future__ import annotations

import io
import math
import textwrap
import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING

from guardrail.explain.heat import (
    MIDDLE_SCORE,
    SAFE,
    UNSAFE,
    Scale,
    heat_map,
    highest_rows,
    marks,
    quoted,
    scale_for,
    shown,
    told_where,
)
from guardrail.report.figures import figure, legend, short, svg
from guardrail.report.page import render

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from markupsafe import Markup
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure, SubFigure
    from PIL.Image import Image

    from guardrail.explain.explanation import Explanation, Frame, Picture, Video, WindowScore
    from guardrail.types import Verdict

_DPI = 150  # of the PNG
_WIDTH, _HALF, _LINE = 640, 300, 15  # CSS pixels: the figure, a picture in it, a caption's line
_COLUMNS = 105  # characters of a caption's line
_SIDE = 448  # pixels of a picture's longer side
_GROUND = 0.45  # opacity of the scale behind a curve, at its ends
_FRAME, _FRAMES = 112, 8  # pixels of a frame's small copy, and how many are shown; all are drawn
_WORDS = 11  # font size


def explanation_page(explanation: Explanation) -> str:
    """One self-contained page: verdict and what decided it, figure, prompt, highest positions.

    Raises:
        MissingExtraError: jinja2 or matplotlib is not installed.
    """
    part = explanation_html(explanation)
    return render(
        "explain.html.j2", part=part, explanation=explanation, verdict=explanation.verdict
    )


def explanation_html(
    explanation: Explanation, *, heading: str = "h2", brief: bool = False
) -> Markup:
    """The same without the page around it, to be put into a template based on `base.html.j2`.

    Its style comes along; several on one page repeat it without harm. `heading` is the element of
    its headings; a `brief` part has the figure and the prompt alone.

    Raises:
        MissingExtraError: jinja2 or matplotlib is not installed.
    """
    if heading not in ("h2", "h3", "h4"):
        raise ValueError(f"headings of a part are h2, h3 or h4; got {heading!r}")
    drawn, told = explanation_figure(explanation)
    html = render(
        "explain_part.html.j2",
        heading=heading,
        brief=brief,
        explanation=explanation,
        verdict=explanation.verdict,
        figure=svg(drawn, "Scores along the prompt", told),
        marks=marks(explanation),
        scale=scale_for(explanation.verdict),
        highest=highest_rows(explanation),
        decided_by=told_where(explanation),
    )
    from markupsafe import Markup

    return Markup(html)


def explanation_png(explanation: Explanation) -> bytes:
    """The page's figure as a PNG of 150 dots an inch.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    drawn, _ = explanation_figure(explanation)
    data = io.BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*missing from font.*")
        drawn.savefig(data, format="png", dpi=_DPI, metadata={"Software": None})
    return data.getvalue()


@dataclass(frozen=True, slots=True)
class _Panel:
    """A part of the figure: what stands above it, its height in CSS pixels, and its contents."""

    caption: str
    height: float
    draw: Callable[[SubFigure], None]


def explanation_figure(explanation: Explanation) -> tuple[Figure, str]:
    """The score along the prompt, by window, of pictures and frames; and what all of it says.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    panels = list(_panels(explanation, scale_for(explanation.verdict)))
    captions = [textwrap.wrap(panel.caption, _COLUMNS) for panel in panels]
    heights = [p.height + _LINE * (len(c) + 1) for p, c in zip(panels, captions, strict=True)]
    drawn = figure(_WIDTH, sum(heights))
    parts = drawn.subfigures(len(panels), 1, height_ratios=heights, squeeze=False)
    for panel, lines, part in zip(panels, captions, parts.flat, strict=True):
        part.suptitle("\n".join(lines), x=0.01, ha="left", fontsize=_WORDS, parse_math=False)
        panel.draw(part)
    return drawn, " ".join(f"{panel.caption}." for panel in panels)


def _panels(explanation: Explanation, scale: Scale) -> Iterator[_Panel]:
    about = f"{short(shown(explanation.model), 80)}, {explanation.verdict.artefact_id}"
    words = quoted(explanation)
    head = f"{explanation.verdict.summary()}. {words and f'{words}. '}{about}"
    yield _Panel(head, 230, lambda part: _along_prompt(part, explanation, scale))
    videos = [window for window in explanation.windows if window.video is not None]
    if videos:
        best = max(explanation.windows, key=lambda window: window.score)
        caption = (
            f"Scores along the video, window by window: {len(videos)} windows; the highest score "
            f"is {best.score:.2f}, at {best.start_s:.1f} to {best.end_s:.1f} s"
        )
        yield _Panel(caption, 190, lambda part: _by_window(part, videos, explanation, scale))
    for number, picture in enumerate(explanation.pictures, 1):
        yield _picture_panel(number, picture, explanation.decided, scale)
    for number, video in enumerate(explanation.videos, 1):
        yield _video_panel(number, video, scale)


def _along_prompt(part: SubFigure, explanation: Explanation, scale: Scale) -> None:
    scores = [position.score for position in explanation.positions]
    axes = part.add_subplot()
    _chart(axes, scale, scores, (-0.5, len(scores) - 0.5), "position (pictures, videos on grey)")
    pictured = [picture.positions for picture in explanation.pictures]
    for found in [*pictured, *(video.positions for video in explanation.videos)]:
        if found:
            axes.axvspan(found[0] - 0.5, found[-1] + 0.5, color="black", alpha=0.1, linewidth=0)
    _line(axes, range(len(scores)), scores)
    decided = explanation.decided
    if decided:
        best = explanation.positions[decided[-1]]
        axes.axvspan(decided[0] - 0.5, decided[-1] + 0.5, fc="none", ec="black", linewidth=1)
        ring = axes.plot(best.index, best.score or 0.0, "o", mfc="none", mec="black", ms=9)[0]
        ring.set_label("the highest, which decides")
    _thresholds(axes, explanation.verdict)


def _by_window(
    part: SubFigure, windows: Sequence[WindowScore], explanation: Explanation, scale: Scale
) -> None:
    """A level line from each window's first frame to its last."""
    axes = part.add_subplot()
    end = max(max(window.end_s for window in windows), 1)
    _chart(axes, scale, [window.score for window in windows], (0, end), "s in the video")
    for number in sorted({window.video for window in windows if window.video is not None}):
        mine = [window for window in windows if window.video == number]
        times = [time for window in mine for time in (window.start_s, window.end_s)]
        levels = [window.score for window in mine for _ in range(2)]
        style = ("-", "-.", ":")[number % 3]
        axes.plot(times, levels, style, color="black", linewidth=2, label=f"video {number + 1}")
    _thresholds(axes, explanation.verdict)


def _picture_panel(number: int, picture: Picture, decided: range, scale: Scale) -> _Panel:
    """The picture as given, beside its heat map or the bars of its positions.

    What decided is framed, slot by slot.
    """
    over = heat_map(picture, scale, _SIDE)
    images = [] if over is None else [over]
    if picture.original is not None:
        small = picture.original.convert("RGB")
        small.thumbnail((_SIDE, _SIDE))
        images.insert(0, small)
    tall = max((image.height / image.width for image in images), default=0.0)
    told = f"Scores of picture {number}, position by position"
    if picture.grid is not None and over is not None:
        rows, columns = picture.grid
        told += f", {rows} \N{MULTIPLICATION SIGN} {columns} positions as the model got it"
    told += f"; {picture.note}" if picture.note else ""
    unread = sum(score is None for score in picture.scores)
    if unread:
        told += f"; positions without a score: {unread}"
    framed = [slot for slot, at in enumerate(picture.positions) if at in decided]
    if framed:
        told += f"; framed: what decided, positions {framed[0] + 1} to {framed[-1] + 1}"

    def draw(part: SubFigure) -> None:
        columns = len(images) + (over is None)
        for place, image in enumerate(images, 1):
            _show(part.add_subplot(1, columns, place), image)
        if over is None:
            _bars(part.add_subplot(1, columns, columns), picture.scores, scale)
            for slot in framed:
                part.axes[-1].axvspan(slot + 0.5, slot + 1.5, fc="none", ec="black", linewidth=1)
        elif picture.grid is not None:
            _frame_cells(part.axes[-1], framed, picture.grid, over.size)

    return _Panel(told, _HALF * min(max(tall, 0.55 if over is None else 0.25), 1), draw)


def _frame_cells(
    axes: Axes, slots: Sequence[int], grid: tuple[int, int], size: tuple[int, int]
) -> None:
    """Frames around cells of a heat map of that size, black with white beside it."""
    from matplotlib.patches import Rectangle

    width, height = size[0] / grid[1], size[1] / grid[0]
    for colour, line in (("white", 3), ("black", 1.2)):
        for row, column in (divmod(slot, grid[1]) for slot in slots):
            corner = column * width - 0.5, row * height - 0.5
            axes.add_patch(Rectangle(corner, width, height, fc="none", ec=colour, linewidth=line))


def _bars(axes: Axes, scores: Sequence[float | None], scale: Scale) -> None:
    _chart(axes, scale, scores, (0.4, len(scores) + 0.6), "slot of the picture")
    for at, score in enumerate(scores, 1):
        if score is not None:
            colour = tuple(part / 255 for part in (SAFE if score < MIDDLE_SCORE else UNSAFE))
            axes.bar(at, score - MIDDLE_SCORE, bottom=MIDDLE_SCORE, width=0.8, color=colour)


def _video_panel(number: int, video: Video, scale: Scale) -> _Panel:
    """The highest score in each frame against its time, above some of the frames."""
    frames = video.frames
    told = f"Scores of video {number}, frame by frame"
    known = [(frame.score, frame.time_s) for frame in frames if frame.score is not None]
    if known:
        score, time_s = max(known)
        told += f": {len(known)} frames; the highest score is {score:.2f}, at {time_s:.1f} s"
    if not frames:
        return _Panel(f"{told}: {video.note}", 0, lambda _part: None)

    def draw(part: SubFigure) -> None:
        above, below = part.subplots(2, 1, height_ratios=(3, 2))
        times, scores = [frame.time_s for frame in frames], [frame.score for frame in frames]
        room = 0.02 * (times[-1] - times[0]) or 0.5
        _chart(above, scale, scores, (times[0] - room, times[-1] + room), "s in the video")
        _line(above, times, scores)
        _strip(below, frames[:: math.ceil(len(frames) / _FRAMES)])

    return _Panel(told, 290, draw)


def _strip(axes: Axes, frames: Sequence[Frame]) -> None:
    """Frames side by side, with their times and scores."""
    from PIL import Image

    first = frames[0].image.copy()
    first.thumbnail((_FRAME, _FRAME))
    strip = Image.new("RGB", (first.width * len(frames), first.height))
    told = []
    for place, frame in enumerate(frames):
        strip.paste(frame.image.convert("RGB").resize(first.size), (place * first.width, 0))
        score = "none" if frame.score is None else f"{frame.score:.2f}"
        told.append(f"{frame.time_s:.1f} s\n{score}")
    _show(axes, strip)
    middles = [(place + 0.5) * first.width for place in range(len(frames))]
    axes.set_xticks(middles, told, fontsize=_WORDS - 1)


def _chart(
    axes: Axes,
    scale: Scale,
    scores: Sequence[float | None],
    across: tuple[float, float],
    name: str,
) -> None:
    """Make axes for scores on the colours of the scale; scores far outside of it are cut off."""
    low, high = scale.span_of(scores)
    steps = [low + (high - low) * (i + 0.5) / 128 for i in range(128)]
    ground = [[scale.rgba(step, _GROUND)] for step in steps]
    where = (*across, low, high)
    axes.imshow(ground, aspect="auto", origin="lower", extent=where, interpolation="none")
    axes.axhline(MIDDLE_SCORE, color="black", linewidth=0.8, alpha=0.5)
    axes.set_autoscale_on(False)
    axes.set_facecolor("none")
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=_WORDS - 1)
    axes.set_xlabel(name, fontsize=_WORDS)
    axes.set_ylabel("score (0 safe, 1 unsafe)", fontsize=_WORDS)


def _line(axes: Axes, places: Sequence[float], scores: Sequence[float | None]) -> None:
    """A curve with gaps; the marks show a score that stands alone, as ends of turns do."""
    known = [math.nan if score is None else score for score in scores]
    axes.plot(
        places, known, color="black", linewidth=1, marker=".", ms=6 if len(known) <= 200 else 3
    )


def _thresholds(axes: Axes, verdict: Verdict) -> None:
    for name, value, line in (("steer", verdict.tau_steer, "--"), ("flag", verdict.tau_flag, "-")):
        label = f"{name} at {value:.2f}"
        axes.axhline(value, color="black", alpha=0.7, linestyle=line, linewidth=1, label=label)
    legend(axes, loc="lower right", bbox_to_anchor=(1, 1), ncols=4)


def _show(axes: Axes, image: Image) -> None:
    axes.imshow(image, interpolation="none")
    axes.set_xticks([])
    axes.set_yticks([])
