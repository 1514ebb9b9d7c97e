"""Verdicts and answers wait in lanes of their own, and batches come from them in turn.

A verdict costs part of one pass, an answer hundreds: behind a row of answers a verdict would wait
for all of them. So it waits for the batch that runs, and for verdicts before it; neither lane has
two batches in a row while the other has jobs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Generic, Protocol, TypeVar

from guardrail.model.fair_queue import FairQueue, Waiting

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence


class Laned(Waiting, Protocol):
    """A waiting job that knows its lane."""

    @property
    def quick(self) -> bool:
        """Whether it asks for a verdict alone."""


L = TypeVar("L", bound=Laned)


class Lanes(Generic[L]):
    """Two fair queues as one; not safe between threads."""

    def __init__(self) -> None:
        self._lanes: dict[bool, FairQueue[L]] = {True: FairQueue(), False: FairQueue()}
        self._last_quick = False

    def __len__(self) -> int:
        """How many wait."""
        return sum(map(len, self._lanes.values()))

    def __iter__(self) -> Iterator[L]:
        """All that wait."""
        return iter([job for lane in self._lanes.values() for job in lane])

    def held_by(self, client: str | None) -> int:
        """How many of a client wait."""
        return sum(lane.held_by(client) for lane in self._lanes.values())

    def push(self, job: L) -> None:
        """Let a job wait."""
        self._lanes[job.quick].push(job)

    def next(self) -> L | None:
        """The job that opens the next batch; it stays until it is taken."""
        job = self._lanes[not self._last_quick].next()
        return self._lanes[self._last_quick].next() if job is None else job

    def companion(self, batch: Sequence[L]) -> L | None:
        """The next job that may share a batch; it stays until it is taken."""
        return self._lanes[batch[0].quick].companion(batch)

    def take(self, job: L, *, leads: bool = False) -> None:
        """Remove a waiting job that goes into a batch."""
        if leads:
            self._last_quick = job.quick
        self._lanes[job.quick].take(job, leads=leads)

    def remove(self, job: L) -> bool:
        """Remove a job that nobody wants any more; whether it waited."""
        return self._lanes[job.quick].remove(job)
