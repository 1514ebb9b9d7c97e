"""HTTP connections with bounds that uvicorn has not: their number, slow headers, slow readers."""

from __future__ import annotations

import ipaddress
from collections import Counter
from typing import TYPE_CHECKING, Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

if TYPE_CHECKING:
    import asyncio

_SLOW = b"HTTP/1.1 408 Request Timeout\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
_CROWDED = (
    b"HTTP/1.1 503 Service Unavailable\r\nRetry-After: 1\r\n"
    b"Content-Length: 0\r\nConnection: close\r\n\r\n"
)


def bounded_protocol(*, most: int, header_s: float, stall_s: float) -> type[asyncio.Protocol]:
    """A protocol class for `most` connections at once; times in seconds.

    `most` is to be above the number of requests that are let in at once. `header_s` is for each
    request's headers, `stall_s` for a client that takes nothing of its answer while more waits.
    """

    class _Here(BoundedProtocol):
        most_connections, header_timeout_s, stall_timeout_s = most, header_s, stall_s

    return _Here


class BoundedProtocol(H11Protocol):
    """uvicorn's protocol on h11; closes connections beyond a bound, and those that dawdle.

    Beyond the bound a new connection takes the place of one whose request is not here whole: of the
    peer that has most of these, the one that has waited longest. So nobody can shut others out, and
    health checks least, by connections that only begin to ask.
    """

    most_connections: int
    header_timeout_s: float
    stall_timeout_s: float
    _timer: asyncio.TimerHandle | None = None
    _stalled: asyncio.TimerHandle | None = None
    _since = 0.0  # when the wait for a request began

    def connection_made(self, transport: Any) -> None:
        """Begin, or refuse when there are too many already and none of them gives way."""
        super().connection_made(transport)
        self._since = self.loop.time()
        if self._has_room():
            self._watch()
        else:
            self._close(_CROWDED)

    def data_received(self, data: bytes) -> None:
        """Take bytes; once they make whole headers, the time for them no longer counts."""
        if self.transport.is_closing():
            return
        super().data_received(data)
        self._watch()

    def on_response_complete(self) -> None:
        """An answer is out, and the wait for the next request begins."""
        self._since = self.loop.time()
        super().on_response_complete()

    def connection_lost(self, exc: Exception | None) -> None:
        """End."""
        self._unwatch()
        self._flowing()
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        """The client takes less than there is for it."""
        super().pause_writing()
        self._flowing()
        self._stalled = self.loop.call_later(self.stall_timeout_s, self.transport.abort)

    def resume_writing(self) -> None:
        """It has caught up."""
        super().resume_writing()
        self._flowing()

    def _has_room(self) -> bool:
        if len(self.connections) <= self.most_connections:
            return True
        here = [each for each in self.connections if not each.transport.is_closing()]
        if len(here) <= self.most_connections:
            return True
        waiting = [
            each
            for each in here
            if isinstance(each, BoundedProtocol) and each is not self and each._waits
        ]
        if not waiting:
            return False
        held = Counter(each._peer for each in waiting)
        min(waiting, key=lambda each: (-held[each._peer], each._since))._give_way()
        return True

    @property
    def _idle(self) -> bool:
        """Whether no request is under way."""
        return self.cycle is None or self.cycle.response_complete

    @property
    def _waits(self) -> bool:
        """Whether nothing was asked yet, or not to its end."""
        return self._idle or self.conn.their_state is h11.SEND_BODY

    @property
    def _peer(self) -> str:
        """Who is at the other end: an address, or the network that one host may have all of."""
        host = self.client[0] if self.client else ""
        if ":" in host:
            return str(ipaddress.ip_network((host.partition("%")[0], 64), strict=False))
        return host

    def _give_way(self) -> None:
        if self._idle:
            self._close(_SLOW)
        else:
            self.transport.abort()

    def _flowing(self) -> None:
        if self._stalled is not None:
            self._stalled.cancel()
            self._stalled = None

    def _watch(self) -> None:
        """Count the time while no request is under way; bytes that trickle in do not reset it."""
        if not self._idle:
            self._unwatch()
        elif self._timer is None:
            self._timer = self.loop.call_later(self.header_timeout_s, self._too_slow)

    def _unwatch(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _too_slow(self) -> None:
        self._timer = None
        if self.conn.their_state is h11.IDLE:
            self._close(_SLOW)
        elif self._idle:
            self.transport.abort()  # it was refused, and still sends its body

    def _close(self, last: bytes) -> None:
        if not self.transport.is_closing():
            self.transport.write(last)
            self.transport.close()
