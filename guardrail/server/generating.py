"""Answers of the guarded model itself: one request of any form, asked of the guard and told.

A form (`chat`, `responses`) reads a body into an `Asked`; what it is told as is an `AnswerForm`.
Several answers to one request are as many generations of one prompt, told as one.
"""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from guardrail.asgi.wire import event
from guardrail.errors import GuardrailViolation
from guardrail.policy.acting import stops
from guardrail.server.answers import AsciiJSONResponse, EventStream, headers_of, strictest
from guardrail.server.errors import told_as, unknown_model
from guardrail.server.service import require_verdict

if TYPE_CHECKING:
    from collections.abc import (
        AsyncGenerator,
        AsyncIterator,
        Awaitable,
        Callable,
        Iterable,
        Mapping,
        Sequence,
    )

    from fastapi import Request, Response

    from guardrail.guard import Guard
    from guardrail.online.streams import AsyncGuardStream
    from guardrail.server.answers import AnswerForm
    from guardrail.server.keys import Caller
    from guardrail.server.schemas import AskedBody
    from guardrail.types import Result, Verdict

_HALF = 2**63  # seeds are 64 bits with a sign


class FormOf(Protocol):
    """Makes the form of answers whose verdict is known; `refused`: their words are the policy's."""

    def __call__(self, verdict: Verdict, caller: Caller, *, refused: bool) -> AnswerForm:
        """The form."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What the guard is asked: messages, keywords of `Guard.agenerate`, and how often."""

    value: Any
    options: Mapping[str, Any]
    form: FormOf
    answers: int = 1

    def each(self, options: Mapping[str, Any]) -> list[dict[str, Any]]:
        """The keywords of each answer: its own name and, where one is given, its own seed."""
        whole = {**self.options, **options}
        if self.answers == 1:
            return [whole]
        seed = whole.get("seed")
        return [
            whole
            | {"request_id": f"{whole['request_id']}-{number}"}
            | ({} if seed is None else {"seed": (seed + number + _HALF) % (2 * _HALF) - _HALF})
            for number in range(self.answers)
        ]


async def answered(
    body: AskedBody, request: Request, read: Callable[[Any, Guard, int], Asked]
) -> Response:
    """The answer to a request; `read` makes of its body what a guard is asked.

    Raises:
        GuardrailError: it cannot be read or answered, or is not let through.
    """
    service, caller = request.app.state.service, request.state.caller
    guard, settings = service.guard, service.settings
    if body.model != settings.model_name:
        raise unknown_model(body.model, settings.model_name)
    asked = read(body, guard, settings.default_tokens)
    options = asked.each(service.ask_options(caller))
    service.count_asked(caller, asked.value)
    if body.stream:
        streams = [guard.astream(asked.value, **each) for each in options]
        return await _streamed(streams, asked, guard, caller)
    results = await _together(guard.agenerate(asked.value, **each) for each in options)
    verdict = strictest([require_verdict(result.verdict, guard.policy) for result in results])
    form = asked.form(verdict, caller, refused=results[0].refused_by_guard)
    return AsciiJSONResponse(form.whole(results), headers=headers_of(verdict, caller))


async def _streamed(
    streams: Sequence[AsyncGuardStream], asked: Asked, guard: Guard, caller: Caller
) -> Response:
    """Answers whose head is sent once their verdict and their first words are there."""

    async def close() -> None:
        for stream in streams:
            await stream.aclose()

    try:
        firsts = await _together(anext(stream, None) for stream in streams)
        verdict = strictest([require_verdict(each.verdict, guard.policy) for each in streams])
    except BaseException:  # a cancelled task among them
        await close()
        raise
    refused = stops(verdict.action, guard.policy.on_flag, outage=False)
    form = asked.form(verdict, caller, refused=refused)
    told = events(streams, firsts, form, refusal=guard.policy.refusal_message)
    return EventStream(told, close, headers_of(verdict, caller))


async def events(
    streams: Sequence[AsyncGuardStream],
    firsts: Sequence[str | None],
    form: AnswerForm,
    *,
    refusal: str,
) -> AsyncIterator[bytes]:
    """Events of one request's answers, the verdict before the first word.

    A failure is an event, and no end follows it: a client must not take a part of an answer for the
    whole. What else is under way ends with it.

    Args:
        streams: the answers, whose verdicts are known.
        firsts: the first chunk of text of each; None where there is none.
        form: what they are told as.
        refusal: the policy's words.
    """
    results: dict[int, Result] = {}

    def told(number: int, text: str | None) -> list[dict[str, Any]]:
        if text is not None:
            return form.words(number, text)
        result = streams[number].result
        if result is None:  # it was closed: nobody listens
            return []
        results[number] = result
        last = len(results) == len(streams)
        return form.ending(number, result, [results[i] for i in sorted(results)] if last else None)

    try:
        for datum in form.opening():
            yield _written(datum)
        try:
            async with aclosing(_interleaved(streams, firsts)) as pieces:
                async for number, text in pieces:
                    for datum in told(number, text):
                        yield _written(datum)
        # a border: the status is sent, so the stream says it
        except (Exception, GuardrailViolation) as error:
            yield _written(form.failed(told_as(error, refusal)))
            return
        if len(results) == len(streams) and form.done:
            yield form.done
    finally:
        for stream in streams:
            await stream.aclose()


async def _interleaved(
    streams: Sequence[AsyncGuardStream], firsts: Sequence[str | None]
) -> AsyncGenerator[tuple[int, str | None], None]:
    """Chunks of all streams as they come, each with its stream's number; None is a stream's end."""
    waiting: dict[asyncio.Future[str | None], int] = {}

    def go_on(number: int, text: str | None) -> None:
        if text is not None:
            waiting[asyncio.ensure_future(anext(streams[number], None))] = number

    try:
        for number, first in enumerate(firsts):
            go_on(number, first)
            yield number, first
        while waiting:
            done, _ = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            for task in sorted(done, key=waiting.__getitem__):
                number = waiting.pop(task)
                text = task.result()
                go_on(number, text)
                yield number, text
    finally:
        for task in waiting:
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)  # nobody hears of those any more


async def _together(works: Iterable[Awaitable[Any]]) -> list[Any]:
    """What each gives, in order; where one fails, or nobody waits any more, all end."""
    tasks = [asyncio.ensure_future(work) for work in works]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()


def _written(datum: dict[str, Any]) -> bytes:
    return event(datum, datum.get("type"))
