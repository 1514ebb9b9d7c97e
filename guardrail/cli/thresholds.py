"""Thresholds before and after a calibration, for people."""

from __future__ import annotations

from typing import TYPE_CHECKING, TextIO

from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from guardrail.artefact import Artefact
    from guardrail.artefact.header import Calibration, Header
    from guardrail.types import Modality

_COLUMNS = ("inputs", "action", "before", "now", "target", "true rate (95 %)", "n")


def earlier_rows(header: Header) -> list[tuple[str, str]]:
    """The thresholds that a calibration replaced, by modality."""
    match header.extra.get("calibrated_from"):
        case {"calibration": dict(rows)}:
            now = {name.value: _kept(row) for name, row in header.calibration.items()}
            told = {name: _told(row) for name, row in rows.items() if row != now.get(name)}
            return [(f"{name} before", text) for name, text in told.items() if text]
    return []


def _kept(row: Calibration) -> object:
    """A calibration as a later artefact remembers it."""
    return row.model_dump(mode="json", include={"thresholds", "targets", "source", "n"})


def _told(row: object) -> str:
    match row:
        case {
            "thresholds": {"steer": float(steer), "flag": float(flag)},
            "targets": {"steer": float(steered), "flag": float(flagged)},
            "source": str(source),
            "n": int(n),
        }:
            return (
                f"steer at {steer:.3f} (target {steered:.1%}), "
                f"flag at {flag:.3f} (target {flagged:.1%}), n = {n}, {source}"
            )
    return ""


def show_thresholds(stdout: TextIO, made: Artefact, *, before: Artefact) -> None:
    """A table of both artefacts' thresholds, and what rates the new ones may really have."""
    table = Table(*_COLUMNS, box=None, padding=(0, 2, 0, 0))
    for modality, now in made.header.calibration.items():
        old = before.header.calibration.get(modality)
        count = _count(made.header, modality)
        for action in ("steer", "flag"):
            table.add_row(modality, action, *_cells(action, now, old), count)
    Console(file=stdout, soft_wrap=True, highlight=False, markup=False).print(table)


def _cells(action: str, now: Calibration, old: Calibration | None) -> tuple[str, ...]:
    low, high = now.intervals.get(action, (None, None))
    return (
        "none" if old is None else f"{getattr(old.thresholds, action):.3f}",
        f"{getattr(now.thresholds, action):.3f}",
        f"{getattr(now.targets, action):.1%}",
        "" if low is None else f"{low:.2%} to {high:.2%}",
    )


def _count(header: Header, modality: Modality) -> str:
    """How many scores there are, and of how many where they are a sample."""
    n = header.calibration[modality].n
    match header.extra.get("calibration"):
        case {modality.value: {"seen": int(seen)}} if seen > n:
            return f"{n} of {seen}"
    return str(n)
