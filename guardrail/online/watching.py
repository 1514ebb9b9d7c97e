"""An answer that is judged while it grows: what of it may leave, and when it is cut.

A token leaves once every window that it stands in was judged. So nothing of a window that is cut is
ever shown, and a stream is behind the model by one window.
"""

from __future__ import annotations

import logging
import math
from collections import deque
from typing import TYPE_CHECKING

from guardrail.decide.answers import Heard, answer_verdict
from guardrail.policy.acting import answer_action, enforced, stops
from guardrail.types import Action

if TYPE_CHECKING:
    from collections.abc import Callable

    from guardrail.decide.detector import Detector
    from guardrail.types import Verdict

log = logging.getLogger("guardrail")


class WatchedAnswer:
    """One answer under watch; `emit` gets its text, late."""

    def __init__(self, detector: Detector, emit: Callable[[str], None]) -> None:
        self._detector, self._emit = detector, emit
        self._width = detector.watched.width
        self._heard = Heard()
        self._tokens = 0
        self._waiting: deque[tuple[int, str]] = deque()
        self._left: list[str] = []
        self.cut = False

    @property
    def left(self) -> str:
        """What has been let out."""
        return "".join(self._left)

    def taken(self) -> None:
        """One more token was chosen, whose text comes next, if any does."""
        self._tokens += 1

    def put(self, chunk: str) -> None:
        """Text of the tokens up to the newest one."""
        self._waiting.append((self._tokens, chunk))

    def hear(self, score: float) -> bool:
        """The score of the window that ends at the newest token; true where it ends the answer."""
        policy = self._detector.policy
        if not math.isfinite(score) and not self._heard.failed:
            log.error("an answer's tokens up to number %d have no finite score", self._tokens)
        self._heard.hear(score, self._tokens, self._width)
        asked = answer_action(score, self._detector.answer_threshold, policy)
        done = enforced(asked, policy)
        self.cut = stops(done, policy.on_flag, outage=not math.isfinite(score))
        if self.cut:
            self._waiting.clear()
            return True
        self._release(self._tokens - self._width + 1)
        return False

    def end(self) -> None:
        """The answer has ended by itself: all of it may leave."""
        self._release(self._tokens)

    def verdict(self, asked: Verdict, message: int) -> Verdict | None:
        """The verdict on the answer, message number `message`; None where it was too short."""
        heard = self._heard
        if not heard.failed and not math.isfinite(heard.score):
            return None
        return answer_verdict(self._detector, heard, asked, message)

    def _release(self, upto: int) -> None:
        while self._waiting and self._waiting[0][0] <= upto:
            _, chunk = self._waiting.popleft()
            self._left.append(chunk)
            self._emit(chunk)


def of_both(asked: Verdict, answer: Verdict) -> Verdict:
    """The verdict that counts of a request's and its answer's: the first that is a flag."""
    if asked.action is Action.FLAG or answer.action is not Action.FLAG:
        return asked
    return answer
