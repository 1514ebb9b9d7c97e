"""What stands before Ray's own HTTP proxy: size limits, and errors in the form of the OpenAI API.

Ray's proxy takes a body whole whatever its size, obeys some headers of whoever asks, and tells its
own errors as plain text.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from starlette.middleware import Middleware

from guardrail.asgi.problems import Problem
from guardrail.policy.policy import MAX_BODY_BYTES
from guardrail.server.errors import refuse
from guardrail.server.keys import request_id_of

if TYPE_CHECKING:
    from collections.abc import Iterable

    from starlette.types import ASGIApp, Message, Receive, Scope, Send

CALLBACK = "guardrail.cluster.edge:middlewares"
"""For the variable RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH of all of Ray's processes."""
LIMIT = "GUARDRAIL_MAX_BODY_BYTES"
"""The variable with the largest body in bytes, of all of Ray's processes."""

_RAYS_OWN = (b"x-request-timeout-seconds", b"x-request-disconnect-disabled", b"x-session-id")
_PREFIXES = (b"x-serve-", b"serve_", b"serve-")
_SOON = {"Retry-After": "1"}
_TOLD = {
    404: Problem(503, "nothing is deployed here now; try again", "unavailable", _SOON),
    408: Problem(504, "the answer took too long", "timeout"),
    429: Problem(429, "too many requests are waiting", "queue_full", _SOON),
    500: Problem(500, "the replica that had this request failed; try again", "internal_error"),
    503: Problem(503, "no replica can answer now; try again", "unavailable", _SOON),
}
_TOO_LARGE = "a body has at most {} bytes here; send less"


def middlewares() -> list[Middleware]:
    """What Ray puts before its proxy; see `CALLBACK`."""
    return [Middleware(Edge, max_bytes=int(os.environ.get(LIMIT, MAX_BODY_BYTES)))]


class Edge:
    """Refuses what is too large, and rewrites answers that come from Ray and not from the app.

    The app's own answers are known by their media type or by `X-Guardrail-*` and the like: Ray's
    errors are plain text of a status that the app only tells in JSON.
    """

    def __init__(self, app: ASGIApp, *, max_bytes: int = MAX_BODY_BYTES) -> None:
        self._app, self._max_bytes = app, max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        problem = Problem(413, _TOO_LARGE.format(self._max_bytes), "too_large")
        if _announced(scope) > self._max_bytes:
            await refuse(problem, scope, receive, send)
            return
        answer = _Answer(scope, receive, send)
        bounded = _Bounded(receive, self._max_bytes)
        await self._app(_cleaned(scope), bounded, answer)
        if not answer.begun:
            await refuse(problem if bounded.exceeded else _TOLD[500], scope, receive, send)


class _Bounded:
    """A body that ends, as if its sender had left, where it is too long."""

    def __init__(self, receive: Receive, max_bytes: int) -> None:
        self._receive, self._left = receive, max_bytes
        self.exceeded = False

    async def __call__(self) -> Message:
        message = await self._receive()
        self._left -= len(message.get("body", b""))
        if self._left >= 0:
            return message
        self.exceeded = True
        return {"type": "http.disconnect"}


class _Answer:
    """The way back; holds what Ray says itself until it can be said in our words."""

    def __init__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self._scope, self._receive, self._send = scope, receive, send
        self.begun = self._told = False

    async def __call__(self, message: Message) -> None:
        if self._told:
            return
        if message["type"] == "http.response.start":
            self.begun = True
            problem = _TOLD.get(message["status"])
            if problem is not None and _is_plain(message):
                self._told = True
                await refuse(problem, self._scope, self._receive, self._send)
                return
            message = {**message, "headers": _one_id(message.get("headers", ()))}
        await self._send(message)


def _one_id(headers: Iterable[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
    """Ray puts a request's name on the answer, where the app has put it already."""
    named = [pair for pair in headers if pair[0].lower() == b"x-request-id"]
    return [pair for pair in headers if pair not in named] + named[-1:]


def _is_plain(message: Message) -> bool:
    kinds = [value for name, value in message.get("headers", ()) if name.lower() == b"content-type"]
    return not kinds or kinds[0].startswith(b"text/plain")


def _announced(scope: Scope) -> int:
    sizes = [value for name, value in scope["headers"] if name.lower() == b"content-length"]
    return int(sizes[0]) if sizes and sizes[0].isdigit() else 0


def _cleaned(scope: Scope) -> Scope:
    """Without headers that tell Ray what to do, and with a name that is safe to repeat."""
    name = request_id_of(scope["headers"]).encode()
    kept = [
        (key, value)
        for key, value in scope["headers"]
        if key not in (*_RAYS_OWN, b"x-request-id") and not key.startswith(_PREFIXES)
    ]
    return {**scope, "headers": [*kept, (b"x-request-id", name)]}
