"""What a verdict means for a call to a model that cannot be steered."""

from __future__ import annotations

import inspect
import logging
from contextvars import ContextVar
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, Protocol, Self, get_args

from guardrail.errors import ConfigurationError
from guardrail.inputs.limits import read_apart
from guardrail.policy.acting import (
    enforced,
    is_refused_outage,
    stopped,
    stops,
    unsteered,
    wants_caution,
)

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from guardrail.audit import Audit
    from guardrail.front.arguments import Call, Selector
    from guardrail.policy import Policy
    from guardrail.types import Verdict

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
    """A verdict after all, and what is done: the call is not made, made with a caution, or made.

    `cautioned` is what is sent in the second case.
    """

    verdict: Verdict
    done: Literal["flag", "caution", "pass"]
    cautioned: Any = None


def settled(
    verdict: Verdict,
    policy: Policy,
    *,
    caution: Callable[[str], Any | None],
    on_flag: OnFlag | None = None,
) -> Settled:
    """What becomes of a call whose model cannot be steered.

    Args:
        verdict: what the guard found.
        policy: the rules in force.
        caution: what is sent with the policy's words before it; None where there is no place for
            them, and then the call counts as flagged.
        on_flag: another `on_flag` than the policy's. Flagged calls are made all the same where it
            annotates; refused outages never are.
    """
    cautioned = caution(policy.caution_prompt) if wants_caution(verdict, policy) else None
    verdict = unsteered(verdict, policy, cautioned=cautioned is not None)
    outage = is_refused_outage(verdict, policy)
    if stops(enforced(verdict.action, verdict), on_flag or policy.on_flag, outage=outage):
        return Settled(verdict, "flag")
    return Settled(verdict, "pass" if cautioned is None else "caution", cautioned)


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


@dataclass(frozen=True, slots=True)
class Reaction:
    """A guard, and what a flag leads to: the policy's `on_flag`, or another one.

    Raises:
        ConfigurationError: there is no such `on_flag`.
    """

    guard: Checker
    other: OnFlag | None = None
    audit: Audit | None = None

    def __post_init__(self) -> None:
        """Refuse what says nothing about flagged calls."""
        if self.other not in (None, *get_args(OnFlag)):
            raise ConfigurationError(f"on_flag={self.other!r}: refuse, raise or annotate")

    @classmethod
    def of(
        cls,
        guard: Checker,
        on_flag: OnFlag | None,
        *,
        fallback: Callable[..., Any] | None = None,
        policy: Policy | None = None,
        audit: Audit | None = None,
    ) -> Self:
        """A reaction as it is given to decorators: a `fallback` answers in the refusal's place.

        Raises:
            ConfigurationError: what is given says nothing about flagged calls, or two things.
        """
        if fallback is not None and not callable(fallback):
            raise ConfigurationError(
                f"fallback={fallback!r} cannot be called with verdict and call"
            )
        if on_flag is not None and fallback is not None:
            raise ConfigurationError("on_flag and fallback both say what a flag leads to; give one")
        checker = guard if policy is None else guard.with_policy(policy)
        return cls(checker, on_flag if fallback is None else "refuse", audit)

    @property
    def on_flag(self) -> OnFlag:
        """What a flag leads to."""
        return self.other or self.guard.policy.on_flag

    def settle(
        self, verdict: Verdict, caution: Callable[[str], Any | None] = lambda words: None
    ) -> Settled:
        """What becomes of a call, on record; "flag" means that it is not made.

        Args:
            verdict: what the guard found.
            caution: see `settled`; by default there is no place for one.
        """
        after = settled(verdict, self.guard.policy, caution=caution, on_flag=self.on_flag)
        record(self.audit, after.verdict, after.done)
        return after

    def stop(self, verdict: Verdict) -> None:
        """Come back where an answer stands for a call that is not made.

        Raises:
            GuardrailViolation, DetectorError: under `on_flag="raise"`.
        """
        if self.on_flag == "raise":
            raise stopped(verdict)


@dataclass(frozen=True, slots=True)
class Plan:
    """One guarded callable: its checked argument, and what a flag leads to."""

    reaction: Reaction
    selector: Selector
    fallback: Callable[..., Any] | None

    def checked(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Call, Verdict]:
        """One call's arguments as they would be sent, and the verdict on them."""
        call, guard = self._call(args, kwargs), self.reaction.guard
        call.make_canonical(guard.policy)
        return call, guard.check(call.value)

    async def achecked(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Call, Verdict]:
        """`checked` without blocking the event loop."""
        call, guard = self._call(args, kwargs), self.reaction.guard
        await read_apart(partial(call.make_canonical, guard.policy))
        return call, await guard.acheck(call.value)

    def _call(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Call:
        LAST.set(None)  # a check that raises must not leave the verdict before it standing
        return self.selector.call(args, kwargs)

    def settle(self, call: Call, verdict: Verdict) -> Verdict | None:
        """None when the call is to be made, else the verdict that forbids it."""
        after = self.reaction.settle(verdict, lambda words: call.caution(words) or None)
        LAST.set(after.verdict)
        return after.verdict if after.done == "flag" else None

    def answer(self, call: Call, verdict: Verdict) -> Any:
        """What a call that is not made gives back."""
        if self.fallback is not None:
            return self.fallback(verdict, *call.bound.args, **call.bound.kwargs)
        self.reaction.stop(verdict)
        return self.reaction.guard.policy.refusal_message
