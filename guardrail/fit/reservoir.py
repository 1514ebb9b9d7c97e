"""A uniform sample of a stream of unknown length, in bounded memory."""

from __future__ import annotations

import random


class Reservoir:
    """At most `keep` of the values added, every one kept with the same probability.

    Vitter (1985), algorithm R. A uniform subsample of exchangeable scores is exchangeable with
    future ones as the whole would be, so conformal thresholds of the sample hold as they are; only
    their n is that of the sample.
    """

    def __init__(self, keep: int, *, seed: int | str = 0) -> None:
        if keep < 1:
            raise ValueError(f"a sample keeps at least one value; got {keep}")
        self._keep, self._random = keep, random.Random(seed)
        self._values: list[float] = []
        self.seen = 0

    def add(self, value: float) -> None:
        """Take one more value of the stream into account."""
        self.seen += 1
        if len(self._values) < self._keep:
            self._values.append(value)
            return
        place = self._random.randrange(self.seen)
        if place < self._keep:
            self._values[place] = value

    @property
    def values(self) -> tuple[float, ...]:
        """The sample, in no order that means anything."""
        return tuple(self._values)
