"""What goes to the app and back to the client, where it is not just as it came."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING

from starlette.responses import Response

if TYPE_CHECKING:
    from collections.abc import Iterable

    from starlette.types import Message, Receive, Scope, Send

_GONE = 499  # the usual status for a client that hung up; only logs ever see it


async def answer_to_nobody(scope: Scope, receive: Receive, send: Send) -> None:
    """End a request whose client is gone; a middleware outside may rely on an answer."""
    with suppress(OSError):  # how servers say that nobody is there
        await Response(status_code=_GONE)(scope, receive, send)


def marked(send: Send, header: str | None, value: str) -> Send:
    """A send channel that adds a header to the answer; None adds nothing."""
    if header is None:
        return send
    mark = (header.lower().encode("latin-1"), value.encode("latin-1"))

    async def marking(message: Message) -> None:
        if message["type"] == "http.response.start":
            message = {**message, "headers": [*message.get("headers", ()), mark]}
        await send(message)

    return marking


def sized(headers: Iterable[tuple[bytes, bytes]], size: int) -> list[tuple[bytes, bytes]]:
    """A request's headers for a body of another size."""
    kept = [h for h in headers if h[0].lower() not in (b"content-length", b"transfer-encoding")]
    return [*kept, (b"content-length", str(size).encode())]
