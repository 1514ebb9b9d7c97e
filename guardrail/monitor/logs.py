"""Counts from audit logs, line by line, in memory that does not grow."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, BinaryIO

from guardrail.errors import DatasetError
from guardrail.monitor.monitor import BINS, Monitor
from guardrail.types import Action, Modality

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from guardrail.artefact import Artefact
    from guardrail.monitor.snapshot import MonitorSnapshot

MAX_LINE = 16_000_000
MOST_UNREADABLE = 0.01


@dataclass(kw_only=True)
class LogFacts:
    """What was in the logs beside the verdicts that count.

    `other_artefacts` are verdicts of other artefacts, `other_events` lines that are no verdict of
    the guard itself, `outside` lines before `since` or after `until`; `cut` are half-written last
    lines, `unreadable` others that are no audit lines.
    """

    lines: int = 0
    counted: int = 0
    other_artefacts: int = 0
    other_events: int = 0
    outside: int = 0
    cut: int = 0
    unreadable: int = 0


class LogReader:
    """Adds the verdicts of one artefact from audit logs to a monitor.

    Outages without a decision name no artefact; all of them are counted.
    """

    def __init__(
        self,
        artefact: Artefact,
        *,
        bins: int = BINS,
        since: datetime | None = None,
        until: datetime | None = None,
    ) -> None:
        """Count lines from `since` on and before `until`; both must know their time zone."""
        self.facts = LogFacts()
        self._monitor, self._artefact_id = Monitor(artefact, bins=bins), artefact.artefact_id
        self._since, self._until = since, until
        self._first: datetime | None = None
        self._last: datetime | None = None

    def read(self, path: Path) -> None:
        """Count one file.

        Raises:
            DatasetError: it cannot be read, or more than 1 % of its lines are no audit lines.
        """
        bad, first_bad, lines = 0, 0, 0
        try:
            with path.open("rb") as file:
                for line, whole in _lines(file):
                    lines += 1
                    if self._count(line):
                        continue
                    if not whole and _is_begun(line):
                        self.facts.cut += 1
                        continue
                    bad, first_bad = bad + 1, first_bad or lines
        except OSError as error:
            raise DatasetError(f"{path} cannot be read: {error.strerror}") from error
        if bad > MOST_UNREADABLE * lines:
            raise DatasetError(
                f"{path}: {bad} of {lines} lines, the first of them line {first_bad}, are no audit "
                "lines; give snapshots of a monitor or logs that a guard's AuditLog wrote"
            )
        self.facts.lines += lines
        self.facts.unreadable += bad

    def snapshot(self) -> MonitorSnapshot:
        """The counts of all files, from the first counted line's time to the last one's."""
        times = {"since": self._first, "until": self._last}
        return self._monitor.snapshot().model_copy(update=times)

    def _count(self, line: bytes) -> bool:
        """Whether a line is one that an audit log holds."""
        try:
            row = json.loads(line)
            when = datetime.fromisoformat(row["time"])
            event = row["event"]
        except (ValueError, KeyError, TypeError, RecursionError):
            return False
        if when.tzinfo is None or not isinstance(event, str):
            return False
        if (self._since and when < self._since) or (self._until and when >= self._until):
            self.facts.outside += 1
            return True
        counted = self._event(event, row)
        if counted:
            self.facts.counted += 1
            self._first = when if self._first is None else min(self._first, when)
            self._last = when if self._last is None else max(self._last, when)
        return counted is not None

    def _event(self, event: str, row: dict[str, object]) -> bool | None:
        """Whether the line counts; None for a verdict that lacks a part."""
        match event, row.get("artefact_id"):
            case "outage", None:
                self._monitor.add_outage()
                return True
            case "verdict", str(artefact_id) if artefact_id != self._artefact_id:
                self.facts.other_artefacts += 1
                return False
            case "verdict", str():
                return self._verdict(row)
            case "verdict", _:
                return None
        self.facts.other_events += 1
        return False

    def _verdict(self, row: dict[str, object]) -> bool | None:
        modality, would_be, score = row.get("modality"), row.get("would_be"), row.get("score")
        if not (isinstance(modality, str) and isinstance(would_be, str)):
            return None
        try:
            known = Modality(modality), Action(would_be), _score(score)
        except (ValueError, OverflowError):
            return None
        where = row.get("where")
        reading = where.get("reading") if isinstance(where, dict) else None
        self._monitor.add(*known, reading if isinstance(reading, str) else None)
        return True


def _score(value: object) -> float | None:
    """A score as a line holds it; None where the detector failed."""
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError("a score is a number")
    if not math.isfinite(value):
        raise ValueError("a score is finite")
    return float(value)


def _is_begun(line: bytes) -> bool:
    """Whether a line without its end may be the beginning of an audit line, not another file."""
    try:
        json.loads(line)
    except (ValueError, RecursionError):
        return line.lstrip().startswith(b"{")
    return False


def _lines(file: BinaryIO) -> Iterator[tuple[bytes, bool]]:
    """The lines of a file, and whether each is whole; of one that is too long nothing is kept."""
    while line := file.readline(MAX_LINE):
        whole = line.endswith(b"\n")
        if len(line) == MAX_LINE and not whole:
            while (rest := file.readline(MAX_LINE)) and not rest.endswith(b"\n"):
                pass
            yield b"", True
        elif line.strip():
            yield line, whole
