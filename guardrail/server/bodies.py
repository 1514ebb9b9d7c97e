"""The bodies of requests: within their bounds, and read one way only, whoever reads them.

What is judged must be what is answered or passed on: so a JSON body is refused where two readers
may differ on it (`guardrail.asgi.content` lists how), before its schema is looked at. So is one of
so many values that looking at them all would hold up everybody else. Bodies go to the log only
where an operator wants them there.
"""

from __future__ import annotations

import asyncio
import logging
import re
from collections import Counter
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from fastapi import Request
from fastapi.routing import APIRoute
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException

from guardrail.asgi.content import JSON, Body, media_type, parsed_json
from guardrail.asgi.problems import Problem
from guardrail.server.errors import RefusedError, busy

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterator

    from fastapi import Response
    from starlette.types import Message, Receive, Scope

    from guardrail.server.keys import Caller
    from guardrail.server.service import Service


_MOST_VALUES, _MOST_KEYS = 200_000, 10_000
_MOST_COMMAS = 5 * _MOST_VALUES  # texts have some, too; so many values are quickly read

_TOO_MANY = (
    f"the body has more than {_MOST_VALUES} values, or an object of more than {_MOST_KEYS} keys; "
    "send less at once"
)

_prompts = logging.getLogger("guardrail.prompts")
_MOST_CHARS = 20_000
_LONG_DATA = re.compile(r"[A-Za-z0-9+/=]{256,}")

_SHORT = 1024  # bytes, of requests that nobody counts and some of which need no key

# Neither this nor 413 closes the connection: closing it while a body arrives would make many
# clients miss the answer. What still arrives is thrown away, for as long as headers may take.
_SLOW_BODY = Problem(408, "the body did not arrive in time", "body_timeout")


class Bodies:
    """Reads the bodies of requests, each within its bound and all within one.

    All bodies together have as many bytes as the requests that are let in at once may bring, those
    of one client its share of that: bodies arrive before a request has its place.
    """

    def __init__(self, service: Service) -> None:
        self._service = service
        self._bytes: Counter[str | None] = Counter()

    @contextmanager
    def counted(self, receive: Receive, client: str | None) -> Iterator[Receive]:
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

    async def read(self, scope: Scope, receive: Receive, caller: Caller, *, short: bool) -> Receive:
        """A receive channel with the whole body at once; `short` bodies are those of free requests.

        Raises:
            RefusedError: 408, 413 or 429, it does not come in time, or is too much.
            ClientDisconnect: nobody waits for an answer any more.
        """
        headers, settings = Headers(scope=scope), self._service.settings
        body = Body(receive, _SHORT if short else settings.max_body_bytes)
        if "content-length" in headers or "transfer-encoding" in headers:
            try:
                async with asyncio.timeout(settings.body_timeout_s):
                    data = await body.read(headers)
            except TimeoutError:
                raise RefusedError(_SLOW_BODY) from None
            except HTTPException as error:
                if error.status_code == 429:
                    raise RefusedError(busy(error.detail)) from None
                too_large = Problem(error.status_code, error.detail, "too_large")
                raise RefusedError(too_large) from None
            if settings.log_prompts:
                _log_prompt(caller, data)
        return body.replay()


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


async def _check(request: Request) -> None:
    media_type(request.headers, (JSON,))
    if not await request.body():
        raise HTTPException(400, "the body is empty; it must be a JSON object")


def _log_prompt(caller: Caller, body: bytes) -> None:
    """Write a request's body to the log, pictures shortened."""
    text = _LONG_DATA.sub(
        lambda found: f"<{len(found[0])} characters>", body.decode(errors="replace")
    )
    _prompts.info(
        "prompt",
        extra={
            "request_id": caller.request_id,
            "client": caller.client,
            "body": text[:_MOST_CHARS],
        },
    )
