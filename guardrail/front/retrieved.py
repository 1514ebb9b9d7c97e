"""What becomes of retrieved items, each judged by itself: kept, cautioned or left out."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeVar

from guardrail.front.consequences import Checker, OnFlag, Reaction
from guardrail.policy.acting import enforces, is_refused_outage
from guardrail.types import Verdict

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from guardrail.audit import Audit

WhenFlagged = Literal["drop", "mark", "raise"]
Outcome = Verdict | BaseException
_ON_FLAG: Mapping[WhenFlagged, OnFlag] = {"drop": "refuse", "mark": "annotate", "raise": "raise"}

_log = logging.getLogger(__name__)

E = TypeVar("E", bound=BaseException)
T = TypeVar("T")


class BatchChecker(Checker, Protocol):
    """What is needed of a guard: that of a guarded tool, and verdicts of many at once."""

    def check_batch(
        self, values: Iterable[Any], *, return_exceptions: bool
    ) -> Sequence[Verdict | Exception]:
        """Score several requests; an error takes its verdict's place."""


async def acheck_each(
    guard: Checker, chats: Iterable[Any], concurrency: int
) -> list[Verdict | BaseException]:
    """Verdicts in order, so many under way at once; an error takes its verdict's place."""
    places = asyncio.Semaphore(min(concurrency, guard.policy.limits.queue))

    async def checked(chat: Any) -> Verdict:
        async with places:
            verdict: Verdict = await guard.acheck(chat)
            return verdict

    return await asyncio.gather(*map(checked, chats), return_exceptions=True)


def ruled(
    item: T,
    outcome: Outcome,
    guard: Checker,
    when: WhenFlagged,
    *,
    name: str,
    caution: Callable[[str], T | None],
    audit: Audit | None = None,
) -> tuple[T, dict[str, Any]] | None:
    """The item as it goes on, with what its metadata is to say of the verdict; None: it does not.

    Args:
        item: what was retrieved.
        outcome: its verdict, or the error that its check ended with.
        guard: the guard that checked it.
        when: what to do with flagged ones, whatever the policy's `on_flag` is.
        name: how errors and the log call it.
        caution: the item with words of caution; None where it has no place for them.
        audit: gets the verdict and what was done.

    Raises:
        GuardrailViolation, DetectorError: it is flagged, or its check failed, under "raise".
    """
    if isinstance(outcome, BaseException):
        raise named(outcome, name)
    reaction = Reaction(guard, _ON_FLAG[when], audit)
    after = reaction.settle(outcome, caution)
    if after.done == "flag":
        reaction.stop(after.verdict)
        if is_refused_outage(after.verdict, guard.policy):
            _log.warning("the detector failed; %s is left out", name)
        return None
    kept: T = item if after.cautioned is None else after.cautioned
    return kept, _marks(after.verdict)


def named(error: E, name: str) -> E:
    """The error with a note that says what was checked."""
    error.add_note(f"while {name} was checked")
    return error


def _marks(verdict: Verdict) -> dict[str, Any]:
    if not enforces(verdict):
        return {}
    return {"guardrail_action": verdict.action.value, "guardrail_score": verdict.score}
