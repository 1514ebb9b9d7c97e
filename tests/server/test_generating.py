"""Streams of answers: the verdict before the first word, failures told, nothing left open."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from guardrail.errors import RequestTimeoutError
from guardrail.server.answers import ChatCompletion, EventStream, headers_of
from guardrail.server.generating import events
from guardrail.server.keys import Caller
from guardrail.testing import FakeGuard
from guardrail.types import Action, Result

CALLER = Caller("r", sees_scores=True)
VERDICT = FakeGuard().check("hello")


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

    async def aclose(self) -> None:
        self.closed = True


def told(stream: Any, first: str | None = "a") -> Any:
    form = ChatCompletion(model="m", verdict=VERDICT, caller=CALLER)
    return events([stream], [first], form, refusal="no")


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

    response = EventStream(told(stream), stream.aclose, headers_of(stream.verdict, CALLER))
    await response({"type": "http", "asgi": {"spec_version": spec}}, receive, send)
    assert stream.closed
    assert not any(b"[DONE]" in message.get("body", b"") for message in sent)


async def test_a_stream_that_was_never_read_is_closed_too():
    stream = Words()

    async def receive() -> Any:
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        raise OSError("gone")

    response = EventStream(told(stream), stream.aclose, headers_of(stream.verdict, CALLER))
    await response({"type": "http", "asgi": {"spec_version": "2.4"}}, receive, send)
    assert stream.closed


async def test_a_violation_is_an_event_although_it_is_no_exception(bare_violation):
    lines = [line async for line in told(Words(error=bare_violation))]
    assert json.loads(lines[-1].removeprefix(b"data: "))["error"]["code"] == "content_filter"


# ---- several answers


class Taking:
    """Gives each of its words when it is told to."""

    def __init__(self, *words: str) -> None:
        self.verdict, self.result, self.closed = VERDICT, None, False
        self._words, self.turns = list(words), asyncio.Semaphore(0)

    def __aiter__(self) -> Taking:
        return self

    async def __anext__(self) -> str:
        await self.turns.acquire()
        if self._words:
            return self._words.pop(0)
        self.result = Result(
            text="", verdict=VERDICT, finish_reason="stop", prompt_tokens=5, completion_tokens=2
        )
        raise StopAsyncIteration

    async def aclose(self) -> None:
        self.closed = True


async def test_several_streams_come_as_they_grow_each_with_its_number():
    one, two = Taking("b"), Taking("d")
    form = ChatCompletion(model="m", verdict=VERDICT, caller=CALLER, answers=2, usage=True)
    lines = events([one, two], ["a", "c"], form, refusal="no")
    found = []
    async for line in lines:
        if line.startswith(b"data: [DONE]"):
            break
        chunk = json.loads(line.removeprefix(b"data: "))
        found.append(
            [(c["index"], c["delta"].get("content"), c["finish_reason"]) for c in chunk["choices"]]
        )
        if len(found) == 4:  # what is there from the beginning
            two.turns.release()
        if len(found) == 5:
            two.turns.release()
        if len(found) == 6:
            one.turns.release()
            one.turns.release()
    assert found == [
        [(0, "", None)],
        [(1, "", None)],
        [(0, "a", None)],
        [(1, "c", None)],
        [(1, "d", None)],
        [(1, None, "stop")],
        [(0, "b", None)],
        [(0, None, "stop")],
        [],
    ]
    assert chunk["usage"] == {"prompt_tokens": 5, "completion_tokens": 4, "total_tokens": 9}
    assert "guardrail" in chunk


async def test_one_that_fails_ends_the_others_and_there_is_no_end():
    good, bad = Taking("b"), Words(error=RuntimeError("a secret"))
    form = ChatCompletion(model="m", verdict=VERDICT, caller=CALLER, answers=2)
    lines = [line async for line in events([good, bad], ["a", "c"], form, refusal="no")]
    assert "error" in json.loads(lines[-1].removeprefix(b"data: "))
    assert b"secret" not in b"".join(lines)
    assert good.closed
    assert bad.closed


CHAT = {"model": "guarded", "messages": [{"role": "user", "content": "hello"}], "max_tokens": 4}
URL = "/v1/chat/completions"


async def test_several_answers_are_choices_of_one_completion(guard_of, client_of):
    seen: list[dict[str, Any]] = []
    guard = guard_of(audit=lambda _verdict, about: seen.append(about))
    async with client_of(guard) as client:
        named = {"X-Request-ID": "mine"}
        asked = CHAT | {"n": 3, "temperature": 1.0, "seed": 4}
        told = (await client.post(URL, json=asked, headers=named)).json()
        alone = [
            (await client.post(URL, json=asked | {"n": 1, "seed": 4 + i})).json() for i in range(3)
        ]
        greedy = (await client.post(URL, json=CHAT | {"n": 3})).json()
    said = [choice["message"]["content"] for choice in told["choices"]]
    assert [choice["index"] for choice in told["choices"]] == [0, 1, 2]
    assert said == [each["choices"][0]["message"]["content"] for each in alone]
    assert len(set(said)) > 1
    assert len({choice["message"]["content"] for choice in greedy["choices"]}) == 1
    once = alone[0]["usage"]
    assert told["usage"]["prompt_tokens"] == once["prompt_tokens"]
    assert told["usage"]["completion_tokens"] == 3 * once["completion_tokens"]
    assert {f"mine-{i}" for i in range(3)} <= {about["request_id"] for about in seen}


async def test_several_answers_to_a_flagged_chat_are_all_refusals(guard_of, client_of):
    async with client_of(guard_of(Action.FLAG, refusal_message="No.")) as client:
        told = (await client.post(URL, json=CHAT | {"n": 2})).json()
        stream = await client.post(URL, json=CHAT | {"n": 2, "stream": True})
    assert [choice["message"]["refusal"] for choice in told["choices"]] == ["No.", "No."]
    assert {choice["finish_reason"] for choice in told["choices"]} == {"content_filter"}
    assert told["guardrail"]["action"] == stream.headers["x-guardrail-action"] == "flag"
    assert stream.text.count('"refusal": "No."') == 2
    assert stream.text.count('"content": "No."') == 2


@pytest.mark.parametrize("stream", [True, False])
async def test_several_answers_are_one_error_where_the_policy_raises(guard_of, client_of, stream):
    async with client_of(guard_of(Action.FLAG, on_flag="raise")) as client:
        answer = await client.post(URL, json=CHAT | {"n": 2, "stream": stream})
    assert answer.status_code == 400
    assert answer.json()["error"]["guardrail"]["action"] == "flag"
