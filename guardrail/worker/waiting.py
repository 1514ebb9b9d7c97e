"""Jobs that wait, whose turn it is, and how long it may take.

Verdicts and answers wait in lanes of their own, and batches come from them in turn. A verdict costs
part of one pass, an answer hundreds: behind a row of answers a verdict would wait for all of them.
So it waits for the batch that runs, and for verdicts before it; neither lane has two batches in a
row while the other has jobs.

Within a lane clients take turns, each of them oldest first. Two turns are kept for each client. The
*lead*, to have its oldest job opens the next batch, goes round: of C clients that wait, each leads
one batch in C, whatever kinds of jobs the others have. So a job starts after at most (n + 1) C
batches, where n is how many older ones its client has waiting. The other places of a batch go round
among the clients that have jobs of its kind.
"""

from __future__ import annotations

import math
import time
from collections import Counter
from dataclasses import dataclass, field
from itertools import count
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Hashable, Iterator, Sequence

    from guardrail.worker.jobs import Job

SHORTEST_S, LONGEST_S = 1.0, 60.0

_NEWEST = 0.25  # weight of the newest batch in the running means

_FOR_EACH_FREE = 3


class Lanes:
    """Two fair queues as one, of quick jobs and of others; not safe between threads."""

    def __init__(self) -> None:
        self._lanes = {True: FairQueue(), False: FairQueue()}
        self._last_quick = False

    def __len__(self) -> int:
        """How many wait."""
        return sum(map(len, self._lanes.values()))

    def __iter__(self) -> Iterator[Job[Any]]:
        """All that wait."""
        return iter([job for lane in self._lanes.values() for job in lane])

    def held_by(self, client: str | None) -> int:
        """How many of a client wait."""
        return sum(lane.held_by(client) for lane in self._lanes.values())

    def push(self, job: Job[Any]) -> None:
        """Let a job wait."""
        self._lanes[job.quick].push(job)

    def next(self) -> Job[Any] | None:
        """The job that opens the next batch; it stays until it is taken."""
        job = self._lanes[not self._last_quick].next()
        return self._lanes[self._last_quick].next() if job is None else job

    def companion(self, batch: Sequence[Job[Any]]) -> Job[Any] | None:
        """The next job that may share a batch; it stays until it is taken."""
        return self._lanes[batch[0].quick].companion(batch)

    def take(self, job: Job[Any], *, leads: bool = False) -> None:
        """Remove a waiting job that goes into a batch."""
        if leads:
            self._last_quick = job.quick
        self._lanes[job.quick].take(job, leads=leads)

    def remove(self, job: Job[Any]) -> bool:
        """Remove a job that nobody wants any more; whether it waited."""
        return self._lanes[job.quick].remove(job)


class FairQueue:
    """Waiting jobs of one lane, told apart by identity; not safe between threads."""

    def __init__(self) -> None:
        self._lines: dict[str | None, _Line] = {}
        self._ticks = count()

    def __len__(self) -> int:
        """How many wait."""
        return sum(len(line.jobs) for line in self._lines.values())

    def __iter__(self) -> Iterator[Job[Any]]:
        """All that wait, client by client."""
        return iter([job for line in self._lines.values() for job in line.jobs])

    def held_by(self, client: str | None) -> int:
        """How many of a client wait."""
        line = self._lines.get(client)
        return 0 if line is None else len(line.jobs)

    def push(self, job: Job[Any]) -> None:
        """Let a job wait; a client that had none waiting comes behind the others."""
        if job.client not in self._lines:
            now = next(self._ticks)
            self._lines[job.client] = _Line(led=now, served=now)
        self._lines[job.client].jobs[job] = None

    def next(self) -> Job[Any] | None:
        """The job that opens the next batch; it stays until it is taken."""
        if not self._lines:
            return None
        line = min(self._lines.values(), key=lambda line: line.led)
        return next(iter(line.jobs))

    def companion(self, batch: Sequence[Job[Any]]) -> Job[Any] | None:
        """The next job that may share a batch; it stays until it is taken."""
        key = batch[0].key
        if key is None:
            return None
        has = Counter(job.client for job in batch)
        lines = sorted(self._lines.items(), key=lambda item: (has[item[0]], item[1].served))
        found = (line.of_kind(key) for _, line in lines)
        return next((job for job in found if job is not None), None)

    def take(self, job: Job[Any], *, leads: bool = False) -> None:
        """Remove a waiting job that goes into a batch; its client has had this turn."""
        line = self._lines[job.client]
        line.served = next(self._ticks)
        if leads:
            line.led = line.served
        self.remove(job)

    def remove(self, job: Job[Any]) -> bool:
        """Remove a job that nobody wants any more; whether it waited."""
        line = self._lines.get(job.client)
        if line is None or job not in line.jobs:
            return False
        del line.jobs[job]
        if not line.jobs:
            del self._lines[job.client]
        return True


@dataclass(slots=True)
class _Line:
    """One client's jobs, oldest first, and when it had its turns."""

    led: int
    served: int
    jobs: dict[Job[Any], None] = field(default_factory=dict)

    def of_kind(self, key: Hashable) -> Job[Any] | None:
        return next((job for job in self.jobs if job.key == key), None)


def within_share(client: str | None, held: int, free: int) -> bool:
    """Whether a client that holds so many places may have one of the free ones.

    A named client may hold three for each that is free: alone three quarters of them, and there is
    always room for another one's first. Who names no client may have all.
    """
    return free > 0 and (client is None or held < _FOR_EACH_FREE * free)


class Arrivals:
    """Signs that more jobs are about to come; not safe between threads.

    Only then is it worth a lone job's time to wait for others that share its batch.
    """

    def __init__(self) -> None:
        self._met = False
        self._shared_at = -math.inf
        self._coming: set[object] = set()

    def met(self) -> None:
        """A job came while another was unanswered, or out of a list."""
        self._met = True

    def shared(self) -> None:
        """A batch of more than one job ended now."""
        self._shared_at = time.monotonic()

    def comes(self, token: object) -> None:
        """A request is being read, and will be a job in a moment."""
        self._coming.add(token)

    def came(self, token: object) -> None:
        """It is a job now, or will be none."""
        self._coming.discard(token)

    def is_expected(self, within_s: float) -> bool:
        """Whether there is a sign since this was asked last, or from the last `within_s`."""
        met, self._met = self._met, False
        recent = time.monotonic() - self._shared_at < within_s
        return met or recent or bool(self._coming)


class Throughput:
    """Running means over the latest batches, to say when asking again makes sense.

    Not safe between threads.
    """

    def __init__(self) -> None:
        self._batch_s = 0.0
        self._jobs = 0.0

    def ran(self, jobs: int, seconds: float) -> None:
        """Note a batch."""
        weight = _NEWEST if self._jobs else 1.0
        self._batch_s += weight * (seconds - self._batch_s)
        self._jobs += weight * (jobs - self._jobs)

    def drain_s(self, jobs: int) -> float:
        """When so many jobs should be done, in s, within 1 to 60; 1 before the first batch."""
        seconds = jobs * self._batch_s / self._jobs if self._jobs else 0.0
        return min(max(seconds, SHORTEST_S), LONGEST_S)
