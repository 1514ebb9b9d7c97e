"""The bounds of one request: its body, its time, its client's patience, the server's end."""

from __future__ import annotations

import asyncio
from collections import Counter
from contextlib import contextmanager, nullcontext, suppress
from typing import TYPE_CHECKING

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from guardrail.asgi.answers import Problem
from guardrail.asgi.body import Body
from guardrail.server.admission import FREE, busy
from guardrail.server.gate import DRAINING, HEALTH
from guardrail.server.problems import LATE, AnswerCutError, refuse, stream_end
from guardrail.server.prompts import log_prompt

if TYPE_CHECKING:
    from collections.abc import Iterator

    from starlette.types import ASGIApp, Message, Receive, Scope, Send

    from guardrail.server.service import Service

_MOST_OF_FREE = 1024  # bytes, of requests that nobody counts and some of which need no key
_LAST_WORD_S = 1.0  # for a client that does not read to take the end of its stream

# Neither these nor 413 close the connection: closing it while a body arrives would make many
# clients miss the answer. What still arrives is thrown away, for as long as headers may take.
_SLOW_BODY = Problem(408, "the body did not arrive in time", "body_timeout")


class Bounded:
    """Reads the body, then serves the request until its answer, its deadline, or its client's end.

    Whatever ends a request cancels what it does, so its place in the model is free. An answer that
    has begun ends with an error event if it is an event stream, and is cut otherwise.

    All bodies together have as many bytes as the requests that are let in at once may bring, those
    of one client its share of that: bodies arrive before a request has its place.
    """

    def __init__(self, app: ASGIApp, *, service: Service) -> None:
        self._app, self._service = app, service
        self._bytes: Counter[str | None] = Counter()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        with self._counted(receive, scope["state"]["caller"].client) as counted:
            await self._bounded(scope, counted, send)

    @contextmanager
    def _counted(self, receive: Receive, client: str | None) -> Iterator[Receive]:
        """A receive channel whose bytes count until the request has ended.

        Raises:
            HTTPException: 429, from the channel, where there is no room for more.
        """
        settings, mine = self._service.settings, 0
        most_each = settings.per_client(self._service.keys) * settings.max_body_bytes
        most = settings.max_concurrent * settings.max_body_bytes

        async def counted() -> Message:
            nonlocal mine
            message = await receive()
            size = len(message.get("body", b""))
            mine += size
            self._bytes[client] += size
            if self._bytes[client] > most_each or self._bytes.total() > most:
                raise HTTPException(429, "the bodies of other requests leave no room for this one")
            return message

        try:
            yield counted
        finally:
            self._bytes[client] -= mine
            self._bytes += Counter()  # forgets who has none

    async def _bounded(self, scope: Scope, receive: Receive, send: Send) -> None:
        deadline = asyncio.get_running_loop().time() + self._service.settings.timeout_s
        probe = scope["path"] in HEALTH  # they go on to the end, and must not put it off
        with nullcontext() if probe else self._service.lifecycle.request():
            most = self._service.settings.max_body_bytes
            body = Body(receive, _MOST_OF_FREE if scope["method"] in FREE else most)
            problem = await self._read(body, scope)
            if problem is not None:
                await refuse(problem, scope, receive, send)
                return
            told = _Told(send)
            problem = await self._serve(body.replay(), scope, told, deadline)
            if problem is not None:
                await _end(problem, scope, receive, told)

    async def _read(self, body: Body, scope: Scope) -> Problem | None:
        headers = Headers(scope=scope)
        if "content-length" not in headers and "transfer-encoding" not in headers:
            return None
        try:
            async with asyncio.timeout(self._service.settings.body_timeout_s):
                data = await body.read(headers)
        except TimeoutError:
            return _SLOW_BODY
        except HTTPException as error:
            if error.status_code == 429:
                return busy(error.detail)
            return Problem(error.status_code, error.detail, "too_large")
        if self._service.settings.log_prompts:
            log_prompt(scope["state"]["caller"], data)
        return None

    async def _serve(
        self, receive: Receive, scope: Scope, told: _Told, deadline: float
    ) -> Problem | None:
        """Run the app; what ended it, if that was not its answer."""
        inner = _Inner(receive, told)
        loop = asyncio.get_running_loop()
        job = asyncio.ensure_future(self._app(scope, inner.receive, told))
        gone = asyncio.ensure_future(inner.watch())
        over = asyncio.ensure_future(self._service.lifecycle.expired.wait())
        tasks = {job, gone, over}
        try:
            await asyncio.wait(
                tasks,
                timeout=max(deadline - loop.time(), 0),
                return_when=asyncio.FIRST_COMPLETED,
            )
            if job.done():
                job.result()
                return None
            if gone.done():
                gone.result()
                raise ClientDisconnect
            return DRAINING if over.done() else LATE
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)
            for task in tasks:  # what a cancelled app says of it interests nobody any more
                if not task.cancelled():
                    task.exception()


class _Inner:
    """A receive channel of which the client's end can be watched from outside, too."""

    def __init__(self, receive: Receive, told: _Told) -> None:
        self._receive, self._told = receive, told
        self._messages: asyncio.Queue[Message] = asyncio.Queue()
        self._left = asyncio.Event()

    async def receive(self) -> Message:
        if self._left.is_set() and self._messages.empty():
            return {"type": "http.disconnect"}
        return await self._messages.get()

    async def watch(self) -> None:
        """Ends when the client has left before its answer was complete."""
        while not self._left.is_set():
            message = await self._receive()
            self._messages.put_nowait(message)
            if message["type"] == "http.disconnect":
                self._left.set()
        if self._told.complete:  # the usual end; what the app does after it is not cut short
            await asyncio.Event().wait()


class _Told:
    """A send channel that knows how far the answer has come."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self.begun = self.complete = self._stream = False
        self._between_events = True

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.begun = True
            kind = Headers(raw=message["headers"]).get("content-type", "")
            self._stream = kind.startswith("text/event-stream")
        elif body := message.get("body", b""):
            self._between_events = body.endswith(b"\n\n")
        await self._send(message)
        self.complete = message["type"] == "http.response.body" and not message.get("more_body")

    @property
    def takes_event(self) -> bool:
        """Whether an event may follow."""
        return self._stream and self._between_events and not self.complete


async def _end(problem: Problem, scope: Scope, receive: Receive, told: _Told) -> None:
    """Tell a client that its answer ends here, as far as that can still be told."""
    if not told.begun:
        await refuse(problem, scope, receive, told)
    elif told.takes_event:
        with suppress(TimeoutError):
            async with asyncio.timeout(_LAST_WORD_S):
                last = stream_end(problem)
                await told({"type": "http.response.body", "body": last, "more_body": False})
    if not told.complete:
        raise AnswerCutError(problem.code or "unknown")
