"""Whether a job that is alone now will have company soon: only then is waiting worth its time."""

from __future__ import annotations

import math
import time


class Company:
    """Signs that several callers are about; not safe between threads."""

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
