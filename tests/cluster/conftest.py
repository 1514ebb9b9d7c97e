"""Requests to ASGI apps without a server."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable


class Call:
    """One request to an ASGI app; `send` gives pieces of its body."""

    def __init__(self, app: Any, *, method: str = "POST", path: str = "/", **headers: str) -> None:
        raw = [(k.replace("_", "-").encode(), v.encode()) for k, v in headers.items()]
        self.scope = {"type": "http", "method": method, "path": path, "headers": raw}
        self._body: asyncio.Queue[Any] = asyncio.Queue()
        self.messages: list[Any] = []
        self.task = asyncio.ensure_future(app(self.scope, self._body.get, self._note))

    async def _note(self, message: Any) -> None:
        self.messages.append(message)

    def send(self, body: bytes = b"", *, more: bool = False) -> Call:
        self._body.put_nowait({"type": "http.request", "body": body, "more_body": more})
        return self

    @property
    def status(self) -> int | None:
        return self.messages[0]["status"] if self.messages else None

    @property
    def headers(self) -> dict[bytes, bytes]:
        return {key.lower(): value for key, value in self.messages[0]["headers"]}

    @property
    def body(self) -> bytes:
        return b"".join(message.get("body", b"") for message in self.messages)

    async def end(self) -> Call:
        async with asyncio.timeout(5):
            await self.task
        return self


@pytest.fixture
async def call() -> AsyncIterator[Callable[..., Call]]:
    made: list[Call] = []

    def make(app: Any, **options: Any) -> Call:
        made.append(Call(app, **options))
        return made[-1]

    yield make
    for one in made:
        one.task.cancel()
        with contextlib.suppress(BaseException):
            await one.task
