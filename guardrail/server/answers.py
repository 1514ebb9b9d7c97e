"""Answers on the wire: in the OpenAI form, whole or in chunks, and the verdict beside them.

How far a request is from a threshold is what a search for one that passes needs to know, and so is
which of its words weigh most. So a caller who is not told scores hears what was done, and nothing
that a score could be told from. Nobody is told the words themselves: answers are logged.
"""

from __future__ import annotations

import codecs
import json
import time
import uuid
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, Protocol

from fastapi.responses import JSONResponse, StreamingResponse
from starlette.requests import ClientDisconnect

from guardrail.asgi.wire import DONE, FIELD, verdict_headers

if TYPE_CHECKING:
    from collections.abc import AsyncIterable, Awaitable, Callable, Mapping, Sequence

    from starlette.types import Receive, Scope, Send

    from guardrail.asgi.problems import Problem
    from guardrail.server.keys import Caller
    from guardrail.types import Result, TokenLogprob, ToolCall, Verdict


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


class Ending(NamedTuple):
    """How an answer's end is told: a chat's finish reason, and why a response is incomplete."""

    chat: str
    incomplete: str | None = None


# A refusal is a whole answer: clients of responses take an incomplete one for a failure.
_ENDINGS = {
    "stop": Ending("stop"),
    "length": Ending("length", "max_output_tokens"),
    "flag": Ending("content_filter"),
}


def ending_of(result: Result) -> Ending:
    """How an answer ended; the one place that knows what a `finish_reason` is called elsewhere.

    Calls of an answer that was cut may not be all of them, so it does not end in calls.
    """
    ending = _ENDINGS[result.finish_reason]
    return Ending("tool_calls") if ending.chat == "stop" and result.tool_calls else ending


def strictest(verdicts: Sequence[Verdict]) -> Verdict:
    """The verdict that several answers to one prompt are told with."""
    return max(verdicts, key=lambda verdict: verdict.action.rank)


class AnswerForm(Protocol):
    """Answers to one request in one form, whole or as the data of a stream's events.

    A datum with a `type` is an event of that name; `done` ends a stream.
    """

    done: ClassVar[bytes]

    def whole(self, results: Sequence[Result]) -> dict[str, Any]:
        """All answers at once."""

    def opening(self) -> list[dict[str, Any]]:
        """A stream's beginning: the verdict, before the first word."""

    def words(self, number: int, text: str) -> list[dict[str, Any]]:
        """A piece of an answer's text; `number` counts answers from 0."""

    def ending(
        self, number: int, result: Result, results: Sequence[Result] | None
    ) -> list[dict[str, Any]]:
        """What follows an answer's words; `results` are all, once the last one has ended."""

    def failed(self, problem: Problem) -> dict[str, Any]:
        """A stream's last event where something went wrong."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatCompletion:
    """The answers to one chat, whole or in chunks: what all their parts have in common.

    Without `parallel_calls` only the first call of several is told; with `usage` a stream ends with
    token counts. See `AnswerForm`.
    """

    done: ClassVar[bytes] = DONE

    model: str
    verdict: Verdict
    caller: Caller
    answers: int = 1
    parallel_calls: bool = True
    usage: bool = False
    id: str = field(default_factory=lambda: f"chatcmpl-{uuid.uuid4().hex}")
    created: int = field(default_factory=lambda: int(time.time()))

    def whole(self, results: Sequence[Result]) -> dict[str, Any]:
        """A complete answer."""
        return {
            **self._head("chat.completion"),
            "choices": [self._choice(number, result) for number, result in enumerate(results)],
            "usage": _usage(results),
            FIELD: told(self.verdict, self.caller),
        }

    def opening(self) -> list[dict[str, Any]]:
        """A stream's first chunks, one an answer: the verdict, before the first word."""
        begun: dict[str, Any] = {"role": "assistant", "content": ""}
        first, *others = [self._chunk(number, begun) for number in range(self.answers)]
        return [first | {FIELD: told(self.verdict, self.caller)}, *others]

    def words(self, number: int, text: str) -> list[dict[str, Any]]:
        """A piece of an answer's text."""
        return [self._chunk(number, {"content": text})]

    def ending(
        self, number: int, result: Result, results: Sequence[Result] | None
    ) -> list[dict[str, Any]]:
        """What follows an answer's words: calls, why it ended, in the end token counts if wanted.

        The verdict stands in the very last chunk of all.
        """
        calls = [{"index": i, **call} for i, call in enumerate(self._calls(result))]
        chunks = [self._chunk(number, {"tool_calls": [call]}) for call in calls]
        if result.refused_by_guard:
            chunks.append(self._chunk(number, {"refusal": result.refusal}))
        chunks.append(self._chunk(number, {}, ending_of(result).chat))
        chunks[-1]["choices"][0]["logprobs"] = _logprobs(result)
        if results is None:
            return chunks
        if self.usage:
            chunks.append(self._chunk(number, {}) | {"choices": [], "usage": _usage(results)})
        chunks[-1][FIELD] = told(strictest([each.verdict for each in results]), self.caller)
        return chunks

    def failed(self, problem: Problem) -> dict[str, Any]:
        """The error; no `[DONE]` follows it."""
        return problem.to_dict()

    def _choice(self, number: int, result: Result) -> dict[str, Any]:
        calls = self._calls(result)
        message: dict[str, Any] = {
            "role": "assistant",
            "content": None if calls and not result.text else result.text,
            "refusal": result.refusal,
        }
        if calls:
            message["tool_calls"] = calls
        return {
            "index": number,
            "message": message,
            "finish_reason": ending_of(result).chat,
            "logprobs": _logprobs(result),
        }

    def _chunk(
        self, number: int, delta: dict[str, Any], finish: str | None = None
    ) -> dict[str, Any]:
        choice = {"index": number, "delta": delta, "finish_reason": finish, "logprobs": None}
        chunk = {**self._head("chat.completion.chunk"), "choices": [choice]}
        return chunk | {"usage": None} if self.usage else chunk

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


def token_logprobs(result: Result) -> list[dict[str, Any]]:
    """How likely the tokens of an answer's text were; those of calls and of its end are none."""
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    told: list[dict[str, Any]] = []
    left = len(result.text)
    for token in result.logprobs or ():
        if left <= 0:
            break
        left -= len(decoder.decode(token.raw))
        if not told and token.raw[:1] == b" " != result.text[:1].encode():
            left += 1  # decoders drop the first word's blank
        top = [_token(other) for other in token.top]
        told.append(_token(token) | {"top_logprobs": top})
    return told


def _logprobs(result: Result) -> dict[str, Any] | None:
    if result.logprobs is None:
        return None
    return {"content": token_logprobs(result), "refusal": None}


def _token(token: TokenLogprob) -> dict[str, Any]:
    return {"token": token.text, "bytes": list(token.raw), "logprob": token.logprob}


def call_id(call: ToolCall) -> str:
    """The name by which a call's result will come back."""
    return call.id or f"call_{uuid.uuid4().hex[:24]}"


def call_arguments(call: ToolCall) -> str:
    """A call's arguments as the text that both forms have."""
    arguments = call.arguments
    return arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)


def _call(call: ToolCall) -> dict[str, Any]:
    function = {"name": call.name, "arguments": call_arguments(call)}
    return {"id": call_id(call), "type": "function", "function": function}


def _usage(results: Sequence[Result]) -> dict[str, int]:
    """Token counts: one prompt, whose answers are summed."""
    asked, said = results[0].prompt_tokens, sum(result.completion_tokens for result in results)
    return {"prompt_tokens": asked, "completion_tokens": said, "total_tokens": asked + said}
