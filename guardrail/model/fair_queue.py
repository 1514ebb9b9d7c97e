"""Jobs that wait, and whose turn it is: clients take turns, each of them oldest first.

Two turns are kept for each client. The *lead*, to have its oldest job opens the next batch, goes
round: of C clients that wait, each leads one batch in C, whatever kinds of jobs the others have. So
a job starts after at most (n + 1) C batches, where n is how many older ones its client has waiting.
The other places of a batch go round among the clients that have jobs of its kind.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from itertools import count
from typing import TYPE_CHECKING, Generic, Protocol, TypeVar

if TYPE_CHECKING:
    from collections.abc import Hashable, Iterator, Sequence


class Waiting(Protocol):
    """What a queue looks at in a job; the job itself is told apart by identity."""

    @property
    def client(self) -> str | None:
        """Whose it is."""

    @property
    def key(self) -> Hashable | None:
        """Jobs with equal keys may share a batch; None shares none."""


W = TypeVar("W", bound=Waiting)


@dataclass(slots=True)
class _Line(Generic[W]):
    """One client's jobs, oldest first, and when it had its turns."""

    led: int
    served: int
    jobs: dict[W, None] = field(default_factory=dict)

    def of_kind(self, key: Hashable) -> W | None:
        return next((job for job in self.jobs if job.key == key), None)


class FairQueue(Generic[W]):
    """Waiting jobs; not safe between threads."""

    def __init__(self) -> None:
        self._lines: dict[str | None, _Line[W]] = {}
        self._ticks = count()

    def __len__(self) -> int:
        """How many wait."""
        return sum(len(line.jobs) for line in self._lines.values())

    def __iter__(self) -> Iterator[W]:
        """All that wait, client by client."""
        return iter([job for line in self._lines.values() for job in line.jobs])

    def held_by(self, client: str | None) -> int:
        """How many of a client wait."""
        line = self._lines.get(client)
        return 0 if line is None else len(line.jobs)

    def push(self, job: W) -> None:
        """Let a job wait; a client that had none waiting comes behind the others."""
        if job.client not in self._lines:
            now = next(self._ticks)
            self._lines[job.client] = _Line(led=now, served=now)
        self._lines[job.client].jobs[job] = None

    def next(self) -> W | None:
        """The job that opens the next batch; it stays until it is taken."""
        if not self._lines:
            return None
        line = min(self._lines.values(), key=lambda line: line.led)
        return next(iter(line.jobs))

    def companion(self, batch: Sequence[W]) -> W | None:
        """The next job that may share a batch; it stays until it is taken."""
        key = batch[0].key
        if key is None:
            return None
        has = Counter(job.client for job in batch)
        lines = sorted(self._lines.items(), key=lambda item: (has[item[0]], item[1].served))
        found = (line.of_kind(key) for _, line in lines)
        return next((job for job in found if job is not None), None)

    def take(self, job: W, *, leads: bool = False) -> None:
        """Remove a waiting job that goes into a batch; its client has had this turn."""
        line = self._lines[job.client]
        line.served = next(self._ticks)
        if leads:
            line.led = line.served
        self.remove(job)

    def remove(self, job: W) -> bool:
        """Remove a job that nobody wants any more; whether it waited."""
        line = self._lines.get(job.client)
        if line is None or job not in line.jobs:
            return False
        del line.jobs[job]
        if not line.jobs:
            del self._lines[job.client]
        return True
