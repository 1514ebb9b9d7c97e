"""What the drift check said of changed checkpoints: as a table, and in files that keep it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from guardrail import Artefact
from guardrail.artefact.file import write_atomically

JSON_NAME, TABLE_NAME = "drift_cases.json", "drift_cases.md"


@dataclass(frozen=True)
class Outcome:
    """What the check said of a case, and the figures it said it on."""

    name: str
    expected: tuple[str, ...]
    verdict: str
    right: bool
    reasons: tuple[str, ...]
    figures: dict[str, Any] = field(default_factory=dict)
    transport: dict[str, Any] | None = None
    repaired: str | None = None
    auroc_repaired: float | None = None
    fits_new_model: bool | None = None
    seconds: float = 0.0


def table(found: Sequence[Outcome]) -> Iterator[str]:
    """The outcomes in Markdown."""
    aurocs, rates = "AUROC then, old readout now, new fit", "benign above the old flag threshold"
    yield f"| change | verdict | as it should be | {aurocs} | {rates} | repair | seconds |"
    yield f"|{' --- |' * 7}"
    for one in found:
        judged = one.name, one.verdict, "yes" if one.right else "**no**"
        cells = *judged, _aurocs(one.figures), _flagged(one.figures), _repair(one)
        yield f"| {' | '.join(cells)} | {one.seconds:.0f} |"


def _aurocs(figures: dict[str, Any]) -> str:
    if not figures:
        return "-"
    found = figures["separation"]
    then = "-" if found["fitted"] is None else f"{found['fitted']['value']:.3f}"
    old, best = found["old"], found["best"]["value"]
    now = f"{old['value']:.3f} ({old['low']:.3f}-{old['high']:.3f})"
    return f"{then}, {now}, {best:.3f} (n = {found['n']})"


def _flagged(figures: dict[str, Any]) -> str:
    shown = [
        f"{row['modality']} {row['now']['hits']}/{row['now']['n']}"
        + ("" if row["fitted"] is None else f" (then {row['fitted']['hits']})")
        for row in figures.get("rates", ())
        if (row["label"], row["action"]) == ("safe", "flag")
    ]
    return ", ".join(shown) or "-"


def _repair(one: Outcome) -> str:
    t = one.transport
    if t is None or one.repaired != "transported":
        return one.repaired or "-"
    return f"transported: text AUROC {t['auroc_before']:.3f} to {t['auroc_after']:.3f}"


def earlier(out: Path, fitted: Artefact) -> list[Outcome]:
    """What an earlier run wrote of the same artefact; nothing if there is none that can be read."""
    try:
        kept = json.loads((out / JSON_NAME).read_text("utf-8"))
        if kept["artefact"] != fitted.artefact_id:
            return []
        tuples = [
            {name: tuple(row[name]) for name in ("expected", "reasons")} for row in kept["cases"]
        ]
        return [Outcome(**row | more) for row, more in zip(kept["cases"], tuples, strict=True)]
    except (OSError, ValueError, TypeError, KeyError):
        return []


def merged(
    before: Sequence[Outcome], found: Sequence[Outcome], order: Sequence[str]
) -> list[Outcome]:
    """One outcome of each case, the later one, in the order of the cases' names."""
    rows = {one.name: one for one in (*before, *found)}
    known = [rows.pop(name) for name in order if name in rows]
    return [*known, *rows.values()]


def save(out: Path, fitted: Artefact, found: Sequence[Outcome]) -> None:
    """All outcomes so far, as JSON and as a table in Markdown."""
    rows = {"artefact": fitted.artefact_id, "cases": [asdict(one) for one in found]}
    write_atomically(out / JSON_NAME, json.dumps(rows, indent=1).encode())
    write_atomically(out / TABLE_NAME, ("\n".join(table(found)) + "\n").encode())
