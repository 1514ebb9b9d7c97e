"""Routes whose JSON bodies are read one way only, whoever reads them.

What is judged must be what is answered or passed on: so a body is refused where two readers may
differ on it (`guardrail.asgi.content` lists how), before its schema is looked at. So is one of so
many values that looking at them all would hold up everybody else.
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


_MOST_VALUES, _MOST_KEYS = 200_000, 10_000
_MOST_COMMAS = 5 * _MOST_VALUES  # texts have some, too; so many values are quickly read

_TOO_MANY = (
    f"the body has more than {_MOST_VALUES} values, or an object of more than {_MOST_KEYS} keys; "
    "send less at once"
)


class StrictRequest(Request):
    """A request whose `json()` is strict, and the same object each time."""

    async def json(self) -> Any:
        """The body's value.

        Raises:
            HTTPException: 400, it is no JSON, or not the same to all readers; 413, it has more than
                200,000 values, or an object of more than 10,000 keys.
        """
        if not hasattr(self, "_strict"):
            self._strict = await asyncio.to_thread(bounded_json, await self.body())
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
    media_type(request.headers, (JSON,))
    if not await request.body():
        raise HTTPException(400, "the body is empty; it must be a JSON object")


def bounded_json(data: bytes) -> Any:
    """What a body says, where all readers agree on it and it is quickly looked at.

    Raises:
        HTTPException: 400 or 413, see `StrictRequest.json`.
    """
    if data.count(b",") > _MOST_COMMAS:
        raise HTTPException(413, _TOO_MANY)
    value = parsed_json(data)
    left, waiting = _MOST_VALUES, [value]
    while waiting:
        outer = waiting.pop()
        if isinstance(outer, dict | list):
            left -= len(outer)
            if left < 0 or (isinstance(outer, dict) and len(outer) > _MOST_KEYS):
                raise HTTPException(413, _TOO_MANY)
            waiting += outer.values() if isinstance(outer, dict) else outer
    return value
