"""A server's life: open for requests, then draining; and which requests are under way."""

from __future__ import annotations

import asyncio
import math
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

_TO_END_S = 5.0  # for requests that were told to end


class Lifecycle:
    """Counts requests and says when they must end. `drain` may be called by a signal handler.

    Everything else belongs to the event loop.
    """

    def __init__(self, *, drain_s: float) -> None:
        self._drain_s, self._until = drain_s, math.inf
        self._under_way: set[object] = set()
        self._ended = asyncio.Event()  # set and cleared with every request that ends
        self.expired = asyncio.Event()

    @property
    def draining(self) -> bool:
        """Whether new requests are refused."""
        return self._until < math.inf

    @property
    def under_way(self) -> int:
        """How many requests have no complete answer yet."""
        return len(self._under_way)

    @contextmanager
    def request(self) -> Iterator[None]:
        """A request, from its start to the end of its answer."""
        token = object()
        self._under_way.add(token)
        try:
            yield
        finally:
            self._under_way.discard(token)
            self._ended.set()
            self._ended.clear()

    async def all_ended(self) -> None:
        """Wait until the requests that are under way now have ended; later ones do not count."""
        mine = set(self._under_way)
        while mine & self._under_way:
            await self._ended.wait()

    def drain(self) -> None:
        """Take no more requests; those there are have `drain_s` seconds."""
        self._until = min(self._until, time.monotonic() + self._drain_s)

    def end_now(self) -> None:
        """End what is under way."""
        self._until = -math.inf

    def drained(self) -> bool:
        """Whether nothing is left to wait for; ends the requests whose time is over."""
        if not self.draining:
            return False
        now = time.monotonic()
        if now >= self._until:
            self.expired.set()
        return not self._under_way or now >= self._until + _TO_END_S
