"""HTTP connections with bounds that uvicorn has not: their number, slow headers, slow readers."""

from __future__ import annotations

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

    `header_s` is for each request's headers, `stall_s` for a client that takes nothing of its
    answer while more waits for it.
    """

    class _Here(BoundedProtocol):
        most_connections, header_timeout_s, stall_timeout_s = most, header_s, stall_s

    return _Here


class BoundedProtocol(H11Protocol):
    """uvicorn's protocol on h11; closes connections beyond a bound, and those that dawdle."""

    most_connections: int
    header_timeout_s: float
    stall_timeout_s: float
    _timer: asyncio.TimerHandle | None = None
    _stalled: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        """Begin, or refuse when there are too many already."""
        super().connection_made(transport)
        if len(self.connections) > self.most_connections:
            self._close(_CROWDED)
        else:
            self._watch()

    def data_received(self, data: bytes) -> None:
        """Take bytes; once they make whole headers, the time for them no longer counts."""
        if self.transport.is_closing():
            return
        super().data_received(data)
        self._watch()

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

    def _flowing(self) -> None:
        if self._stalled is not None:
            self._stalled.cancel()
            self._stalled = None

    def _watch(self) -> None:
        """Count the time while no request is under way; bytes that trickle in do not reset it."""
        if self.cycle is not None and not self.cycle.response_complete:
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
        elif self.cycle is None or self.cycle.response_complete:
            self.transport.abort()  # it was refused, and still sends its body

    def _close(self, last: bytes) -> None:
        if not self.transport.is_closing():
            self.transport.write(last)
            self.transport.close()
