"""What becomes of an input whose model the guard does not run: pass, caution or stop.

Code that asks a guard on its way is written once, as steps: a generator that yields
`(chat, settle)` and is sent the `Outcome` that `settle` makes of the chat's verdict. `judged` runs
steps with a blocking guard, `ajudged` in an event loop; both tell of a verdict, as a custom event
and in a graph's custom stream, before anything else happens. A violation is no `Exception`, the
only error that LangChain knows in places; `as_exception` and `as_itself` see it through those.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar, cast

from langchain_core.callbacks import adispatch_custom_event, dispatch_custom_event
from langchain_core.messages import SystemMessage
from langchain_core.prompt_values import ChatPromptValue, PromptValue, StringPromptValue
from langchain_core.runnables import Runnable
from langgraph.config import get_stream_writer
from typing_extensions import override

from guardrail.errors import GuardrailViolation
from guardrail.front.chats import with_caution
from guardrail.inputs.threads import read_apart
from guardrail_langchain.messages import to_messages

if TYPE_CHECKING:
    from collections.abc import Iterator

    from langchain_core.messages import BaseMessage
    from langchain_core.runnables import RunnableConfig

    from guardrail import Verdict
    from guardrail.front.consequences import Reaction

    Put = Callable[[Any, str], Any]

EVENT = "guardrail_verdict"


@dataclass(frozen=True, slots=True)
class Outcome:
    """A verdict after all; `value` is what goes on, and `stops` that nothing does."""

    verdict: Verdict
    value: Any
    stops: bool


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


def outcome(reaction: Reaction, value: Any, put: Put, verdict: Verdict) -> Outcome:
    """Settle a verdict; `put(value, words)` is `value` with the policy's words of caution in it.

    It is None where there is no place for them; then what would be cautioned counts as flagged.
    """
    after = reaction.settle(verdict, partial(put, value))
    sent = value if after.cautioned is None else after.cautioned
    return Outcome(after.verdict, sent, after.done == "flag")


def no_place(value: Any, words: str) -> None:
    """For values that take no word of caution."""


def cautioned_input(value: Any, words: str) -> Any | None:
    """A chain's input with words of caution before it; None where there is no place for them."""
    if isinstance(value, StringPromptValue):
        return StringPromptValue(text=cast("str", with_caution(value.text, words)))
    if isinstance(value, PromptValue):
        return ChatPromptValue(messages=cautioned_messages(value.to_messages(), words))
    if isinstance(value, str) or not value:
        return with_caution(value, words)
    return cautioned_messages(to_messages(value), words)


def cautioned_messages(messages: list[BaseMessage], words: str) -> list[Any]:
    """Messages with the words in their system message, which is made if there is none."""
    first = messages[0]
    if isinstance(first, SystemMessage):
        return [cautioned_system(first, words), *messages[1:]]
    return [SystemMessage(words), *messages]


def cautioned_system(message: SystemMessage | None, words: str) -> SystemMessage:
    """A system message that begins with words of caution; the given one stays as it is."""
    if message is None:
        return SystemMessage(words)
    content = message.content
    if isinstance(content, str):
        return message.model_copy(update={"content": f"{words}\n\n{content}"})
    part = {"type": "text", "text": f"{words}\n\n"}
    return message.model_copy(update={"content": [part, *content]})


def tell(verdict: Verdict, config: RunnableConfig | None = None) -> None:
    """Send the verdict; outside a run nobody listens, and LangChain says so with an error."""
    _stream(verdict)
    try:
        dispatch_custom_event(EVENT, verdict.to_dict(words=False), config=config)
    except RuntimeError:
        return


async def atell(verdict: Verdict, config: RunnableConfig | None = None) -> None:
    """`tell` for event loops."""
    _stream(verdict)
    try:
        await adispatch_custom_event(EVENT, verdict.to_dict(words=False), config=config)
    except RuntimeError:
        return


def _stream(verdict: Verdict) -> None:
    try:
        write = get_stream_writer()
    except (RuntimeError, KeyError):  # no run, or one of no graph
        return
    write({EVENT: verdict.to_dict(words=False)})


@contextmanager
def as_exception() -> Iterator[None]:
    """Let a violation be an `Exception` from here to the next `as_itself`, which must be ours."""
    try:
        yield
    except GuardrailViolation as violation:
        raise _Carried(violation) from violation


@contextmanager
def as_itself() -> Iterator[None]:
    """Let no violation leave as an `Exception`, which a fallback would take for a failure."""
    try:
        yield
    except _Carried as carried:
        raise carried.violation from None


class _Carried(GuardrailViolation, Exception):
    """A violation where LangChain tells callbacks of an error only if it is an `Exception`."""

    def __init__(self, violation: GuardrailViolation) -> None:
        super().__init__(violation.verdict)
        self.violation = violation


class InPlace(Runnable[Any, Any]):
    """A step whose violations are results among others, as `return_exceptions` asks for."""

    def __init__(self, step: Runnable[Any, Any]) -> None:
        self._step = step

    @override
    def invoke(self, input: Any, config: RunnableConfig | None = None, **kwargs: Any) -> Any:
        try:
            return self._step.invoke(input, config, **kwargs)
        except GuardrailViolation as violation:
            return violation

    @override
    async def ainvoke(self, input: Any, config: RunnableConfig | None = None, **kwargs: Any) -> Any:
        try:
            return await self._step.ainvoke(input, config, **kwargs)
        except GuardrailViolation as violation:
            return violation
