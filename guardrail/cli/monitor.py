"""`guardrail monitor`: whether the scores of late still look like those of the calibration."""

from __future__ import annotations

from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TextIO

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from guardrail.cli import options as o
from guardrail.cli.inputs import read_artefact
from guardrail.cli.output import FINDING, say, session, write_json
from guardrail.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from guardrail.artefact import Artefact
    from guardrail.monitor import Comparison, MonitorSnapshot
    from guardrail.monitor.comparing import Exceedance, ModalityComparison
    from guardrail.monitor.logs import LogFacts
    from guardrail.types import Reading

_COLOURS = {"alarm": "bold red", "no alarm": "green"}


def monitor(
    artefact: Annotated[
        str, typer.Argument(metavar="ARTEFACT", help="The artefact that the guard ran with.")
    ],
    files: Annotated[
        list[Path],
        typer.Argument(
            metavar="FILE...",
            exists=True,
            dir_okay=False,
            help="Snapshots of `Guard.monitor`, audit logs (rotated ones, too), or both.",
        ),
    ],
    psi: Annotated[
        float, typer.Option(min=0, help="Population stability index that is large.")
    ] = 0.2,
    alpha: Annotated[
        float, typer.Option(min=0, max=1, help="Chance of any false alarm, over all tests.")
    ] = 0.01,
    least: Annotated[
        int, typer.Option(min=1, help="Inputs of a modality below which it is not judged.")
    ] = 100,
    bins: Annotated[
        int, typer.Option(min=2, max=100, help="Bins of the index; as in the snapshots.")
    ] = 10,
    since: Annotated[
        str | None, typer.Option(metavar="TIME", help="Log lines from then on (ISO 8601, UTC).")
    ] = None,
    until: Annotated[
        str | None, typer.Option(metavar="TIME", help="Log lines before then (ISO 8601, UTC).")
    ] = None,
    as_json: o.AsJson = False,
    debug: o.Debug = False,
) -> None:
    """Compare recent verdicts with ARTEFACT's calibration; exits with 1 when they have shifted."""
    start, end = _time(since, "--since"), _time(until, "--until")
    _refuse_repeats(files)
    with session(debug=debug) as stdout:
        fitted = read_artefact(artefact)

        from guardrail.monitor import compare

        counts, facts = _read(files, fitted, bins, start, end)
        if not counts.n and not counts.outages:
            _refuse_nothing(facts, fitted.artefact_id)
        found = compare(counts, fitted, psi_limit=psi, alpha=alpha, least=least)
        for note in log_notes(facts):
            say(f"warning: {note}", style="yellow")
        if not any(one.finding in ("alarm", "no alarm") for one in found.modalities):
            say(
                f"warning: nothing was judged; it takes {least} inputs of one kind, and a "
                "calibration to hold them against",
                style="yellow",
            )
        if as_json:
            write_json(stdout, found.to_dict() | {"logs": asdict(facts)})
        else:
            show_comparison(stdout, found)
    raise typer.Exit(FINDING if found.alarm else 0)


def _read(
    files: list[Path], artefact: Artefact, bins: int, since: datetime | None, until: datetime | None
) -> tuple[MonitorSnapshot, LogFacts]:
    """The counts of all files together, and what else the logs held."""
    from guardrail.monitor import MonitorSnapshot
    from guardrail.monitor.logs import LogReader

    reader = LogReader(artefact, bins=bins, since=since, until=until)
    parts = []
    for file in files:
        if not _is_snapshot(file):
            reader.read(file)
        elif since or until:
            raise typer.BadParameter(f"{file} is a snapshot: --since and --until cut logs only")
        else:
            parts.append(MonitorSnapshot.load(file))
    if reader.facts.lines or not parts:
        parts.append(reader.snapshot())
    return MonitorSnapshot.merged(parts), reader.facts


def _is_snapshot(path: Path) -> bool:
    """Whether a file is one JSON document that calls itself a snapshot, whole or not."""
    from guardrail.inputs.strict_json import strict_json
    from guardrail.monitor.snapshot import MAX_BYTES

    if not path.is_file():  # a pipe, which cannot be read twice
        return False
    with path.open("rb") as file:
        data = file.read(MAX_BYTES + 1)
    if len(data) > MAX_BYTES:
        return False
    try:
        found = strict_json(data.decode())
    except (ValueError, RecursionError):
        return data.lstrip().startswith(b'{"kind":"guardrail.monitor"')  # a damaged one
    return isinstance(found, dict) and found.get("kind") == "guardrail.monitor"


def _refuse_nothing(facts: LogFacts, artefact_id: str) -> None:
    """No verdict is no good news: the logs may have stopped, or be another guard's."""
    if facts.other_artefacts:
        raise ConfigurationError(
            f"all {facts.other_artefacts} verdicts are of other artefacts than {artefact_id}; name "
            "the artefact that was running"
        )
    raise ConfigurationError(
        f"there is no verdict of {artefact_id} in these files, so nothing can be said; is the log "
        "still written, and do --since and --until leave anything?"
    )


def _refuse_repeats(files: list[Path]) -> None:
    known = [file.resolve() for file in files]
    if repeated := [str(f) for i, f in enumerate(files) if known[i] in known[:i]]:
        raise typer.BadParameter(f"given twice, and would count twice: {', '.join(repeated)}")


def _time(text: str | None, option: str) -> datetime | None:
    """A time; without a zone it is UTC."""
    if text is None:
        return None
    try:
        when = datetime.fromisoformat(text)
    except ValueError as error:
        raise typer.BadParameter(
            f"{option}: {text!r} is no time such as 2026-01-31T12:00"
        ) from error
    return when if when.tzinfo else when.replace(tzinfo=UTC)


def log_notes(facts: LogFacts) -> list[str]:
    """What in the logs did not count and should be known."""
    notes = {
        "verdicts of other artefacts, not counted": facts.other_artefacts,
        "half-written last lines, not counted": facts.cut,
        "lines that are no audit lines, not counted": facts.unreadable,
    }
    return [f"{count} {what}" for what, count in notes.items() if count]


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
    if any(sum(row.flagged_by.values()) for row in rows):
        yield "flagged by reading", [_by_reading(row.flagged_by) for row in rows]
    yield "finding", [Text(row.finding, style=_COLOURS.get(row.finding, "yellow")) for row in rows]


def _beside(now: str, before: object) -> str:
    return f"{now} ({before})" if before else now


def _share(shares: Sequence[Exceedance], action: str) -> str:
    found = [f"{s.rate:.1%} ({s.target:.1%})" for s in shares if s.action == action]
    return found[0] if found else ""


def _by_reading(counts: Mapping[Reading, int]) -> str:
    """What share of the flags each reading asked for; "" without any."""
    total = sum(counts.values())
    shares = [f"{name} {count / total:.0%}" for name, count in counts.items() if count]
    return f"{', '.join(shares)} (n {total})" if total else ""


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
