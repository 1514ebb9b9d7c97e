"""An explained request on a terminal: tokens and picture positions, coloured by their scores."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TextIO

from rich.console import Console
from rich.table import Table
from rich.text import Text

from guardrail.report.heat import (
    Mark,
    Scale,
    highest_rows,
    marks,
    picture_name,
    scale_for,
    shown,
    video_name,
)

if TYPE_CHECKING:
    from guardrail.evaluation.explanation import Explanation, Picture, Video

_READABLE = 0.62  # how strong a colour may be under black text
_NEAR = 0.25  # of the middle of the scale, with few colours
_CELL = "  "
_BAR = 30  # characters of the highest window's bar
_UNREAD = "\N{MIDDLE DOT} "


def show_explanation(stdout: TextIO, explanation: Explanation) -> None:
    """The prompt, its pictures and the highest positions; colours only where there are any."""
    console = Console(file=stdout, highlight=False)
    paint = _Paint(scale_for(explanation.verdict), coarse=console.color_system == "standard")
    if console.color_system is not None:
        console.print(_legend(paint), "")
    console.print(Text.assemble(*(_token(mark, paint) for mark in marks(explanation))))
    for number, picture in enumerate(explanation.pictures, 1):
        console.print()
        console.print(Text.assemble((picture_name(number, picture), "bold"), "  ", picture.note))
        if console.color_system is not None:
            console.print(*_cells(picture, paint, console.width), sep="\n")
    for number, video in enumerate(explanation.videos, 1):
        console.print()
        console.print(Text.assemble((video_name(number, video), "bold"), "  ", video.note))
        if video.frames:
            console.print(_frames(video, paint, colours=console.color_system is not None))
    if explanation.windows:
        console.print()
        console.print(_windows(explanation))
    console.print()
    console.print(_table(explanation))
    for note in explanation.notes:
        console.print(Text(f"note: {note}", style="dim"))


@dataclass(frozen=True, slots=True)
class _Paint:
    """Styles of scores; `coarse` is for terminals with 16 colours."""

    scale: Scale
    coarse: bool

    def style(self, score: float, strength: float = _READABLE) -> str:
        """Black on the score's colour."""
        if not self.coarse:
            return "#000000 on #{:02x}{:02x}{:02x}".format(*self.scale.rgb(score, strength))
        share = self.scale.share(score)
        return "black on " + ("cyan" if share < -_NEAR else "yellow" if share > _NEAR else "white")


def _legend(paint: _Paint) -> Text:
    low, high = paint.scale.ends
    bar = [(" ", paint.style(low + (high - low) * i / 24)) for i in range(25)]
    return Text.assemble(
        f"{low:.1f} safe ", *bar, f" {high:.1f} unsafe   ", ("the last position decides", "dim")
    )


def _token(mark: Mark, paint: _Paint) -> tuple[str, str]:
    """A run and its style: grey words are the template's, the last position is underlined."""
    if mark.decides:
        ground = "" if mark.score is None else paint.style(mark.score)
        return mark.text, f"bold underline {ground}"
    text = mark.text + mark.after
    if mark.kind == "picture" or mark.score is None:
        return text, "italic dim"
    return text, paint.style(mark.score) if mark.kind == "text" else "dim"


def _cells(picture: Picture, paint: _Paint, width: int) -> Iterator[Text]:
    """One cell per position: the picture's grid where it is known and fits, else a sequence."""
    columns = max(width // len(_CELL), 1)
    if picture.grid is not None and picture.grid[1] <= columns:
        columns = picture.grid[1]
    for start in range(0, len(picture.scores), columns):
        yield _row(picture.scores[start : start + columns], paint)


def _row(scores: Sequence[float | None], paint: _Paint) -> Text:
    return Text.assemble(
        *(
            (_UNREAD, "dim") if score is None else (_CELL, paint.style(score, 1.0))
            for score in scores
        )
    )


def _frames(video: Video, paint: _Paint, *, colours: bool) -> Text:
    """The score after each frame, in order."""
    runs: list[str | tuple[str, str]] = ["score after the frame at"]
    for frame in video.frames:
        score = "none" if frame.score is None else f"{frame.score:.2f}"
        runs.append(f"  {frame.time_s:.1f} s ")
        runs.append(
            (score, paint.style(frame.score)) if colours and frame.score is not None else score
        )
    return Text.assemble(*runs)


def _windows(explanation: Explanation) -> Table:
    """Every window's score as a bar between the lowest and the highest of all.

    Of several that are highest the first one decides.
    """
    scores = [window.score for window in explanation.windows]
    low, high = min(scores), max(scores)
    several = len({window.video for window in explanation.windows} - {None}) > 1
    table = Table("window", "from", "to", "score", "", box=None, pad_edge=False)
    for number, window in enumerate(explanation.windows, 1):
        of_video = f" (video {window.video + 1})" if several and window.video is not None else ""
        name = "answer frames" if window.video is None else f"{number}{of_video}"
        share = (window.score - low) / (high - low) if high > low else 0.0
        mark = " highest" if number == scores.index(high) + 1 else ""
        bar = "\N{FULL BLOCK}" * round(_BAR * share) + mark
        times = f"{window.start_s:.1f} s", f"{window.end_s:.1f} s"
        table.add_row(name, *times, f"{window.score:.2f}", bar)
    return table


def _table(explanation: Explanation) -> Table:
    table = Table("position", "token", "in", "score", title=None, box=None, pad_edge=False)
    for row in highest_rows(explanation):
        table.add_row(str(row.index), Text(shown(row.text)), row.source, f"{row.score:.2f}")
    return table
