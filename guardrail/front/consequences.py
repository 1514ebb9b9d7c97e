"""What a verdict means for a call to a model that cannot be steered, and for a tool's.

`settled` is the rule itself, for all adapters; `Reaction` is a guard with what its flags lead to.
"""

from __future__ import annotations

import inspect
import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol, Self, get_args

from guardrail.errors import ConfigurationError
from guardrail.policy.acting import (
    enforced,
    is_refused_outage,
    stopped,
    stops,
    unsteered,
    wants_caution,
)

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from guardrail.audit import Audit
    from guardrail.policy import Policy
    from guardrail.types import Verdict

OnFlag = Literal["refuse", "raise", "annotate"]

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


class AnswerChecker(Checker, Protocol):
    """A checker that judges answers, too."""

    def acheck_answer(self, value: Any, answer: str, /) -> Awaitable[Verdict]:
        """Score an answer without blocking the event loop."""


@dataclass(frozen=True, slots=True)
class Settled:
    """A verdict after all, and what is done: the call is not made, made with a caution, or made.

    `cautioned` is what is sent in the second case.
    """

    verdict: Verdict
    done: Literal["flag", "caution", "pass"]
    cautioned: Any = None


def highest(verdicts: Sequence[Verdict], policy: Policy) -> Verdict:
    """The verdict on all that was judged apart: of equals the first."""
    return max(verdicts, key=lambda verdict: severity(verdict, policy))


def severity(verdict: Verdict, policy: Policy) -> tuple[bool, int, int]:
    """The order of verdicts: an outage that is refused, then what is done, then what would be."""
    outage = is_refused_outage(verdict, policy)
    return outage, verdict.action.rank, verdict.would_be.rank


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
