"""Counts and times every HTTP request of an app, whoever answers it."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, MutableMapping
from typing import TYPE_CHECKING, Any

from guardrail.errors import GuardrailError
from guardrail.observe.routes import route_of

if TYPE_CHECKING:
    from guardrail.observe.metrics import Metrics

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
ASGIApp = Callable[[Scope, Receive, Send], Awaitable[None]]

NO_ANSWER = 499  # the client was gone before an answer began
FAILED = 500


class MetricsMiddleware:
    """Put it outside of all others: what those refuse is counted, too."""

    def __init__(self, app: ASGIApp, *, metrics: Metrics) -> None:
        self._app, self._metrics = app, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass one connection on."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        watch = _Watch(send)
        try:
            await self._app(scope, receive, watch)
        except BaseException as error:
            # A cancelled task is a client or a server that went away, not a fault.
            failed = isinstance(error, Exception | GuardrailError)
            watch.status = watch.status or (FAILED if failed else NO_ANSWER)
            raise
        finally:
            status, seconds = watch.status or NO_ANSWER, time.perf_counter() - watch.start
            self._metrics.answered(route_of(scope), status, seconds, watch.first_s)


class _Watch:
    """Sees an answer pass by."""

    def __init__(self, send: Send) -> None:
        self._send, self.start = send, time.perf_counter()
        self.status: int | None = None
        self.first_s: float | None = None
        self._streams = False

    async def __call__(self, message: MutableMapping[str, Any]) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            kinds = [v for k, v in message.get("headers", ()) if k.lower() == b"content-type"]
            self._streams = any(kind.startswith(b"text/event-stream") for kind in kinds)
        elif self._streams and self.first_s is None and message.get("body"):
            self.first_s = time.perf_counter() - self.start
        await self._send(message)
