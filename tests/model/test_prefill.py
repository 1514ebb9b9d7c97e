"""From a decision to what is done, under the policy."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from guardrail.model.prefill import RowRulings
from guardrail.policy import Policy
from guardrail.types import Action

PASS, STEER, FLAG = Action.PASS, Action.STEER, Action.FLAG


def rows(actions: Any, policy: Any, *, can_steer: bool = True) -> RowRulings:
    made = RowRulings.unjudged(policy, ["text"] * len(actions), can_steer=can_steer)
    made.decision = SimpleNamespace(actions=actions, failed=[False] * len(actions))
    return made


def applied(found: RowRulings) -> list[Action]:
    return [found.applied(row) for row in range(len(found.kinds))]


@pytest.mark.parametrize(
    ("policy", "can_steer", "expected"),
    [
        (Policy(), True, [PASS, STEER, FLAG]),
        (Policy(), False, [PASS, PASS, FLAG]),
        (Policy(mode="shadow"), True, [PASS, PASS, PASS]),
        (None, True, [PASS, STEER, FLAG]),
    ],
)
def test_decisions_are_applied_as_far_as_the_policy_and_the_model_go(policy, can_steer, expected):
    found = rows([PASS, STEER, FLAG], policy, can_steer=can_steer)
    assert applied(found) == expected
    assert found.steers is (STEER in expected)


@pytest.mark.parametrize(("fail", "action"), [("closed", FLAG), ("open", PASS)])
def test_only_bad_rows_that_were_to_be_steered_fail(fail, action, caplog):
    found = rows([PASS, STEER, STEER, FLAG], Policy(fail=fail))
    found.fail_steered([True, True, False, True], "no reason")
    assert found.failed == [False, True, False, False]
    assert applied(found) == [PASS, action, STEER, FLAG]
    assert "1 of 4 rows cannot be steered: no reason" in caplog.text
    found.fail_all_steered("still none")
    assert found.failed == [False, True, True, False]


def test_rows_beyond_steering_are_flagged_where_flags_are_allowed():
    for actions, expected in ((frozenset({STEER, FLAG}), FLAG), (frozenset({STEER}), PASS)):
        found = rows([STEER], Policy(actions=actions))
        found.beyond = [True]
        assert applied(found) == [expected]


def test_rows_that_score_by_an_answered_message_are_flagged_where_the_policy_wants_it():
    for earlier, expected in (("steer", STEER), ("flag", FLAG)):
        found = rows([PASS, STEER, STEER], Policy(earlier=earlier))
        found.earlier = [True, True, False]
        assert applied(found) == [PASS, expected, STEER]


def test_a_flag_stops_its_row_unless_it_is_an_annotation_and_an_outage_always_does():
    assert [rows([FLAG], Policy(on_flag=how)).stops(0) for how in ("refuse", "annotate")] == [
        True,
        False,
    ]
    failed = rows([STEER], Policy(on_flag="annotate"))
    failed.fail_all_steered("gone")
    assert failed.stops(0)
    assert not rows([FLAG], None).stops(0)  # fitting stops nobody


def test_everyone_stops_only_when_every_row_does():
    assert rows([FLAG, FLAG], Policy()).everyone_stops
    assert not rows([FLAG, STEER], Policy()).everyone_stops
