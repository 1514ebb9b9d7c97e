"""A request's body: read once and within a bound, then given to the app again as it came."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, TypeVar

from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

if TYPE_CHECKING:
    from collections.abc import Awaitable

    from starlette.datastructures import Headers
    from starlette.types import Message, Receive

T = TypeVar("T")


class Body:
    """One request's body."""

    def __init__(self, receive: Receive, max_bytes: int) -> None:
        self._receive, self._max_bytes = receive, max_bytes
        self._data = bytearray()
        self._begun = self._complete = False
        self._later: list[Message] = []

    async def read(self, headers: Headers) -> bytes:
        """The whole body.

        Raises:
            HTTPException: 413, it is larger than allowed, or says that it is.
            ClientDisconnect: nobody waits for an answer any more.
        """
        declared = headers.get("content-length", "")
        size = int(declared[:20]) if declared.isdecimal() else 0
        while size <= self._max_bytes:
            if self._complete:
                return bytes(self._data)
            message = await self._receive()
            if message["type"] == "http.disconnect":
                raise ClientDisconnect
            self._data += message.get("body", b"")
            self._begun, self._complete = True, not message.get("more_body", False)
            size = len(self._data)
        raise HTTPException(413, f"the body is larger than the {self._max_bytes} bytes allowed")

    async def unless_gone(self, work: Awaitable[T]) -> T:
        """What `work` gives; it is cancelled when the client goes before that.

        Raises:
            ClientDisconnect: nobody waits for an answer any more.
        """
        job, gone = asyncio.ensure_future(work), asyncio.ensure_future(self._gone())
        try:
            await asyncio.wait({job, gone}, return_when=asyncio.FIRST_COMPLETED)
            if job.done():
                return job.result()
            gone.result()  # a receive channel that fails is an error of its own
            raise ClientDisconnect
        finally:
            for task in (job, gone):
                task.cancel()
            await asyncio.wait({job, gone})
            if not gone.cancelled():
                gone.exception()  # both ended at once, and the work's end is what counts

    def replay(self, data: bytes | None = None) -> Receive:
        """A receive channel with the same body (or `data`), and then what else comes."""
        body = bytes(self._data) if data is None else data
        first: Message = {"type": "http.request", "body": body, "more_body": not self._complete}
        waiting = [*reversed(self._later), first] if self._begun else []
        following = self._receive  # without `self`, which holds the bytes while the app answers

        async def receive() -> Message:
            return waiting.pop() if waiting else await following()

        return receive

    async def _gone(self) -> None:
        message = await self._receive()
        if message["type"] != "http.disconnect":
            self._later.append(message)  # nothing is expected here; it is the app's to see
            await asyncio.Event().wait()
