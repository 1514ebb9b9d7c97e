"""Streamed answers as server-sent events.

Events are one line of JSON each, written here: FastAPI's own encoding serves routes that send
their headers before the first event is there, and these headers hold the verdict.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from fastapi.responses import StreamingResponse
from starlette.requests import ClientDisconnect

from guardrail.errors import GuardrailViolation
from guardrail.server import problems
from guardrail.server.verdicts import FIELD, headers_of, told

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping

    from starlette.types import Receive, Scope, Send

    from guardrail.online.streams import AsyncGuardStream
    from guardrail.server.completions import Form
    from guardrail.server.keys import Caller

_HEADERS = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}


class EventStream(StreamingResponse):
    """A stream's events under its verdict's headers; however it ends, the request ends with it."""

    media_type = "text/event-stream"

    def __init__(
        self, stream: AsyncGuardStream, events: AsyncIterator[bytes], caller: Caller
    ) -> None:
        super().__init__(events, headers=_HEADERS | headers_of(stream.verdict, caller))
        self._stream = stream

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the events, for as long as somebody listens."""
        try:
            await super().__call__(scope, receive, send)
        except ClientDisconnect:
            return  # nobody is there to be told
        finally:
            await self._stream.aclose()


async def events(
    stream: AsyncGuardStream, first: str | None, form: Form, *, usage: bool, refusal: str
) -> AsyncIterator[bytes]:
    """Events of one answer, the verdict before the first word.

    A failure is an event with an `error`, and no end follows it: a client must not take a part of
    an answer for the whole.

    Args:
        stream: the answer, whose verdict is known.
        first: its first chunk of text; None when there is none.
        form: what all chunks have in common.
        usage: whether token counts are wanted.
        refusal: the policy's words.
    """
    counts: dict[str, Any] = {"usage": None} if usage else {}
    verdict: dict[str, Any] = {FIELD: told(stream.verdict, form.caller)}
    async with stream:
        yield _event(form.chunk({"role": "assistant", "content": ""}, **counts, **verdict))
        try:
            if first is not None:
                yield _event(form.chunk({"content": first}, **counts))
            async for text in stream:
                yield _event(form.chunk({"content": text}, **counts))
        # a border: the status is sent, so the stream says it
        except (Exception, GuardrailViolation) as error:
            yield problems.stream_end(problems.told_as(error, refusal))
            return
        if stream.result is not None:
            for chunk in form.last_chunks(stream.result, usage=usage):
                yield _event(chunk)
            yield b"data: [DONE]\n\n"


def _event(value: Mapping[str, Any]) -> bytes:
    return f"data: {json.dumps(value)}\n\n".encode()
