"""What a verdict means for a call to a model that cannot be steered."""

from __future__ import annotations

import inspect
import logging
from contextvars import ContextVar
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, Protocol, get_args

from guardrail.errors import (
    ConfigurationError,
    DetectorError,
    GuardrailError,
    GuardrailViolation,
)
from guardrail.requests.patience import read_apart
from guardrail.types import Action, Verdict

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from guardrail.arguments import Call, Selector
    from guardrail.audit import Audit
    from guardrail.policy import Policy

OnFlag = Literal["refuse", "raise", "annotate"]

LAST: ContextVar[Verdict | None] = ContextVar("guardrail_last_verdict", default=None)

_log = logging.getLogger(__name__)


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


@dataclass(frozen=True, slots=True)
class Settled:
    """A verdict after all, and what is done: the call is not made, made with a caution, or made."""

    verdict: Verdict
    done: Literal["flag", "caution", "pass"]


def settled(
    verdict: Verdict, policy: Policy, *, caution: Callable[[str], bool], annotates: bool
) -> Settled:
    """What becomes of a call whose model cannot be steered.

    Args:
        verdict: what the guard found.
        policy: the rules in force.
        caution: puts the policy's words before what is sent; false where there is no place for
            them, and then the call counts as flagged.
        annotates: whether flagged calls are made all the same. Refused outages never are.
    """
    outage, cautioned = is_refused_outage(verdict, policy), False
    if outage:
        verdict = replace(verdict, action=Action.FLAG)
    elif _wants_steering(verdict, policy):
        cautioned = policy.unsteerable == "caution" and caution(policy.caution_prompt)
        if policy.unsteerable == "pass":
            verdict = replace(verdict, action=Action.PASS)
        elif not cautioned and Action.FLAG in policy.actions:
            verdict = replace(verdict, action=Action.FLAG)
    flagged = verdict.action is Action.FLAG and verdict.mode == "enforce"
    stops = flagged and (outage or not annotates)
    return Settled(verdict, "flag" if stops else "caution" if cautioned else "pass")


def is_refused_outage(verdict: Verdict, policy: Policy) -> bool:
    """An outage is no finding: not to be annotated, whatever the policy's actions are."""
    closed = policy.fail == "closed" and verdict.mode == "enforce"
    return closed and verdict.reason == "detector_failed"


def stopped(verdict: Verdict, policy: Policy) -> GuardrailError:
    """The error that a call which is not made raises."""
    if is_refused_outage(verdict, policy):
        return DetectorError("the detector failed, and the policy fails closed; nothing is sent")
    return GuardrailViolation(verdict)


async def resolved(value: Any) -> Any:
    """What somebody's function gave, awaited where it is awaitable: plain and async may serve."""
    return await value if inspect.isawaitable(value) else value


def record(audit: Audit | None, verdict: Verdict | None, done: str) -> None:
    """Tell the audit sink what was done; its troubles never change a call."""
    if audit is None:
        return
    try:
        audit(verdict, {"event": "call", "done": done})
    except Exception:  # a border: the sink is the user's code
        _log.exception("the audit sink failed; the call is not affected")


def check_reaction(on_flag: object, fallback: object = None) -> None:
    """Refuse what says nothing about flagged calls, or says two things.

    Raises:
        ConfigurationError: it does.
    """
    if on_flag not in (None, *get_args(OnFlag)):
        raise ConfigurationError(f"on_flag={on_flag!r}: refuse, raise or annotate")
    if fallback is not None and not callable(fallback):
        raise ConfigurationError(f"fallback={fallback!r} cannot be called with verdict and call")
    if on_flag is not None and fallback is not None:
        raise ConfigurationError("on_flag and fallback both say what a flag leads to; give one")


@dataclass(frozen=True, slots=True)
class Plan:
    """One guarded callable's guard, its checked argument, and what a flag leads to."""

    guard: Checker
    selector: Selector
    on_flag: OnFlag | None
    fallback: Callable[..., Any] | None
    audit: Audit | None

    def checked(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Call, Verdict]:
        """One call's arguments as they would be sent, and the verdict on them."""
        call = self._call(args, kwargs)
        call.make_canonical(self.guard.policy)
        return call, self.guard.check(call.value)

    async def achecked(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Call, Verdict]:
        """`checked` without blocking the event loop."""
        call = self._call(args, kwargs)
        await read_apart(partial(call.make_canonical, self.guard.policy))
        return call, await self.guard.acheck(call.value)

    def _call(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Call:
        LAST.set(None)  # a check that raises must not leave the verdict before it standing
        return self.selector.call(args, kwargs)

    def settle(self, call: Call, verdict: Verdict) -> Verdict | None:
        """None when the call is to be made, else the verdict that forbids it."""
        annotates = self.fallback is None and self._on_flag == "annotate"
        after = settled(verdict, self.guard.policy, caution=call.caution, annotates=annotates)
        LAST.set(after.verdict)
        record(self.audit, after.verdict, after.done)
        return after.verdict if after.done == "flag" else None

    def answer(self, call: Call, verdict: Verdict) -> Any:
        """What a call that is not made gives back."""
        if self.fallback is not None:
            return self.fallback(verdict, *call.bound.args, **call.bound.kwargs)
        if self._on_flag != "raise":
            return self.guard.policy.refusal_message
        raise stopped(verdict, self.guard.policy)

    @property
    def _on_flag(self) -> OnFlag:
        return self.on_flag or self.guard.policy.on_flag


def _wants_steering(verdict: Verdict, policy: Policy) -> bool:
    # An artefact that only detects passes what it cannot steer, and says so in `would_be`.
    return (
        verdict.mode == "enforce"
        and verdict.action is not Action.FLAG
        and verdict.would_be is Action.STEER
        and Action.STEER in policy.actions
    )
