"""How fast the model has been working, to say when asking again makes sense."""

from __future__ import annotations

SHORTEST_S, LONGEST_S = 1.0, 60.0
_NEWEST = 0.25  # weight of the newest batch in the running means


class Pace:
    """Running means over the latest batches; not safe between threads."""

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
