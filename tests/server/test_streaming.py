"""A stream says how it ends: whole with an end, or with an error and none."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from guardrail.errors import RequestTimeoutError
from guardrail.server.completions import form_of
from guardrail.server.keys import Caller
from guardrail.server.streaming import EventStream, events
from guardrail.testing import FakeGuard
from guardrail.types import Result

VERDICT = FakeGuard().check("hello")
CALLER = Caller("r", sees_scores=True)


class Words:
    """An answer's stream that says some words, then ends or fails."""

    def __init__(self, *words: str, error: Exception | None = None) -> None:
        self.verdict, self.result, self.closed = VERDICT, None, False
        self._words, self._error = list(words), error

    def __aiter__(self) -> Words:
        return self

    async def __anext__(self) -> str:
        if self._words:
            return self._words.pop(0)
        if self._error is not None:
            raise self._error
        self.result = Result(
            text="", verdict=VERDICT, finish_reason="stop", prompt_tokens=1, completion_tokens=1
        )
        raise StopAsyncIteration

    async def __aenter__(self) -> Words:
        return self

    async def __aexit__(self, *_error: object) -> None:
        self.closed = True

    async def aclose(self) -> None:
        self.closed = True


def told(stream: Any, first: str | None = "a") -> Any:
    form = form_of(VERDICT, "m", CALLER, parallel_calls=None)
    return events(stream, first, form, usage=False, refusal="no")


async def test_the_verdict_is_told_before_the_first_word_and_at_the_end():
    lines = [line async for line in told(Words("b"))]
    chunks = [json.loads(line.removeprefix(b"data: ")) for line in lines[:-1]]
    assert lines[-1] == b"data: [DONE]\n\n"
    assert ["guardrail" in chunk for chunk in chunks] == [True, False, False, True]
    assert not chunks[0]["choices"][0]["delta"]["content"]


async def test_every_event_is_one_line():
    lines = [line async for line in told(Words("b\n\ndata: [DONE]\n\n\u2028\r\n"))]
    assert all(line.startswith(b"data: ") and line.count(b"\n") == 2 for line in lines)
    assert all(line.endswith(b"\n\n") and b"\r" not in line for line in lines)


@pytest.mark.parametrize(
    ("error", "code"),
    [(RequestTimeoutError("late"), "timeout"), (RuntimeError("a secret"), "unavailable")],
)
async def test_a_failure_is_an_event_and_no_end_follows(error, code):
    stream = Words("b", error=error)
    lines = [line async for line in told(stream)]
    last = json.loads(lines[-1].removeprefix(b"data: "))
    assert last["error"]["code"] == code
    assert b"[DONE]" not in b"".join(lines)
    assert b'"finish_reason": "' not in b"".join(lines)
    assert b"secret" not in b"".join(lines)
    assert stream.closed


@pytest.mark.parametrize("spec", ["2.3", "2.4"])
async def test_a_client_that_hangs_up_closes_the_stream(spec):
    stream, sent = Words(*"bcdefgh"), []

    async def receive() -> Any:
        while len(sent) < 3:
            await asyncio.sleep(0)
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        if len(sent) == 3 and spec == "2.4":
            raise OSError("gone")
        sent.append(message)
        await asyncio.sleep(0)

    response = EventStream(stream, told(stream), CALLER)
    await response({"type": "http", "asgi": {"spec_version": spec}}, receive, send)
    assert stream.closed
    assert not any(b"[DONE]" in message.get("body", b"") for message in sent)


async def test_a_stream_that_was_never_read_is_closed_too():
    stream = Words()

    async def receive() -> Any:
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        raise OSError("gone")

    response = EventStream(stream, told(stream), CALLER)
    await response({"type": "http", "asgi": {"spec_version": "2.4"}}, receive, send)
    assert stream.closed


async def test_a_violation_is_an_event_although_it_is_no_exception(bare_violation):
    lines = [line async for line in told(Words(error=bare_violation))]
    assert json.loads(lines[-1].removeprefix(b"data: "))["error"]["code"] == "content_filter"
