"""A comparison of recent scores with their calibration, for people."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, TextIO

from rich.console import Console
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from guardrail.monitor import Comparison
    from guardrail.monitor.comparing import Exceedance, ModalityComparison
    from guardrail.monitor.logs import LogFacts

_COLOURS = {"alarm": "bold red", "no alarm": "green"}


def show_comparison(stdout: TextIO, found: Comparison) -> None:
    """A column for each modality, then the reasons for alarms and what they may mean."""
    console = Console(file=stdout, soft_wrap=True, highlight=False, markup=False)
    console.print(f"{found.artefact_id}, {_when(found.since)} to {_when(found.until)}")
    table = Table("", *(row.modality for row in found.modalities), box=None, padding=(0, 2, 0, 0))
    for name, cells in _figures(found.modalities):
        table.add_row(name, *cells)
    if found.modalities:
        console.print(table)
    for line in _lines(found):
        console.print(line)


def log_notes(facts: LogFacts) -> list[str]:
    """What in the logs did not count and should be known."""
    notes = {
        "verdicts of other artefacts, not counted": facts.other_artefacts,
        "half-written last lines, not counted": facts.cut,
        "lines that are no audit lines, not counted": facts.unreadable,
    }
    return [f"{count} {what}" for what, count in notes.items() if count]


def _figures(rows: Sequence[ModalityComparison]) -> Iterator[tuple[str, list[str | Text]]]:
    """The lines of the table: a figure's name, and its value for each modality."""
    yield "inputs (calibration)", [_beside(str(row.n), row.reference_n) for row in rows]
    yield "outages", [str(row.outages) for row in rows]
    medians = [(_number(row.median), row.reference_median) for row in rows]
    yield "median (calibration)", [_beside(now, _number(before)) for now, before in medians]
    indices = [(_number(row.psi), _number(row.psi_by_chance)) for row in rows]
    yield "stability index (by chance)", [_beside(psi, chance) for psi, chance in indices]
    for action in ("steer", "flag"):
        yield f"beyond {action} (target)", [_share(row.exceedances, action) for row in rows]
    yield "finding", [Text(row.finding, style=_COLOURS.get(row.finding, "yellow")) for row in rows]


def _beside(now: str, before: object) -> str:
    return f"{now} ({before})" if before else now


def _share(shares: Sequence[Exceedance], action: str) -> str:
    found = [f"{s.rate:.1%} ({s.target:.1%})" for s in shares if s.action == action]
    return found[0] if found else ""


def _lines(found: Comparison) -> list[str]:
    lines = [f"{row.modality}: {reason}" for row in found.modalities for reason in row.reasons]
    lines += [
        f"{row.modality}: {row.n} inputs are too few to judge; it takes {found.least} (--least)"
        for row in found.modalities
        if row.finding == "too few"
    ]
    lines += [
        f"{row.modality}: held to the calibration of {row.reference} requests, having none itself"
        for row in found.modalities
        if row.reference not in (None, row.modality)
    ]
    if not found.modalities:
        lines.append("there is no verdict of this artefact to judge")
    if found.outages:
        lines.append(f"{found.outages} requests got no decision at all")
    return lines + ([found.meaning] if found.meaning else [])


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"


def _when(time: datetime | None) -> str:
    return "?" if time is None else f"{time:%Y-%m-%d %H:%M} UTC"
