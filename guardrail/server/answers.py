"""Answers on the wire: in the OpenAI form, whole or in chunks, and the verdict beside them.

How far a request is from a threshold is what a search for one that passes needs to know, and so is
which of its words weigh most. So a caller who is not told scores hears what was done, and nothing
that a score could be told from. Nobody is told the words themselves: answers are logged.
"""

from __future__ import annotations

import json
import time
import uuid
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from fastapi.responses import JSONResponse, StreamingResponse
from starlette.requests import ClientDisconnect

from guardrail.asgi.wire import FIELD, verdict_headers

if TYPE_CHECKING:
    from collections.abc import AsyncIterable, Awaitable, Callable, Mapping

    from starlette.types import Receive, Scope, Send

    from guardrail.server.keys import Caller
    from guardrail.types import Result, ToolCall, Verdict


def told(verdict: Verdict | None, caller: Caller) -> dict[str, object] | None:
    """What this caller may know of a verdict, in plain values; nothing else of one goes out."""
    return None if verdict is None else verdict.told(scores=caller.sees_scores)


def headers_of(verdict: Verdict | None, caller: Caller) -> dict[str, str]:
    """The headers of a judged answer; a score of None has none. The log gets it in any case."""
    if verdict is None:
        return {}
    caller.score = None if verdict.score is None else round(verdict.score, 4)
    return verdict_headers(verdict.told(scores=caller.sees_scores))


class AsciiJSONResponse(JSONResponse):
    """A JSON answer in which all other characters are escaped."""

    def render(self, content: Any) -> bytes:
        """The body."""
        return json.dumps(content, allow_nan=False, separators=(",", ":")).encode("ascii")


STREAM_HEADERS = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}


class EventStream(StreamingResponse):
    """Server-sent events; however they end, what they come from is closed by `close`.

    Events are one line of JSON each, written here: FastAPI's own encoding serves routes that send
    their headers before the first event is there, and these headers hold the verdict.
    """

    media_type = "text/event-stream"

    def __init__(
        self,
        events: AsyncIterable[bytes],
        close: Callable[[], Awaitable[None]],
        headers: Mapping[str, str],
    ) -> None:
        super().__init__(events, headers={**headers, **STREAM_HEADERS})
        self._close = close

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the events, for as long as somebody listens."""
        try:
            await super().__call__(scope, receive, send)
        except ClientDisconnect:
            return  # nobody is there to be told
        finally:
            await self._close()


_FINISH = {"stop": "stop", "length": "length", "flag": "content_filter"}


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatCompletion:
    """One answer to a chat, whole or in chunks: what all its parts have in common.

    Without `parallel_calls` only the first call of several is told; with `usage` a stream ends with
    token counts.
    """

    model: str
    verdict: Verdict
    caller: Caller
    parallel_calls: bool = True
    usage: bool = False
    id: str = field(default_factory=lambda: f"chatcmpl-{uuid.uuid4().hex}")
    created: int = field(default_factory=lambda: int(time.time()))

    def whole(self, result: Result) -> dict[str, Any]:
        """A complete answer."""
        calls = self._calls(result)
        message: dict[str, Any] = {
            "role": "assistant",
            "content": None if calls and not result.text else result.text,
            "refusal": result.text if result.refused_by_guard else None,
        }
        if calls:
            message["tool_calls"] = calls
        choice = {"index": 0, "message": message, "finish_reason": _finish(result)}
        return {
            **self._head("chat.completion"),
            "choices": [choice | {"logprobs": None}],
            "usage": _usage(result),
            FIELD: told(result.verdict, self.caller),
        }

    def opening(self) -> dict[str, Any]:
        """A stream's first chunk: the verdict, before the first word."""
        first = self.chunk({"role": "assistant", "content": ""})
        return first | {FIELD: told(self.verdict, self.caller)}

    def chunk(self, delta: dict[str, Any], finish: str | None = None) -> dict[str, Any]:
        """A part of a streamed answer."""
        choice = {"index": 0, "delta": delta, "finish_reason": finish, "logprobs": None}
        chunk = {**self._head("chat.completion.chunk"), "choices": [choice]}
        return chunk | {"usage": None} if self.usage else chunk

    def closing(self, result: Result) -> list[dict[str, Any]]:
        """What follows a stream's words: calls, why it ended, and token counts if wanted.

        The verdict stands in the very last of them.
        """
        calls = [{"index": i, **call} for i, call in enumerate(self._calls(result))]
        chunks = [self.chunk({"tool_calls": [call]}) for call in calls]
        if result.refused_by_guard:
            chunks.append(self.chunk({"refusal": result.text}))
        chunks.append(self.chunk({}, _finish(result)))
        if self.usage:
            chunks.append(self.chunk({}) | {"choices": [], "usage": _usage(result)})
        chunks[-1][FIELD] = told(result.verdict, self.caller)
        return chunks

    def _head(self, kind: str) -> dict[str, Any]:
        return {
            "id": self.id,
            "object": kind,
            "created": self.created,
            "model": self.model,
            "system_fingerprint": self.verdict.artefact_id,
        }

    def _calls(self, result: Result) -> list[dict[str, Any]]:
        wanted = None if self.parallel_calls else 1
        return [_call(call) for call in result.tool_calls[:wanted]]


def _finish(result: Result) -> str:
    """Calls of an answer that was cut may not be all of them, so it does not end in calls."""
    finish = _FINISH[result.finish_reason]
    return "tool_calls" if finish == "stop" and result.tool_calls else finish


def _call(call: ToolCall) -> dict[str, Any]:
    arguments = call.arguments
    if not isinstance(arguments, str):
        arguments = json.dumps(arguments, ensure_ascii=False)
    return {
        "id": call.id or f"call_{uuid.uuid4().hex[:24]}",
        "type": "function",
        "function": {"name": call.name, "arguments": arguments},
    }


def _usage(result: Result) -> dict[str, int]:
    asked, said = result.prompt_tokens, result.completion_tokens
    return {"prompt_tokens": asked, "completion_tokens": said, "total_tokens": asked + said}
