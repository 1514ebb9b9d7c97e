"""Lets requests through to the app, or holds or refuses them while the artefact is exchanged."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING

from starlette.responses import JSONResponse

from guardrail.asgi.answers import Problem

if TYPE_CHECKING:
    from collections.abc import Callable

    from starlette.types import ASGIApp, Message, Receive, Scope, Send

_READS = ("GET", "HEAD", "OPTIONS")  # such requests get no verdict


class Closed(Exception):
    """No answer may begin now; the text is for the client."""


@dataclass(eq=False, slots=True)
class _Flight:
    """A request under way: `read` when its body is here, `begun` with its answer's first bytes."""

    epoch: int
    free: bool  # of verdicts, so it may begin at any time
    read: bool
    begun: bool = False
    cut: bool = False
    task: asyncio.Future[None] | None = None

    @property
    def pending(self) -> bool:
        """Whether an answer with a verdict may still begin."""
        return not (self.begun or self.free)


class ReplicaGate:
    """An ASGI app that passes requests on to another one.

    `may_begin` is asked, with the epoch in force here, when a request comes and again when its
    answer begins: without a lease for that epoch neither happens, nor does an answer begin in a
    later epoch than its request. While paused, requests wait for `wait_s` seconds at most; at a
    pause, one whose body is not here within `body_s` is refused.
    """

    def __init__(
        self, may_begin: Callable[[int], bool], *, wait_s: float, body_s: float = 2.0
    ) -> None:
        self._may_begin, self._wait_s, self._body_s = may_begin, wait_s, body_s
        self._app: ASGIApp | None = None
        self._epoch = -1
        self._open = asyncio.Event()
        self._flights: set[_Flight] = set()
        self._moved = asyncio.Event()
        self._stopped = False

    @property
    def trouble(self) -> str | None:
        """Why no request is let through now."""
        if self._stopped:
            return "the server is shutting down"
        if not self._may_begin(self._epoch):
            return "this replica is not in agreement with the others"
        return None if self._open.is_set() else "the artefact is being exchanged"

    def open(self, app: ASGIApp, epoch: int) -> None:
        """Let requests through to this app, those that wait here, too."""
        self._app, self._epoch = app, epoch
        self._open.set()

    async def pause(self) -> None:
        """Hold new requests; returns when every answer that will come before `open` has begun."""
        self._open.clear()
        try:
            async with asyncio.timeout(self._body_s):
                await self._none(lambda flight: flight.pending and not flight.read)
        except TimeoutError:
            for flight in list(self._flights):
                if flight.pending and not flight.read:
                    _cut(flight)
        await self._none(lambda flight: flight.pending)

    def stop(self) -> None:
        """Refuse requests from now on; those under way go on."""
        self._stopped = True
        self._open.set()  # who waits is told at once

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass one request on."""
        if scope["type"] == "lifespan":
            await _lifespan(receive, send)
            return
        if scope["type"] != "http":  # the app knows no other kind
            await send({"type": "websocket.close", "code": 1003})
            return
        if scope["path"] == "/readyz" and self.trouble is not None:
            await JSONResponse({"status": self.trouble}, 503)(scope, receive, send)
            return
        try:
            app = self._app if scope["method"] in _READS else await self._admitted()
            if app is None:
                raise Closed("this replica is starting")
        except Closed as closed:
            await refuse(scope, receive, send, str(closed))
            return
        await self._fly(app, scope, receive, send)

    async def _admitted(self) -> ASGIApp | None:
        """The app in force, once there is one; nothing is awaited between check and entry."""
        try:
            async with asyncio.timeout(self._wait_s):
                while not self._open.is_set():
                    await self._open.wait()
        except TimeoutError:
            raise Closed("the artefact is being exchanged") from None
        if self._stopped or not self._may_begin(self._epoch):
            raise Closed(self.trouble or "this replica is not ready")
        return self._app

    async def _fly(self, app: ASGIApp, scope: Scope, receive: Receive, send: Send) -> None:
        flight = _Flight(self._epoch, free=scope["method"] in _READS, read=not _has_body(scope))
        self._flights.add(flight)
        noting, checking = self._noting(flight, receive), self._checking(flight, scope, send)
        flight.task = asyncio.ensure_future(app(scope, noting, checking))
        try:
            await asyncio.shield(flight.task)
        except asyncio.CancelledError:
            if not (flight.cut and flight.task.done()):  # the client has gone
                flight.task.cancel()
                await asyncio.gather(flight.task, return_exceptions=True)
                raise
            if not flight.begun:
                await refuse(scope, receive, send, "the artefact is being exchanged")
        finally:
            self._flights.discard(flight)
            self._moved.set()

    def _noting(self, flight: _Flight, receive: Receive) -> Receive:
        async def noting() -> Message:
            message = await receive()
            if message["type"] != "http.request" or not message.get("more_body", False):
                flight.read = True
                self._moved.set()
            return message

        return noting

    def _checking(self, flight: _Flight, scope: Scope, send: Send) -> Send:
        async def checking(message: Message) -> None:
            if flight.cut:
                return
            if message["type"] == "http.response.start":
                if flight.pending and not (
                    self._may_begin(self._epoch) and flight.epoch == self._epoch
                ):
                    # It came under an artefact that is perhaps in force no more.
                    flight.begun = True
                    await refuse(scope, _nothing, send, self.trouble or "the artefact has changed")
                    _cut(flight)
                    return
                message = _without_id(message, scope)
                flight.begun = True
                self._moved.set()
            await send(message)

        return checking

    async def _none(self, wanted: Callable[[_Flight], bool]) -> None:
        """Wait until there is no such request."""
        while any(wanted(flight) for flight in self._flights):
            self._moved.clear()
            await self._moved.wait()


async def refuse(scope: Scope, receive: Receive, send: Send, words: str) -> None:
    """Answer that a later try may succeed, in the form of the OpenAI API."""
    problem = Problem(503, f"{words}; try again", "unavailable", {"Retry-After": "1"})
    answer = JSONResponse(problem.to_dict(), 503, headers=dict(problem.headers))
    await answer(scope, receive, send)


def _cut(flight: _Flight) -> None:
    flight.cut = True
    if flight.task is not None:
        flight.task.cancel()


def _has_body(scope: Scope) -> bool:
    headers = {name.lower(): value for name, value in scope["headers"]}
    return headers.get(b"content-length", b"0") != b"0" or b"transfer-encoding" in headers


def _without_id(message: Message, scope: Scope) -> Message:
    """Ray's proxy names every request in a header, and puts that name on the answer itself."""
    if not any(name.lower() == b"x-request-id" for name, _ in scope["headers"]):
        return message
    kept = [pair for pair in message.get("headers", ()) if pair[0].lower() != b"x-request-id"]
    return {**message, "headers": kept}


async def _nothing() -> Message:
    return {"type": "http.disconnect"}


async def _lifespan(receive: Receive, send: Send) -> None:
    """Apps are started and ended by who exchanges them."""
    while True:
        message = await receive()
        await send({"type": f"{message['type']}.complete"})
        if message["type"] == "lifespan.shutdown":
            return
