"""Guard any callable: a remote model's client, a chain, a tool.

    @guarded(guard=guard)
    def ask(messages): ...

    ask = guarded(client.chat.completions.create, guard=guard)

The local guard reads the messages first, and the call is made only if it may be. A model behind a
callable cannot be steered; `policy.unsteerable` says what happens to a request that would be: a
word of caution goes with it, it counts as flagged, or it passes.

Messages that name a file or an address are read once by the guard and again by whoever answers;
send pictures as objects, bytes or data: addresses where that matters.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import AsyncIterable, Awaitable, Callable, Iterable
from contextlib import aclosing
from contextvars import ContextVar
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeVar, cast, overload

from guardrail.arguments import Call, Selector
from guardrail.errors import ConfigurationError, GuardrailViolation
from guardrail.types import Action, Verdict

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Generator

    from guardrail.arguments import Select
    from guardrail.policy import Policy

OnFlag = Literal["refuse", "raise", "annotate"]
F = TypeVar("F", bound=Callable[..., Any])

_last: ContextVar[Verdict | None] = ContextVar("guardrail_last_verdict", default=None)


class Checker(Protocol):
    """What is needed of a guard; `Guard` has it, and so has a double in your tests."""

    @property
    def policy(self) -> Policy:
        """The rules in force."""

    def check(self, value: Any, /) -> Verdict:
        """Score one request."""

    def acheck(self, value: Any, /) -> Awaitable[Verdict]:
        """Score one request without blocking the event loop."""

    def with_policy(self, policy: Policy, /) -> Checker:
        """The same guard under other rules."""


def last_verdict() -> Verdict | None:
    """The verdict of this thread's or task's latest guarded call; None if its check raised."""
    return _last.get()


@overload
def guarded(
    fn: F,
    *,
    guard: Checker,
    messages: str | Select | None = None,
    policy: Policy | None = None,
    on_flag: OnFlag | None = None,
    fallback: Callable[..., Any] | None = None,
) -> F: ...


@overload
def guarded(
    fn: None = None,
    *,
    guard: Checker,
    messages: str | Select | None = None,
    policy: Policy | None = None,
    on_flag: OnFlag | None = None,
    fallback: Callable[..., Any] | None = None,
) -> Callable[[F], F]: ...


def guarded(
    fn: F | None = None,
    *,
    guard: Checker,
    messages: str | Select | None = None,
    policy: Policy | None = None,
    on_flag: OnFlag | None = None,
    fallback: Callable[..., Any] | None = None,
) -> F | Callable[[F], F]:
    """Check a callable's messages before it is called; as decorator or wrapper.

    Works on functions, coroutine functions, generators and asynchronous generators, and keeps name
    and signature. A flagged call returns (or yields) the policy's refusal message, raises
    `GuardrailViolation`, or is made all the same (`annotate`; see `last_verdict`).

    Args:
        fn: the callable; left out when used as a decorator with arguments.
        guard: the guard that checks.
        messages: what to check: a parameter's name, or a callable that makes it from the bound
            arguments. A made value has no place for a caution, so such a call counts as flagged
            where another would be cautioned. Default: the parameter named messages, prompt, input
            or query, else the first positional one.
        policy: other rules than the guard's.
        on_flag: another `on_flag` than the policy's.
        fallback: answers flagged calls instead: `fallback(verdict, *args, **kwargs)`. May be
            asynchronous where `fn` is; for generators it returns the chunks.

    Raises:
        ConfigurationError: what to check is ambiguous or missing, or settings contradict.
    """
    if on_flag is not None and fallback is not None:
        raise ConfigurationError("on_flag and fallback both say what a flag leads to; give one")
    checker = guard if policy is None else guard.with_policy(policy)

    def decorate(target: F) -> F:
        if not callable(target):
            raise ConfigurationError(f"{target!r} cannot be called; put @guarded below its wrapper")
        plan = _Plan(checker, Selector(target, messages), on_flag, fallback)
        return cast("F", _form(target)(target, plan))

    return decorate if fn is None else decorate(fn)


@dataclass(frozen=True, slots=True)
class _Plan:
    guard: Checker
    selector: Selector
    on_flag: OnFlag | None
    fallback: Callable[..., Any] | None

    def bind(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Call:
        _last.set(None)  # a check that raises must not leave the verdict before it standing
        return self.selector.call(args, kwargs)

    def settle(self, call: Call, verdict: Verdict) -> Verdict | None:
        """What the verdict means for a model that cannot be steered: None, or why not to call."""
        policy = self.guard.policy
        if _wants_steering(verdict, policy):
            cautioned = policy.unsteerable == "caution" and call.caution(policy.caution_prompt)
            if policy.unsteerable == "pass":
                verdict = replace(verdict, action=Action.PASS)
            elif not cautioned and Action.FLAG in policy.actions:
                verdict = replace(verdict, action=Action.FLAG)
        _last.set(verdict)
        stops = verdict.action is Action.FLAG and verdict.mode == "enforce"
        annotates = self.fallback is None and (self.on_flag or policy.on_flag) == "annotate"
        return verdict if stops and not annotates else None

    def answer(self, call: Call, verdict: Verdict) -> Any:
        """What a flagged call gives back."""
        policy = self.guard.policy
        if self.fallback is not None:
            return self.fallback(verdict, *call.bound.args, **call.bound.kwargs)
        if (self.on_flag or policy.on_flag) == "raise":
            raise GuardrailViolation(verdict)
        return policy.refusal_message


def _wants_steering(verdict: Verdict, policy: Policy) -> bool:
    # An artefact that only detects passes what it cannot steer, and says so in `would_be`.
    return (
        verdict.mode == "enforce"
        and verdict.action is not Action.FLAG
        and verdict.would_be is Action.STEER
        and Action.STEER in policy.actions
    )


def _form(fn: Callable[..., Any]) -> Callable[[Callable[..., Any], _Plan], Callable[..., Any]]:
    """The wrapper that fits a function's kind; an object's kind is that of its `__call__`."""
    whole = fn if inspect.isroutine(fn) or isinstance(fn, functools.partial) else type(fn).__call__
    if inspect.isasyncgenfunction(whole):
        return _async_generator
    if inspect.iscoroutinefunction(whole):
        return _coroutine
    return _generator if inspect.isgeneratorfunction(whole) else _function


def _function(fn: Callable[..., Any], plan: _Plan) -> Callable[..., Any]:
    @functools.wraps(fn)
    def call(*args: Any, **kwargs: Any) -> Any:
        made = plan.bind(args, kwargs)
        stopped = plan.settle(made, plan.guard.check(made.value))
        if stopped is None:
            return fn(*made.bound.args, **made.bound.kwargs)
        return plan.answer(made, stopped)

    return call


def _coroutine(fn: Callable[..., Any], plan: _Plan) -> Callable[..., Any]:
    @functools.wraps(fn)
    async def call(*args: Any, **kwargs: Any) -> Any:
        made = plan.bind(args, kwargs)
        stopped = plan.settle(made, await plan.guard.acheck(made.value))
        if stopped is None:
            return await fn(*made.bound.args, **made.bound.kwargs)
        answer = plan.answer(made, stopped)
        return await answer if inspect.isawaitable(answer) else answer

    return call


def _generator(fn: Callable[..., Any], plan: _Plan) -> Callable[..., Any]:
    @functools.wraps(fn)
    def call(*args: Any, **kwargs: Any) -> Generator[Any, Any, Any]:
        made = plan.bind(args, kwargs)
        stopped = plan.settle(made, plan.guard.check(made.value))
        if stopped is None:
            return (yield from fn(*made.bound.args, **made.bound.kwargs))
        yield from _chunks(plan.answer(made, stopped))

    return call


def _async_generator(fn: Callable[..., Any], plan: _Plan) -> Callable[..., Any]:
    @functools.wraps(fn)
    async def call(*args: Any, **kwargs: Any) -> AsyncGenerator[Any, None]:
        made = plan.bind(args, kwargs)
        stopped = plan.settle(made, await plan.guard.acheck(made.value))
        if stopped is None:
            async with aclosing(fn(*made.bound.args, **made.bound.kwargs)) as chunks:
                async for chunk in chunks:
                    yield chunk
            return
        answer = plan.answer(made, stopped)
        answer = await answer if inspect.isawaitable(answer) else answer
        if isinstance(answer, AsyncIterable):
            async for chunk in answer:
                yield chunk
        else:
            for chunk in _chunks(answer):
                yield chunk

    return call


def _chunks(answer: Any) -> Iterable[Any]:
    whole = isinstance(answer, str | bytes) or not isinstance(answer, Iterable)
    return (answer,) if whole else answer
