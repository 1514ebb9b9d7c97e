"""Each request has an id, which is in its answer and in one line of the log."""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING

from starlette.datastructures import MutableHeaders

from guardrail.observe.routes import route_of
from guardrail.server.gate import HEALTH, METRICS
from guardrail.server.keys import Caller, request_id_of

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

_log = logging.getLogger("guardrail.access")
_OK = 200
_PROBES = HEALTH | METRICS  # asked every few seconds, and nobody wants to read it
_CLIENT_LEFT = 499  # what many servers write when nobody was there to read an answer


class Named:
    """The outermost middleware: `request.state.caller`, `X-Request-ID`, and the access log.

    A line names the route's template, never the path or the query: both may hold what was asked.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        caller = Caller(request_id_of(scope["headers"]))
        scope.setdefault("state", {})["caller"] = caller
        begun, told = time.monotonic(), _Told(send, caller)
        try:
            await self._app(scope, receive, told)
        finally:
            route = route_of(scope)
            _log.log(
                logging.DEBUG if route in _PROBES and told.status == _OK else logging.INFO,
                "request",
                extra={
                    "method": scope["method"],
                    "route": route,
                    "status": told.status or _CLIENT_LEFT,
                    "seconds": round(time.monotonic() - begun, 4),
                    "request_id": caller.request_id,
                    "client": caller.client,
                    "action": told.header("x-guardrail-action"),
                    "score": caller.score,
                },
            )


class _Told:
    """A send channel that puts the id on the answer and remembers how it began."""

    def __init__(self, send: Send, caller: Caller) -> None:
        self._send, self._caller = send, caller
        self._headers: MutableHeaders | None = None
        self.status: int | None = None

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            self._headers = MutableHeaders(scope=message)
            self._headers["X-Request-ID"] = self._caller.request_id
        await self._send(message)

    def header(self, name: str) -> str | None:
        return None if self._headers is None else self._headers.get(name)
