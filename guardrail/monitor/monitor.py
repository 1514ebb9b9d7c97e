"""Counts of a guard's verdicts, kept while it runs."""

from __future__ import annotations

import threading
import time
from bisect import bisect_left
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from math import inf, isfinite
from typing import TYPE_CHECKING

from guardrail.errors import CalibrationError, ConfigurationError
from guardrail.monitor.snapshot import ModalityCounts, MonitorSnapshot, cell_of
from guardrail.types import READINGS, Action, Modality

if TYPE_CHECKING:
    from guardrail.artefact import Artefact
    from guardrail.artefact.header import Calibration
    from guardrail.types import Reading, Verdict

BINS = 10


class Monitor:
    """Counts verdicts of one artefact; safe to share between threads.

    A verdict costs the same whenever it comes, and memory is bounded: by modality, counts of what
    the thresholds asked for, of the readings that asked for a flag, of scores beyond the
    calibration's own thresholds, in `bins` bins that hold equal shares of the calibration's scores,
    and on a fixed grid for quantiles. No text, no request's id and no single score is kept.
    """

    def __init__(self, artefact: Artefact, *, bins: int = BINS) -> None:
        """Count from now on.

        Raises:
            ConfigurationError: `bins` is not between 2 and 100.
        """
        self._references = references(artefact, bins)
        self._artefact_id, self._bins = artefact.artefact_id, bins
        self._lock = threading.Lock()
        self._start()

    def _start(self) -> None:
        self._since, self._outages = time.time(), 0
        self._tallies: dict[Modality, _Tally] = {}

    def record(self, verdict: Verdict | None) -> None:
        """Count a verdict; None is a request for which there was no decision at all.

        Raises:
            ConfigurationError: the verdict is another artefact's.
        """
        if verdict is None:
            self.add_outage()
            return
        if verdict.artefact_id != self._artefact_id:
            raise ConfigurationError(
                f"a verdict of {verdict.artefact_id} does not count for {self._artefact_id}"
            )
        reading = None if verdict.where is None else verdict.where.reading
        self.add(verdict.modality, verdict.would_be, verdict.score, reading)

    def add_outage(self) -> None:
        """Count a request for which there was no decision."""
        with self._lock:
            self._outages += 1

    def add(
        self,
        modality: Modality,
        would_be: Action,
        score: float | None,
        reading: str | None = None,
    ) -> None:
        """Count a decision; a score of None says that the detector failed.

        `reading` is what the score is from, where that is known; others than `READINGS` are not.

        Raises:
            ValueError: the score is not finite.
        """
        if score is not None and not isfinite(score):
            raise ValueError(f"score must be finite; got {score}")
        reference = self._references.get(modality)
        with self._lock:
            tally = self._tallies.get(modality)
            if tally is None:
                tally = self._tallies[modality] = _Tally.empty(reference)
            if score is None:
                tally.outages += 1
            else:
                tally.add(score, would_be, reference)
                tally.found(would_be, reading)

    def snapshot(self) -> MonitorSnapshot:
        """The counts so far."""
        with self._lock:
            tallies = {modality: tally.copy() for modality, tally in self._tallies.items()}
            since, outages = self._since, self._outages
        return self._counted(tallies, since, outages)

    def restart(self) -> MonitorSnapshot:
        """The counts so far, and start at zero: every verdict is in just one window."""
        with self._lock:
            tallies, since, outages = self._tallies, self._since, self._outages
            self._start()
        return self._counted(tallies, since, outages)

    def _counted(
        self, tallies: dict[Modality, _Tally], since: float, outages: int
    ) -> MonitorSnapshot:
        return MonitorSnapshot(
            artefact_id=self._artefact_id,
            bins=self._bins,
            since=datetime.fromtimestamp(since, UTC),
            until=datetime.now(UTC),
            outages=outages,
            modalities={
                modality: tally.counted(self._references.get(modality))
                for modality, tally in sorted(tallies.items())
            },
        )


@dataclass(slots=True, kw_only=True)
class _Tally:
    """One modality's counts while they grow."""

    counts: list[int]
    n: int = 0
    outages: int = 0
    beyond_steer: int = 0
    beyond_flag: int = 0
    actions: dict[Action, int] = field(default_factory=lambda: dict.fromkeys(Action, 0))
    cells: dict[int, int] = field(default_factory=dict)
    flagged_by: dict[Reading, int] = field(default_factory=lambda: dict.fromkeys(READINGS, 0))
    lowest: float = inf
    highest: float = -inf

    @classmethod
    def empty(cls, reference: Reference | None) -> _Tally:
        return cls(counts=[0] * (0 if reference is None else len(reference.edges) + 1))

    def add(self, score: float, would_be: Action, reference: Reference | None) -> None:
        self.n += 1
        self.actions[would_be] += 1
        cell = cell_of(score)
        self.cells[cell] = self.cells.get(cell, 0) + 1
        self.lowest, self.highest = min(self.lowest, score), max(self.highest, score)
        if reference is not None:
            thresholds = reference.calibration.thresholds
            self.beyond_steer += score > thresholds.steer
            self.beyond_flag += score > thresholds.flag
            self.counts[reference.bin_of(score)] += 1

    def found(self, would_be: Action, reading: str | None) -> None:
        for known in READINGS:
            self.flagged_by[known] += would_be is Action.FLAG and reading == known

    def copy(self) -> _Tally:
        return replace(
            self,
            counts=[*self.counts],
            actions=dict(self.actions),
            cells=dict(self.cells),
            flagged_by=dict(self.flagged_by),
        )

    def counted(self, reference: Reference | None) -> ModalityCounts:
        return ModalityCounts(
            n=self.n,
            outages=self.outages,
            actions=dict(self.actions),
            beyond_steer=self.beyond_steer,
            beyond_flag=self.beyond_flag,
            edges=() if reference is None else reference.edges,
            counts=tuple(self.counts),
            cells=tuple(sorted(self.cells.items())),
            lowest=self.lowest if self.n else None,
            highest=self.highest if self.n else None,
            flagged_by=dict(self.flagged_by),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Reference:
    """A calibration, whose it is, and the edges of bins that hold equal shares of its scores.

    Edges ascend; bin i holds the scores from above edge i - 1 up to and with edge i, the last one
    those above all edges. Ties make fewer bins.
    """

    modality: Modality
    calibration: Calibration
    edges: tuple[float, ...]

    def bin_of(self, score: float) -> int:
        """The bin of a score, 0 to len(edges)."""
        return bisect_left(self.edges, score)

    def counts(self) -> tuple[int, ...]:
        """How many of the calibration's own scores each bin holds; none is empty."""
        found = [0] * (len(self.edges) + 1)
        for score in self.calibration.scores:
            found[self.bin_of(score)] += 1
        return tuple(found)


def references(artefact: Artefact, bins: int = BINS) -> dict[Modality, Reference]:
    """The reference of each modality; a modality without its own is held to a plainer one's.

    Raises:
        ConfigurationError: `bins` is no number of bins.
    """
    if not 2 <= bins <= 100:
        raise ConfigurationError(f"scores are counted in 2 to 100 bins; got {bins}")
    found = {}
    for modality in Modality:
        try:
            whose, calibration = artefact.calibration_for(modality)
        except CalibrationError:
            continue
        if not calibration.scores:
            continue
        edges = bin_edges(calibration.scores, bins)
        found[modality] = Reference(modality=whose, calibration=calibration, edges=edges)
    return found


def bin_edges(scores: tuple[float, ...], bins: int) -> tuple[float, ...]:
    """Inner edges of at most `bins` bins with equal shares of ascending scores, one at least."""
    places = (-(-len(scores) * i // bins) - 1 for i in range(1, bins))
    inner = {scores[place] for place in places if place >= 0}
    return tuple(sorted(inner - {scores[-1]}))  # the last bin is open, and must hold something
