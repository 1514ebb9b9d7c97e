"""How many requests do at once what takes memory of its own; and whose they are."""

from __future__ import annotations

import threading
from collections import Counter

from guardrail.model.shares import within_share


class Places:
    """A bounded number of places; safe to share between threads."""

    def __init__(self, places: int) -> None:
        self.places = places
        self._held: Counter[str | None] = Counter()
        self._changed = threading.Condition()

    def take(self, client: str | None, *, timeout: float | None = 0.0) -> bool:
        """Take a place, within `timeout` s (None: however long it takes); false when none is free.

        A named client may hold three places for each that is free.
        """
        with self._changed:
            if not self._changed.wait_for(lambda: self._free_for(client), timeout):
                return False
            self._held[client] += 1
            return True

    def give_back(self, client: str | None) -> None:
        """Give a place back."""
        with self._changed:
            self._held[client] -= 1
            self._held += Counter()  # forgets who holds none
            self._changed.notify_all()

    def _free_for(self, client: str | None) -> bool:
        return within_share(client, self._held[client], self.places - self._held.total())
