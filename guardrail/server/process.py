"""A server as a process: signals, draining, and HTTP connections with bounds that uvicorn has not.

Those are their number, slow headers and slow readers. Signals count from before the model loads.
"""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import os
import signal
from collections import Counter
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from guardrail.server.listening import address_of, bound_socket

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path
    from types import FrameType

    from fastapi import FastAPI

    from guardrail.server.reload import Reloader
    from guardrail.server.settings import Listening


_log = logging.getLogger(__name__)
_HEADER_BYTES = 32_768
_FORCED = 1
_HANGUP = getattr(signal, "SIGHUP", None)  # there is none on Windows
_SLOW = b"HTTP/1.1 408 Request Timeout\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
_CROWDED = (
    b"HTTP/1.1 503 Service Unavailable\r\nRetry-After: 1\r\n"
    b"Content-Length: 0\r\nConnection: close\r\n\r\n"
)


def serve(
    app: FastAPI,
    listening: Listening,
    reloader: Reloader | None = None,
    *,
    facts: Mapping[str, object] | None = None,
    start: Start | None = None,
) -> None:
    """Answer until a signal ends it; a second signal ends the process with exit code 1.

    `facts` are told in the log beside the address; `start` has the signals that came before.

    Raises:
        ConfigurationError: the address cannot be used.
    """
    server = Server(config_of(app, listening), app, reloader, listening.unix_socket)
    # from before the address is taken and told: uvicorn's own handlers come a little later
    ends = {signal.SIGTERM: server.handle_exit, signal.SIGINT: server.handle_exit}
    with handled(ends, server.ask_reload), bound_socket(listening) as listener:
        if start is not None and start.reload_asked:
            server.ask_reload()
        _log.info("serving", extra={"address": address_of(listener, listening), **(facts or {})})
        server.run(sockets=[listener])
    if server.force_exit:
        _log.warning("ended by a second signal; answers were cut")
        logging.shutdown()
        os._exit(_FORCED)  # the model's thread may be inside a long step, and nobody waits for it


class Server(uvicorn.Server):
    """uvicorn that goes on answering while it drains, and reloads on SIGHUP.

    SIGTERM and SIGINT: new requests are refused, those under way have `drain_s`; the second one
    ends the process. uvicorn itself would stop listening at once, so that a load balancer meets
    refused connections before it has heard that the server is ending.
    """

    def __init__(
        self,
        config: uvicorn.Config,
        app: FastAPI,
        reloader: Reloader | None,
        socket_file: Path | None = None,
    ) -> None:
        super().__init__(config)
        self._lifecycle, self._reloader = app.state.service.lifecycle, reloader
        self._socket_file = socket_file  # not left behind, however the process ends
        self._reload_asked = False
        self._reloads: set[asyncio.Task[bool]] = set()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """The signal handler."""
        if self.should_exit:
            if self._socket_file is not None:
                self._socket_file.unlink(missing_ok=True)
            os._exit(_FORCED)  # what is left waits for the model, and it is asked for no answer
        elif self._lifecycle.draining:
            self._lifecycle.end_now()
            self.should_exit = self.force_exit = True
        else:
            self._lifecycle.drain()

    def ask_reload(self, *_signal: object) -> None:
        """The handler of SIGHUP; the reload itself runs in the event loop."""
        self._reload_asked = True

    async def on_tick(self, counter: int) -> bool:
        """What uvicorn calls ten times a second; whether the server stops listening now."""
        if self._reload_asked and self._reloader is not None:
            self._reload_asked = False
            task = asyncio.create_task(self._reloader.reload())
            self._reloads.add(task)
            task.add_done_callback(self._reloads.discard)
        if self._lifecycle.drained():
            self.should_exit = True
        return await super().on_tick(counter)

    async def shutdown(self, sockets: Any = None) -> None:
        """Stop listening and end what is left."""
        self._lifecycle.drain()
        for task in self._reloads:
            task.cancel()
        await super().shutdown(sockets)


def config_of(app: FastAPI, listening: Listening) -> uvicorn.Config:
    """Uvicorn's settings: no header tells of it, none of a proxy is believed, one process."""
    protocol = bounded_protocol(
        most=listening.max_connections,
        header_s=listening.header_timeout_s,
        stall_s=listening.stall_timeout_s,
    )
    return uvicorn.Config(
        app,
        http=protocol,
        ws="none",
        lifespan="on",
        log_config=None,
        access_log=False,
        proxy_headers=False,
        server_header=False,
        h11_max_incomplete_event_size=_HEADER_BYTES,
        timeout_graceful_shutdown=2,  # the draining is over when uvicorn's own begins
        ssl_certfile=listening.tls_cert,
        ssl_keyfile=listening.tls_key,
    )


@dataclass(slots=True)
class Start:
    """What signals have said so far."""

    reload_asked: bool = False

    def ask_reload(self, *_signal: object) -> None:
        """The handler of SIGHUP, which would end the process otherwise."""
        self.reload_asked = True


@contextmanager
def starting() -> Iterator[Start]:
    """For the block, SIGTERM ends the process at once, and SIGHUP is kept for the server.

    The first process of a container ignores a SIGTERM for which it has no handler. The exit code is
    0 as when an idle server ends: nobody was answered yet, so nothing is cut.
    """
    start = Start()
    with handled({signal.SIGTERM: _end}, start.ask_reload):
        yield start


@contextmanager
def handled(
    handlers: Mapping[signal.Signals, Callable[..., object]], hangup: Callable[..., object]
) -> Iterator[None]:
    """Other handlers for the block, and one for SIGHUP where there is such a signal."""
    wanted = dict(handlers) if _HANGUP is None else {**handlers, _HANGUP: hangup}
    before = {number: signal.signal(number, handler) for number, handler in wanted.items()}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _end(*_signal: object) -> None:
    os._exit(0)  # the libraries that load may take an exception for a failure of their own


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
