"""What happens to each row of a call: the decision, under the policy's mode and fail mode."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING

from guardrail.policy import Policy
from guardrail.policy.acting import applied, stops
from guardrail.types import Action

if TYPE_CHECKING:
    from collections.abc import Sequence

    from guardrail.model.detectors import DecisionLike

log = logging.getLogger("guardrail")

# Fitting applies edits and looks at what they do: what is beyond their reach is no finding there.
_FITTING = Policy(actions=frozenset({Action.STEER}))


@dataclass(frozen=True, slots=True)
class Ruling:
    """What happened to one request. `row` is its first row in `decision`."""

    action: Action
    stops: bool
    failed: bool
    strength: float
    decision: DecisionLike | None
    row: int


@dataclass(slots=True)
class RowRulings:
    """The rows of one call once they were judged. `kinds` names each row's modality.

    `policy` None applies edits and stops nothing, for fitting. `failed` rows have no decision or no
    edit, `beyond` rows are out of steering's reach.
    """

    policy: Policy | None
    can_steer: bool
    kinds: list[str]
    failed: list[bool]
    beyond: list[bool]
    decision: DecisionLike | None = None

    @classmethod
    def unjudged(cls, policy: Policy | None, kinds: list[str], *, can_steer: bool) -> RowRulings:
        """The rows before anybody was asked."""
        return cls(policy, can_steer, kinds, [False] * len(kinds), [False] * len(kinds))

    def fail_steered(self, bad: Sequence[bool], why: str) -> None:
        """Mark those of the bad rows that were to be steered as failed."""
        new = [row for row, b in enumerate(bad) if b and self.applied(row) is Action.STEER]
        if new:
            log.error("%d of %d rows cannot be steered: %s", len(new), len(bad), why)
        for row in new:
            self.failed[row] = True

    def fail_all_steered(self, why: str) -> None:
        """Mark every row that was to be steered as failed."""
        self.fail_steered([True] * len(self.kinds), why)

    def applied(self, row: int) -> Action:
        """What is done to a row."""
        asked = None  # an outage
        if self.decision is not None and not self.failed[row]:
            asked = self.decision.actions[row]
        policy = self.policy or _FITTING
        return applied(asked, policy, can_steer=self.can_steer, beyond=self.beyond[row])

    def stops(self, row: int) -> bool:
        """Whether a row gets no answer from the model; fitting stops nobody."""
        policy = self.policy
        if policy is None:
            return False
        return stops(self.applied(row), policy.on_flag, outage=self.failed[row])

    @property
    def steers(self) -> bool:
        """Whether any row is to be steered."""
        return any(self.applied(row) is Action.STEER for row in range(len(self.kinds)))

    @property
    def everyone_stops(self) -> bool:
        """Whether nobody needs the model any more."""
        return all(map(self.stops, range(len(self.kinds))))

    def ruling(self, row: int, strength: float) -> Ruling:
        """What happened to a request whose first row is `row`; its beams agree with it."""
        return Ruling(
            action=self.applied(row),
            stops=self.stops(row),
            failed=self.failed[row],
            strength=strength,
            decision=self.decision,
            row=row,
        )
