"""From a score to an action."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guardrail.decide.gate import action_for
from guardrail.policy import Thresholds
from guardrail.types import Action

BOTH = frozenset({Action.STEER, Action.FLAG})
AT = Thresholds(steer=0.5, flag=1.0)
ORDER = [Action.PASS, Action.STEER, Action.FLAG]


@pytest.mark.parametrize(
    ("score", "action"),
    [
        (-3.0, Action.PASS),
        (0.5, Action.PASS),  # strict, as the calibration counts
        (math.nextafter(0.5, 1), Action.STEER),
        (1.0, Action.STEER),
        (math.nextafter(1.0, 2), Action.FLAG),
        (1e300, Action.FLAG),
    ],
)
def test_thresholds_are_strict(score: float, action: Action) -> None:
    assert action_for(score, AT, BOTH) is action


@pytest.mark.parametrize(
    ("allowed", "actions"),
    [
        ({Action.STEER}, [Action.PASS, Action.STEER, Action.STEER]),
        ({Action.FLAG}, [Action.PASS, Action.PASS, Action.FLAG]),
        (set(), [Action.PASS, Action.PASS, Action.PASS]),
    ],
)
def test_what_is_not_allowed_becomes_the_next_milder_action(
    allowed: set[Action], actions: list[Action]
) -> None:
    assert [action_for(score, AT, allowed) for score in (0.0, 0.7, 2.0)] == actions


def test_equal_thresholds_leave_nothing_to_steer() -> None:
    one = Thresholds(steer=1.0, flag=1.0)
    assert [action_for(s, one, BOTH) for s in (1.0, 1.1)] == [Action.PASS, Action.FLAG]


@pytest.mark.parametrize("score", [math.nan, math.inf, -math.inf])
def test_a_score_that_is_no_number_has_no_action(score: float) -> None:
    with pytest.raises(ValueError, match="no action"):
        action_for(score, AT, BOTH)


@given(
    pair=st.tuples(st.floats(-10, 10), st.floats(-10, 10)),
    cuts=st.tuples(st.floats(-10, 10), st.floats(-10, 10)),
    allowed=st.sets(st.sampled_from([Action.STEER, Action.FLAG])),
)
def test_a_higher_score_never_gets_a_milder_action(
    pair: tuple[float, float], cuts: tuple[float, float], allowed: set[Action]
) -> None:
    thresholds = Thresholds(steer=min(cuts), flag=max(cuts))
    low, high = (action_for(s, thresholds, allowed) for s in sorted(pair))
    assert ORDER.index(low) <= ORDER.index(high)
