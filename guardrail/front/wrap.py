"""Guard any callable that asks a model: a remote model's client, a chain.

    @guarded(guard=guard)
    def ask(messages): ...

    ask = guarded(client.chat.completions.create, guard=guard, messages="messages")
    describe = guarded(describe, guard=guard, messages=("system", "prompt", "image"))

What the callable gives back is not read; for tools, whose results a model reads, there is
`guardrail.guard_tool`.

The local guard reads the messages first, and the call is made only if it may be. A model behind a
callable cannot be steered; `policy.unsteerable` says what happens to a request that would be: a
word of caution goes with it, it counts as flagged, or it passes.

Pictures are sent as they were judged: decoded once, and written again in a form that every
decoder reads alike (`policy.pictures`), also where a message named a file or an address. An
argument that is itself a path or an address stays one and is read again by whoever answers, so
what stands there must have one reading; so must the pictures in what a `messages` callable made.
Videos go on as they are, and in shadow mode nothing is changed.
"""

from __future__ import annotations

import functools
from collections.abc import AsyncGenerator, AsyncIterable, Awaitable, Callable, Iterable
from contextlib import aclosing
from contextvars import ContextVar
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar, overload

from guardrail.front.arguments import Selector, decorated, kind_of
from guardrail.front.consequences import Reaction, highest, resolved
from guardrail.inputs.threads import read_apart

if TYPE_CHECKING:
    from collections.abc import Generator, Sequence

    from guardrail.audit import Audit
    from guardrail.front.arguments import Call, Kind, Wanted
    from guardrail.front.consequences import Checker, OnFlag
    from guardrail.policy import Policy
    from guardrail.types import Verdict

F = TypeVar("F", bound=Callable[..., Any])
LAST: ContextVar[Verdict | None] = ContextVar("guardrail_last_verdict", default=None)
_END = object()  # of an asynchronous generator


@overload
def guarded(
    fn: F,
    *,
    guard: Checker,
    messages: Wanted | None = None,
    policy: Policy | None = None,
    on_flag: OnFlag | None = None,
    fallback: Callable[..., Any] | None = None,
    audit: Audit | None = None,
    asynchronous: bool | None = None,
) -> F: ...


@overload
def guarded(
    fn: None = None,
    *,
    guard: Checker,
    messages: Wanted | None = None,
    policy: Policy | None = None,
    on_flag: OnFlag | None = None,
    fallback: Callable[..., Any] | None = None,
    audit: Audit | None = None,
    asynchronous: bool | None = None,
) -> Callable[[F], F]: ...


def guarded(
    fn: F | None = None,
    *,
    guard: Checker,
    messages: Wanted | None = None,
    policy: Policy | None = None,
    on_flag: OnFlag | None = None,
    fallback: Callable[..., Any] | None = None,
    audit: Audit | None = None,
    asynchronous: bool | None = None,
) -> F | Callable[[F], F]:
    """Check a callable's messages before it is called; as decorator or wrapper.

    Only what `messages` chooses is checked; other arguments reach the callable unread.

    Works on functions, coroutine functions, generators and asynchronous generators, and keeps name
    and signature. A flagged call returns (or yields) the policy's refusal message, raises
    `GuardrailViolation`, or is made all the same (`annotate`; see `last_verdict`). When
    the detector fails and the policy fails closed, the call is never made: it is refused, or
    `DetectorError` is raised where a flag would raise.

    Args:
        fn: the callable; left out when used as a decorator with arguments.
        guard: the guard that checks.
        messages: what to check. A parameter's name, or a path into it by keys or attributes
            ("body.messages"). Several names (("system", "prompt", "image")), joined into one chat:
            texts, pictures, lists of them, and lists of messages as history; system, system_prompt,
            system_instruction or instructions goes first, image, images, image_url or image_urls
            hold pictures, None is skipped. Or a callable that makes the messages from the bound
            arguments. Default: the parameter named messages, prompt, input or query, else the first
            positional one. Then nothing else may reach the model: a parameter whose name says that
            it would (a picture, a system prompt, tools, context, documents) is an error at once,
            and a call with words, pictures or files under any name that is no known setting (model,
            temperature, ...) is one. Name the argument, or all of them, to say that the rest is
            fine. Words in a setting (stop, user, metadata, ...) are judged apart. What a closure or
            an object holds is never seen. A caution stands before the checked argument, or the
            system one, or else the first text; where there is none (a picture, a made value) a call
            that would be cautioned counts as flagged.
        policy: other rules than the guard's.
        on_flag: another `on_flag` than the policy's.
        fallback: answers flagged calls instead: `fallback(verdict, *args, **kwargs)`. May be
            asynchronous where `fn` is; for generators it returns the chunks.
        audit: gets each call's verdict with `{"event": "call", "done": ...}`, what was done in the
            end: flag (not made), caution (made with a caution) or pass. The guard's own audit has
            the verdict of the check alone.
        asynchronous: whether calling `fn` gives something to await (or to iterate with
            `async for`), where that is not seen. A wrapper made with `functools.wraps` counts as
            asynchronous when the function inside is a coroutine function.

    Raises:
        ConfigurationError: what to check is ambiguous or missing, or settings contradict; also at a
            call that brings what would go unchecked.
    """
    reaction = Reaction.of(guard, on_flag, fallback=fallback, policy=policy, audit=audit)

    def wrapped(target: Callable[..., Any]) -> Callable[..., Any]:
        plan = _Plan(reaction, Selector(target, messages), fallback)
        return _FORMS[kind_of(target, asynchronous)](target, plan)

    def decorate(target: F) -> F:
        return decorated(wrapped, "guarded", target)

    return decorate if fn is None else decorate(fn)


def last_verdict() -> Verdict | None:
    """The verdict of this thread's or task's latest guarded call.

    None before the first one, and when the latest one's check raised: an older verdict never stands
    in for it. A generator is checked at its first step, so its verdict is there from then on. It is
    kept in the context: a call in a thread or task of its own (`asyncio.create_task`, `gather`, an
    executor) shows its verdict there, inside the guarded callable too, and not to whoever started
    it.
    """
    return LAST.get()


@dataclass(frozen=True, slots=True)
class _Plan:
    """One guarded callable: its checked argument, and what a flag leads to."""

    reaction: Reaction
    selector: Selector
    fallback: Callable[..., Any] | None

    def checked(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Call, Verdict | None]:
        """A call's arguments as they would be sent, and the verdict that forbids it, if any."""
        call, guard = self._call(args, kwargs), self.reaction.guard
        call.make_canonical(guard.policy)
        return call, self._settled(call, [guard.check(each) for each in call.judged])

    async def achecked(
        self, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[Call, Verdict | None]:
        """`checked` without blocking the event loop."""
        call, guard = self._call(args, kwargs), self.reaction.guard
        await read_apart(partial(call.make_canonical, guard.policy))
        return call, self._settled(call, [await guard.acheck(each) for each in call.judged])

    def answer(self, call: Call, verdict: Verdict) -> Any:
        """What a call that is not made gives back."""
        if self.fallback is not None:
            return self.fallback(verdict, *call.bound.args, **call.bound.kwargs)
        self.reaction.stop(verdict)
        return self.reaction.guard.policy.refusal_message

    def _call(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Call:
        LAST.set(None)  # a check that raises must not leave the verdict before it standing
        return self.selector.call(args, kwargs)

    def _settled(self, call: Call, verdicts: Sequence[Verdict]) -> Verdict | None:
        verdict = highest(verdicts, self.reaction.guard.policy)
        after = self.reaction.settle(verdict, lambda words: call.caution(words) or None)
        LAST.set(after.verdict)
        return after.verdict if after.done == "flag" else None


def _function(fn: Callable[..., Any], plan: _Plan) -> Callable[..., Any]:
    @functools.wraps(fn)
    def call(*args: Any, **kwargs: Any) -> Any:
        made, stopped = plan.checked(args, kwargs)
        if stopped is None:
            return fn(*made.bound.args, **made.bound.kwargs)
        return plan.answer(made, stopped)

    return call


def _coroutine(fn: Callable[..., Any], plan: _Plan) -> Callable[..., Any]:
    @functools.wraps(fn)
    async def call(*args: Any, **kwargs: Any) -> Any:
        made, stopped = await plan.achecked(args, kwargs)
        if stopped is None:
            return await fn(*made.bound.args, **made.bound.kwargs)
        return await resolved(plan.answer(made, stopped))

    return call


def _generator(fn: Callable[..., Any], plan: _Plan) -> Callable[..., Any]:
    @functools.wraps(fn)
    def call(*args: Any, **kwargs: Any) -> Generator[Any, Any, Any]:
        made, stopped = plan.checked(args, kwargs)
        if stopped is None:
            return (yield from fn(*made.bound.args, **made.bound.kwargs))
        yield from _chunks(plan.answer(made, stopped))

    return call


def _async_generator(fn: Callable[..., Any], plan: _Plan) -> Callable[..., Any]:
    @functools.wraps(fn)
    async def call(*args: Any, **kwargs: Any) -> AsyncGenerator[Any, None]:
        made, stopped = await plan.achecked(args, kwargs)
        if stopped is None:
            answer = fn(*made.bound.args, **made.bound.kwargs)
        else:
            answer = await resolved(plan.answer(made, stopped))
        if isinstance(answer, AsyncGenerator):
            async with aclosing(answer) as chunks:
                step = chunks.asend(None)
                while (chunk := await _step(step)) is not _END:
                    try:
                        step = chunks.asend((yield chunk))
                    except BaseException as error:  # what is thrown in is for the one inside
                        step = chunks.athrow(error)
        elif isinstance(answer, AsyncIterable):
            async for chunk in answer:
                yield chunk
        else:
            for chunk in _chunks(answer):
                yield chunk

    return call


async def _step(step: Awaitable[Any]) -> Any:
    try:
        return await step
    except StopAsyncIteration:
        return _END


def _chunks(answer: Any) -> Iterable[Any]:
    whole = isinstance(answer, str | bytes) or not isinstance(answer, Iterable)
    return (answer,) if whole else answer


_FORMS: dict[Kind, Callable[[Callable[..., Any], _Plan], Callable[..., Any]]] = {
    "function": _function,
    "coroutine": _coroutine,
    "generator": _generator,
    "async generator": _async_generator,
}
