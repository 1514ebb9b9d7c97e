"""A guard without a model, for tests of the code around it."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from guardrail.policy import Policy
from guardrail.types import Action, Modality, Verdict

if TYPE_CHECKING:
    from collections.abc import Iterable

    from guardrail.requests.messages import Tools


class FakeGuard:
    """Judges by words: flags what holds one of `flag`, steers what holds one of `steer`.

        guard = FakeGuard(flag=["bomb"])
        app = GuardrailRunnable(guard=guard) | model

    It goes wherever an adapter or `guarded` only checks. What it was asked is in `seen`; what
    holds "outage" fails as a detector does.
    """

    def __init__(
        self,
        flag: Iterable[str] = ("bad",),
        steer: Iterable[str] = ("odd",),
        *,
        policy: Policy | None = None,
    ) -> None:
        self.policy = policy or Policy()
        self.seen: list[Any] = []
        self._rules = {Action.FLAG: tuple(flag), Action.STEER: tuple(steer)}

    def with_policy(self, policy: Policy) -> FakeGuard:
        """The same words under other rules."""
        flag, steer = self._rules[Action.FLAG], self._rules[Action.STEER]
        return FakeGuard(flag, steer, policy=policy)

    def check(self, value: Any, /, *, tools: Tools | None = None) -> Verdict:
        """The verdict of one request."""
        self.seen.append(copy.deepcopy(value))
        text = repr((value, tools))
        would_be = next(
            (action for action, words in self._rules.items() if any(w in text for w in words)),
            Action.PASS,
        )
        acts = self.policy.mode == "enforce" and would_be in self.policy.actions
        verdict = Verdict(
            action=would_be if acts else Action.PASS,
            would_be=would_be,
            score={Action.PASS: 0.0, Action.STEER: 0.5, Action.FLAG: 1.0}[would_be],
            tau_steer=0.4,
            tau_flag=0.9,
            layers=(1,),
            modality=Modality.TEXT,
            artefact_id="guard-fake",
            mode=self.policy.mode,
        )
        return self._outage(verdict) if "outage" in text else verdict

    async def acheck(self, value: Any, /, *, tools: Tools | None = None) -> Verdict:
        """`check` for event loops."""
        return self.check(value, tools=tools)

    def check_batch(
        self,
        values: Iterable[Any],
        *,
        return_exceptions: bool = False,
        tools: Tools | None = None,
    ) -> list[Verdict]:
        """Verdicts in the order of `values`; nothing here raises."""
        return [self.check(value, tools=tools) for value in values]

    def _outage(self, verdict: Verdict) -> Verdict:
        would_be = Action.FLAG if self.policy.fail == "closed" else Action.PASS
        action = would_be if self.policy.mode == "enforce" else Action.PASS
        return replace(
            verdict, action=action, would_be=would_be, score=None, reason="detector_failed"
        )
