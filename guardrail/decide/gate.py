"""From a score to an action."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from guardrail.types import Action

if TYPE_CHECKING:
    from collections.abc import Set as AbstractSet

    from guardrail.policy import Thresholds


def action_for(score: float, thresholds: Thresholds, allowed: AbstractSet[Action]) -> Action:
    """What a score asks for: flag above the flag threshold, steer above the steering one.

    A flag that the policy does not allow becomes a steer, and a steer that is not allowed a pass.
    The comparison is strict, as in the calibration: a score equal to the threshold passes.

    Raises:
        ValueError: the score is not finite; it has no action, the detector failed.
    """
    if not math.isfinite(score):
        raise ValueError(f"no action for a score of {score}")
    if score > thresholds.flag and Action.FLAG in allowed:
        return Action.FLAG
    if score > thresholds.steer and Action.STEER in allowed:
        return Action.STEER
    return Action.PASS
