"""Counts of verdicts in the last minutes and hours, in memory that does not grow."""

from __future__ import annotations

import threading
import time
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

from guardrail.types import Action, Modality

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from guardrail.types import Verdict

SLOT_S, SLOTS = 10, 361  # an hour, and the slot that is just being filled


@dataclass(frozen=True, slots=True, kw_only=True)
class Counts:
    """What happened in one stretch of time.

    `actions` is what was done, `would_be` what the thresholds asked for; both hold every action.
    `outages` are requests that the detector failed on, with a decision or without one; `n` counts
    them, too.
    """

    n: int
    actions: Mapping[Action, int]
    would_be: Mapping[Action, int]
    modalities: Mapping[Modality, int]
    outages: int


class Recent:
    """Counts verdicts in slots of 10 s for an hour, and since the start; safe between threads."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock, self._lock = clock, threading.Lock()
        self._all: Counter[object] = Counter()
        self._slots: list[tuple[int, Counter[object]]] = [(-1, Counter()) for _ in range(SLOTS)]
        self.since = time.time()  # seconds since the epoch, for people

    def __call__(self, verdict: Verdict | None, facts: Mapping[str, object]) -> None:
        """Count a verdict or an outage; the form of an `audit`. Other events are let go."""
        if facts.get("event") not in ("verdict", "outage"):
            return
        keys = _keys(verdict)
        with self._lock:
            slot = self._slot(int(self._clock() // SLOT_S))
            for key in keys:
                slot[key] += 1
                self._all[key] += 1

    def last(self, seconds: float) -> Counts:
        """The counts of the last `seconds`, at most an hour, to within one slot of 10 s."""
        first = int(self._clock() // SLOT_S) - min(SLOTS - 1, max(1, round(seconds / SLOT_S)))
        with self._lock:
            found: Counter[object] = Counter()
            for number, slot in self._slots:
                if number > first:
                    found.update(slot)
        return _counts(found)

    def since_start(self) -> Counts:
        """All counts."""
        with self._lock:
            return _counts(Counter(self._all))

    def _slot(self, number: int) -> Counter[object]:
        place = number % SLOTS
        if self._slots[place][0] != number:  # an hour old: its time is over
            self._slots[place] = (number, Counter())
        return self._slots[place][1]


def _keys(verdict: Verdict | None) -> list[object]:
    if verdict is None:
        return ["n", "outage"]
    keys: list[object] = [
        "n",
        ("done", verdict.action),
        ("asked", verdict.would_be),
        verdict.modality,
    ]
    return [*keys, "outage"] if verdict.reason == "detector_failed" else keys


def _counts(found: Counter[object]) -> Counts:
    return Counts(
        n=found["n"],
        actions={action: found["done", action] for action in Action},
        would_be={action: found["asked", action] for action in Action},
        modalities={modality: found[modality] for modality in Modality},
        outages=found["outage"],
    )
