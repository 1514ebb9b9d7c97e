"""`guardrail explain`: which words of a prompt, or which part of its pictures, decided."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TextIO

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from guardrail.cli import options as o
from guardrail.cli.derived import Derived
from guardrail.cli.inputs import (
    open_guard,
    read_artefact,
    read_request,
)
from guardrail.cli.output import exit_code, say, session, verdict_rows, write_json, write_rows
from guardrail.explain.heat import (
    Mark,
    Scale,
    highest_rows,
    marks,
    picture_name,
    scale_for,
    told_where,
    video_name,
)
from guardrail.extras import require
from guardrail.model.source import LoadingOptions

if TYPE_CHECKING:
    from guardrail.explain.explanation import Explanation, Picture, Video

_BAR = 30  # characters of the highest window's bar
_UNREAD = "\N{MIDDLE DOT} "
_DECIDES = "[]"  # in a cell


class LayoutName(StrEnum):
    """How picture positions are laid out."""

    AUTO = "auto"
    GRID = "grid"
    STRIP = "strip"


def explain(
    *,
    model: o.ModelName,
    artefact: o.ArtefactName,
    asked: o.RequestOptions,
    png: Annotated[
        Path | None,
        typer.Option(metavar="FILE", dir_okay=False, writable=True, help="Write a picture of it."),
    ] = None,
    html: Annotated[
        Path | None,
        typer.Option(metavar="FILE", dir_okay=False, writable=True, help="Write a page of it."),
    ] = None,
    layout: Annotated[
        LayoutName,
        typer.Option(
            help="Picture positions as a grid, or as a strip; auto: a grid where it is certain."
        ),
    ] = LayoutName.AUTO,
    guarding: Annotated[o.GuardOptions, Derived(without=frozenset({"audit"}))],
    loading: LoadingOptions,
    as_json: o.AsJson = False,
    debug: o.Debug = False,
) -> None:
    """Show every score that is read in one request, and which one decided; exits like `check`."""
    with session(debug=debug) as stdout:
        value = read_request(asked)
        if png is not None or html is not None:  # named before a model is loaded
            require("matplotlib")
        fitted, rules = read_artefact(artefact), guarding.rules()
        with open_guard(model, fitted, rules, guarding, loading) as guard:
            from guardrail.explain.run import explain as run_explain

            found = run_explain(guard, value, layout=layout.value)
        _write(found, png, html)
        if as_json:
            write_json(stdout, found.to_dict())
        else:
            write_rows(stdout, verdict_rows(found.verdict))
            stdout.write("\n")
            show_explanation(stdout, found)
    raise typer.Exit(exit_code(found.verdict, strict=False))


def _write(found: Explanation, png: Path | None, html: Path | None) -> None:
    from guardrail.artefact.file import write_atomically
    from guardrail.explain.page import explanation_page, explanation_png
    from guardrail.report.page import write_page

    if png is not None:
        write_atomically(png, explanation_png(found))
        say(f"written: {png}")
    if html is not None:
        write_page(html, explanation_page(found))
        say(f"written: {html}")


def show_explanation(stdout: TextIO, explanation: Explanation) -> None:
    """What decided, the prompt, its pictures, the highest positions; in colour if there is any."""
    console = Console(file=stdout, highlight=False)
    paint = _Paint(scale_for(explanation.verdict), coarse=console.color_system == "standard")
    if explanation.where is not None:
        console.print(Text(f"decided {told_where(explanation)}"), "", sep="\n")
    console.print(Text.assemble(*(_token(mark, paint) for mark in marks(explanation))))
    for number, picture in enumerate(explanation.pictures, 1):
        name = (picture_name(number, picture), "bold")
        console.print("", Text.assemble(name, "  ", picture.note), sep="\n")
        if console.color_system is not None:
            console.print(_cells(picture, explanation.decided, paint, console.width))
    for number, video in enumerate(explanation.videos, 1):
        name = (video_name(number, video), "bold")
        console.print("", Text.assemble(name, "\n", video.note or _frames(video)), sep="\n")
    if explanation.windows:
        console.print("", _windows(explanation), sep="\n")
    table = Table("position", "token", "in", "score", box=None, pad_edge=False)
    for found, text, source in highest_rows(explanation):
        table.add_row(str(found.index), Text(text), source, f"{found.score:.2f}")
    console.print("", table, sep="\n")
    for note in explanation.notes:
        console.print(Text(f"note: {note}", style="dim"))


@dataclass(frozen=True, slots=True)
class _Paint:
    """Styles of scores; `coarse` is for terminals with 16 colours, which have too few between."""

    scale: Scale
    coarse: bool

    def style(self, score: float, strength: float = 0.62) -> str:
        """Black on the score's colour; a `strength` below 1 keeps words on it readable."""
        if not self.coarse:
            return "#000000 on #{:02x}{:02x}{:02x}".format(*self.scale.rgb(score, strength))
        share = self.scale.share(score)
        return "black on " + ("cyan" if share < -0.25 else "yellow" if share > 0.25 else "white")


def _token(mark: Mark, paint: _Paint) -> tuple[str, str]:
    """A run and its style: what decided is underlined, what has no score of its own is grey."""
    ground = "dim" if mark.score is None else paint.style(mark.score)
    return mark.text + mark.after, f"bold underline {ground}" if mark.decides else ground


def _cells(picture: Picture, decided: range, paint: _Paint, width: int) -> Text:
    """One cell per position: the picture's grid where it is known and fits, else a sequence."""
    columns = max(width // 2, 1)
    if picture.grid is not None and picture.grid[1] <= columns:
        columns = picture.grid[1]
    cells = [
        (
            _DECIDES if at in decided else _UNREAD if score is None else "  ",
            "dim" if score is None else paint.style(score, 1.0),
        )
        for at, score in zip(picture.positions, picture.scores, strict=True)
    ]
    rows = [Text.assemble(*cells[at : at + columns]) for at in range(0, len(cells), columns)]
    return Text("\n").join(rows)


def _frames(video: Video) -> str:
    """The highest score in each frame, in order."""
    scores = ["none" if frame.score is None else f"{frame.score:.2f}" for frame in video.frames]
    told = [f"{f.time_s:.1f} s {score}" for f, score in zip(video.frames, scores, strict=True)]
    return "  ".join(["highest score in the frame at", *told])


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
