"""How a guard's scores of late compare with its calibration, worked out now and then."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING

from guardrail.monitor import compare

if TYPE_CHECKING:
    from collections.abc import Callable

    from guardrail.guard import Guard
    from guardrail.monitor import Comparison, Monitor

EVERY_S = 30.0


class DriftState:
    """The comparison of a guard's counts, at most `every_s` old; safe between threads."""

    def __init__(
        self, every_s: float = EVERY_S, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._every_s, self._clock, self._lock = every_s, clock, threading.Lock()
        self._known: tuple[Monitor, float, Comparison] | None = None

    def of(self, guard: Guard) -> Comparison:
        """The comparison for this guard; another one's is never given out for it."""
        monitor, now = guard.monitor, self._clock()
        with self._lock:
            if self._known is not None:
                whose, when, comparison = self._known
                if whose is monitor and now - when < self._every_s:
                    return comparison
            comparison = compare(monitor.snapshot(), guard.artefact)
            self._known = (monitor, now, comparison)
            return comparison
