"""Steps that ask a guard on the way, run with a blocking guard or in an event loop.

A step yields `(chat, settle)`; it is sent what `settle` makes of the chat's verdict. `settle` gives
an `Outcome`, whose verdict listeners are told of before anything else happens.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Generator
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar, cast

from guardrail.inputs.limits import read_apart
from guardrail_langchain.rules import Outcome

if TYPE_CHECKING:
    from guardrail import Verdict

T = TypeVar("T")
Question = tuple[Any, "Callable[[Verdict], Outcome]"]
Judging = Generator[Question, Outcome, T]


def judged(
    steps: Judging[T],
    check: Callable[[Any], Verdict],
    tell: Callable[[Verdict], None] | None = None,
) -> T:
    """Run the steps with a blocking guard."""
    try:
        chat, settle = next(steps)
        while True:
            after = settle(check(chat))
            if tell is not None:
                tell(after.verdict)
            chat, settle = steps.send(after)
    except StopIteration as end:
        done: T = end.value
        return done


async def ajudged(
    steps: Judging[T],
    acheck: Callable[[Any], Awaitable[Verdict]],
    tell: Callable[[Verdict], Awaitable[None]] | None = None,
) -> T:
    """Run the steps without blocking the event loop: what they decode, they decode in a thread."""
    question, done = await read_apart(partial(_next, steps, None))
    while question is not None:
        chat, settle = question
        after = settle(await acheck(chat))
        if tell is not None:
            await tell(after.verdict)
        question, done = await read_apart(partial(_next, steps, after))
    return done


def _next(steps: Judging[T], after: Outcome | None) -> tuple[Question | None, T]:
    """The next question, or None and what the steps come to: no future takes a StopIteration."""
    try:
        return steps.send(cast("Outcome", after)), cast("T", None)
    except StopIteration as end:
        return None, end.value
