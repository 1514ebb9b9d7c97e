"""Results on stdout, everything else on stderr, and the border where errors become exit codes."""

from __future__ import annotations

import json
import math
import os
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, redirect_stdout
from typing import TextIO

import typer
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
)
from rich.text import Text

from guardrail.audit import plain
from guardrail.errors import GuardrailError
from guardrail.types import Action, Verdict

FINDING = 1
ERROR = 2
EVERY_S = 10.0  # between lines of progress where stderr is no terminal

# A model's words may hold terminal commands; tab and line feed are the only controls kept.
_CONTROLS = {code: "\ufffd" for code in (*range(32), *range(127, 160)) if code not in (9, 10)}
_COLOURS = {Action.PASS: "green", Action.STEER: "yellow", Action.FLAG: "red"}


@contextmanager
def session(*, debug: bool) -> Iterator[TextIO]:
    """Yield the real stdout; whatever else prints meanwhile (remote code, say) goes to stderr.

    Every error ends as one line on stderr and exit code 2: an exception's own code would be 1,
    which means a finding here.
    """
    stdout = sys.stdout
    try:
        with redirect_stdout(sys.stderr), warnings.catch_warnings():
            warnings.showwarning = _show_warning
            yield stdout
        stdout.flush()
    except (typer.Exit, typer.Abort, typer.BadParameter):
        raise
    except BrokenPipeError as error:
        # The reader left; stdout must not be flushed into the closed pipe at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), stdout.fileno())
        raise typer.Exit(ERROR) from error
    except (Exception, GuardrailError) as error:  # the program's outermost border
        if debug:
            traceback.print_exc()
        kind = "" if isinstance(error, GuardrailError) else f"{type(error).__name__}: "
        say(f"error: {kind}{' '.join(str(error).split())}", style="bold red")
        raise typer.Exit(ERROR) from error


def say(text: str, *, style: str = "") -> None:
    """One line on stderr."""
    Console(stderr=True, soft_wrap=True).print(Text(text.translate(_CONTROLS), style=style))


def _show_warning(message: Warning | str, *_where: object, **_more: object) -> None:
    say(f"warning: {' '.join(str(message).split())}", style="yellow")


def write(stdout: TextIO, text: str, *, end: str = "\n") -> None:
    """Text on stdout; on a terminal without control characters."""
    stdout.write((text.translate(_CONTROLS) if stdout.isatty() else text) + end)
    stdout.flush()


def write_json(stdout: TextIO, document: object) -> None:
    """One JSON document on stdout."""
    stdout.write(json.dumps(plain(document), indent=2) + "\n")


def write_rows(stdout: TextIO, rows: Iterable[tuple[str, str]]) -> None:
    """Names and values, one pair a line."""
    console = Console(file=stdout, soft_wrap=True, highlight=False)
    for name, value in rows:
        console.print(Text(f"{name:<16} ", style="bold") + Text(value.translate(_CONTROLS)))


def verdict_rows(verdict: Verdict) -> list[tuple[str, str]]:
    """A verdict for people."""
    shadow = "" if verdict.action == verdict.would_be else f" (would be {verdict.would_be})"
    score = "none" if verdict.score is None else f"{verdict.score:.3f}"
    thresholds = f"steer at {verdict.tau_steer:.3f}, flag at {verdict.tau_flag:.3f}"
    return [
        ("action", f"{verdict.action}{shadow}"),
        ("score", f"{score} ({thresholds})"),
        ("modality", verdict.modality),
        *_where_rows(verdict),
        *([] if verdict.window is None else [("window", str(verdict.window))]),
        *([("folded", "the score is that of the text in plain letters")] if verdict.folded else []),
        ("layers", ", ".join(map(str, verdict.layers))),
        ("mode", verdict.mode),
        ("reason", verdict.reason),
        ("artefact", verdict.artefact_id),
    ]


def _where_rows(verdict: Verdict) -> list[tuple[str, str]]:
    """Which reading the score is from, and its words in one line."""
    if verdict.where is None:
        return []
    words = " ".join(verdict.where.words.split())
    return [("where", str(verdict.where)), *([("words", words)] if words else [])]


def say_verdict(verdict: Verdict) -> None:
    """A verdict in one line on stderr."""
    say(f"verdict: {verdict.summary()}", style=_COLOURS[verdict.action])


def exit_code(verdict: Verdict, *, strict: bool) -> int:
    """1 for a request that is or would be flagged (`strict`: or steered), else 0.

    A detector that failed is an error, 2: an outage is no finding.
    """
    if verdict.reason == "detector_failed":
        return ERROR
    findings = {Action.FLAG, Action.STEER} if strict else {Action.FLAG}
    return FINDING if findings & {verdict.action, verdict.would_be} else 0


@contextmanager
def progress() -> Iterator[Callable[[str, int, int], None]]:
    """What to call with a stage's name, what is done and the total: it is shown on stderr.

    As bars on a terminal, else as lines: where a stage begins and ends, and now and then between.
    """
    console = Console(stderr=True)
    if not console.is_interactive:
        yield _Lines()
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console) as bars:
        tasks: dict[str, TaskID] = {}

        def report(stage: str, done: int, total: int) -> None:
            if stage not in tasks:
                tasks[stage] = bars.add_task(stage, total=total)
            bars.update(tasks[stage], completed=done, total=total)

        yield report


class _Lines:
    """Progress for a log: no stage has a line sooner than `EVERY_S` after its last but its end."""

    def __init__(self) -> None:
        self._began: dict[str, float] = {}
        self._said: dict[str, float] = {}

    def __call__(self, stage: str, done: int, total: int) -> None:
        now = time.monotonic()
        began = self._began.setdefault(stage, now)
        if done < total and now - self._said.get(stage, -math.inf) < EVERY_S:
            return
        self._said[stage] = now
        say(f"{stage}: {done:,} of {total:,} ({now - began:.0f} s)")
