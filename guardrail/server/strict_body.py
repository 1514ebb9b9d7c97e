"""Routes whose JSON bodies are read one way only, whoever reads them.

What is judged must be what is answered or passed on: so a body is refused where two readers may
differ on it (`guardrail.asgi.content` lists how), before its schema is looked at.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from fastapi import Request
from fastapi.routing import APIRoute
from starlette.exceptions import HTTPException

from guardrail.asgi.content import JSON, media_type, parsed_json

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from fastapi import Response


class StrictRequest(Request):
    """A request whose `json()` is strict, and the same object each time."""

    async def json(self) -> Any:
        """The body's value.

        Raises:
            HTTPException: 400, it is no JSON, or not the same to all readers.
        """
        if not hasattr(self, "_strict"):
            self._strict = await asyncio.to_thread(parsed_json, await self.body())
        return self._strict


class StrictRoute(APIRoute):
    """A route of JSON bodies, described by their schema like any other."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """FastAPI's own handler, with a strict request."""
        handler = super().get_route_handler()

        async def strict(request: Request) -> Response:
            if self.body_field is not None:
                request = StrictRequest(request.scope, request.receive)
                await _check(request)
            return await handler(request)

        return strict


async def _check(request: Request) -> None:
    if media_type(request.headers) != JSON:
        raise HTTPException(415, f"this route reads {JSON} only")
    if not await request.body():
        raise HTTPException(400, "the body is empty; it must be a JSON object")
