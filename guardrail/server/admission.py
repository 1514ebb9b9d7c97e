"""How many requests may be under way, in sum and by one client."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from guardrail.asgi.answers import Problem
from guardrail.server.problems import refuse

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Receive, Scope, Send

    from guardrail.server.service import Service

FREE = frozenset({"GET", "HEAD", "OPTIONS"})  # they cost next to nothing, and bring no body


class Admission:
    """Answers 429 to requests beyond the bounds; put it inside of what reads their bodies.

    A place is for work: somebody who sends half a body shall hold none.
    """

    def __init__(self, app: ASGIApp, *, service: Service) -> None:
        self._app, self._service = app, service
        self._most = service.settings.max_concurrent
        self._by_client: Counter[str | None] = Counter()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve or refuse one request."""
        if scope["type"] != "http" or scope["method"] in FREE:
            await self._app(scope, receive, send)
            return
        client = scope["state"]["caller"].client
        problem = self._problem(client)
        if problem is not None:
            await refuse(problem, scope, receive, send)
            return
        self._by_client[client] += 1
        try:
            await self._app(scope, receive, send)
        finally:
            self._by_client[client] -= 1
            self._by_client += Counter()  # forgets who has none

    def _problem(self, client: str | None) -> Problem | None:
        if self._by_client.total() >= self._most:
            return busy(f"the server has its {self._most} requests under way")
        most_each = self._service.settings.per_client(self._service.keys)
        if self._by_client[client] >= most_each:
            return busy(f"you have your {most_each} requests under way")
        return None


def busy(message: str) -> Problem:
    """There is no room now, and will be later."""
    wait = {"Retry-After": "1"}
    return Problem(429, f"{message}; try again later", "too_many_requests", wait)
