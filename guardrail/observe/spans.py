"""A span for every HTTP request of an app, in two places around the app's own middlewares."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from guardrail.errors import GuardrailError
from guardrail.observe.http import FAILED, NO_ANSWER
from guardrail.observe.routes import route_of

if TYPE_CHECKING:
    from collections.abc import MutableMapping

    from guardrail.observe.http import ASGIApp, Receive, Scope, Send
    from guardrail.observe.tracing import Tracing

_SPAN = "guardrail.span"  # a key of the connection's scope
_METHODS = frozenset({"CONNECT", "DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT"})
_WANTED = frozenset({b"traceparent", b"tracestate"})


class SpanMiddleware:
    """Begins and ends the spans; put it outside of what may refuse a request."""

    def __init__(self, app: ASGIApp, *, tracing: Tracing) -> None:
        self._app, self._tracing = app, tracing

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass one connection on."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        method = scope["method"] if scope["method"] in _METHODS else "_OTHER"
        headers = {
            name.decode("latin-1"): value.decode("latin-1")
            for name, value in scope["headers"]
            if name in _WANTED
        }
        span = scope[_SPAN] = self._tracing.begin(method, scope.get("scheme", "http"), headers)
        status, failed = NO_ANSWER, None

        async def watched(message: MutableMapping[str, Any]) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, watched)
        except (Exception, GuardrailError) as error:
            status, failed = status if status != NO_ANSWER else FAILED, type(error).__name__
            raise
        finally:
            route = route_of(scope)
            self._tracing.end(span, f"{method} {route}", route, status, failed=failed)


class NamedSpanMiddleware:
    """Tells a span which request it is of; put it inside of what gives requests their ids."""

    def __init__(self, app: ASGIApp, *, tracing: Tracing) -> None:
        self._app, self._tracing = app, tracing

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass one connection on."""
        caller = scope.get("state", {}).get("caller") if scope["type"] == "http" else None
        if caller is None or _SPAN not in scope:
            await self._app(scope, receive, send)
            return
        self._tracing.known_as(scope[_SPAN], caller.request_id, caller.client)
        try:
            await self._app(scope, receive, send)
        finally:
            self._tracing.over(caller.request_id)
