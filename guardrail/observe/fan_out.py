"""One sink for a guard's record, made of several that do not know of each other."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from guardrail.types import Verdict

Sink = Callable[["Verdict | None", Mapping[str, object]], None]

_log = logging.getLogger(__name__)


class FanOut:
    """Hands every record to each of its sinks; one that fails touches neither others nor answers.

    Called on the model's thread, as any `audit` is: sinks must be quick and safe between threads.
    """

    def __init__(self, sinks: tuple[Sink, ...]) -> None:
        self.sinks = sinks
        self._failures = [0] * len(sinks)

    @property
    def failures(self) -> int:
        """How often a sink failed; what was to be recorded there is lost."""
        return sum(self._failures)

    def __call__(self, verdict: Verdict | None, facts: Mapping[str, object]) -> None:
        """Hand a record on."""
        for place, sink in enumerate(self.sinks):
            try:
                sink(verdict, facts)
            except Exception:  # a border: sinks are anybody's code
                self._failed(place)

    def _failed(self, place: int) -> None:
        count = self._failures[place] = self._failures[place] + 1
        if count.bit_count() == 1:  # 1, 2, 4, ...: the log must not fill with it
            name = type(self.sinks[place]).__name__
            _log.exception("the sink %s failed, %d times so far", name, count)


def fan_out(*sinks: Sink | None) -> Sink | None:
    """Several sinks as one; None among them are left out, and None is all that is left of none."""
    given = tuple(sink for sink in sinks if sink is not None)
    return FanOut(given) if len(given) > 1 else given[0] if given else None
