"""From a score or an outage to what is done, against a slow second account of the same rules."""

from __future__ import annotations

import ast
import math
from itertools import combinations, product
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guardrail.errors import DetectorError, GuardClosedError, UnsupportedContentError
from guardrail.policy import Policy, Thresholds
from guardrail.policy.acting import (
    action_for,
    applied,
    effective_thresholds,
    may_steer,
    on_outage,
    outranks_outage,
    passes_unchecked,
    stops,
)
from guardrail.types import Action

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parents[2]
PASS, STEER, FLAG = Action.PASS, Action.STEER, Action.FLAG
BOTH = frozenset({STEER, FLAG})
ALLOWED = [frozenset(each) for n in range(3) for each in combinations((STEER, FLAG), n)]
AT = Thresholds(steer=0.5, flag=1.0)
SCORES = {"low": 0.0, "middle": 0.7, "high": 2.0}
ORDER = [PASS, STEER, FLAG]


def allowing(actions: Any, **rules: Any) -> Policy:
    return Policy(actions=frozenset(actions), **rules)


@pytest.mark.parametrize(
    ("score", "action"),
    [
        (-3.0, PASS),
        (0.5, PASS),  # strict, as the calibration counts
        (math.nextafter(0.5, 1), STEER),
        (1.0, STEER),
        (math.nextafter(1.0, 2), FLAG),
        (1e300, FLAG),
    ],
)
def test_thresholds_are_strict(score: float, action: Action) -> None:
    assert action_for(score, AT, allowing(BOTH)) is action


@pytest.mark.parametrize(
    ("allowed", "actions"),
    [
        ({STEER}, [PASS, STEER, STEER]),
        ({FLAG}, [PASS, PASS, FLAG]),
        (set(), [PASS, PASS, PASS]),
    ],
)
def test_what_is_not_allowed_becomes_the_next_milder_action(
    allowed: set[Action], actions: list[Action]
) -> None:
    assert [action_for(score, AT, allowing(allowed)) for score in (0.0, 0.7, 2.0)] == actions


def test_equal_thresholds_leave_nothing_to_steer() -> None:
    one = Thresholds(steer=1.0, flag=1.0)
    assert [action_for(s, one, allowing(BOTH)) for s in (1.0, 1.1)] == [PASS, FLAG]


@pytest.mark.parametrize("score", [math.nan, math.inf, -math.inf])
def test_a_score_that_is_no_number_has_no_action(score: float) -> None:
    with pytest.raises(ValueError, match="no action"):
        action_for(score, AT, allowing(BOTH))


@given(
    pair=st.tuples(st.floats(-10, 10), st.floats(-10, 10)),
    cuts=st.tuples(st.floats(-10, 10), st.floats(-10, 10)),
    allowed=st.sets(st.sampled_from([STEER, FLAG])),
)
def test_a_higher_score_never_gets_a_milder_action(
    pair: tuple[float, float], cuts: tuple[float, float], allowed: set[Action]
) -> None:
    thresholds = Thresholds(steer=min(cuts), flag=max(cuts))
    low, high = (action_for(s, thresholds, allowing(allowed)) for s in sorted(pair))
    assert ORDER.index(low) <= ORDER.index(high)


# ---- the whole table


def slowly_asked(region: str, policy: Policy, *, can_steer: bool) -> Action:
    """What a score asks for: the first of the actions its region names that is allowed."""
    named = {"low": [], "middle": [STEER], "high": [FLAG, STEER]}[region]
    first = next((action for action in named if action in policy.actions), PASS)
    instead = not can_steer and policy.unsteerable == "flag" and FLAG in policy.actions
    return FLAG if first is STEER and instead else first


def slowly_done(
    region: str | None, policy: Policy, *, can_steer: bool, beyond: bool
) -> tuple[Action, bool]:
    """What is done to a prompt (region None: an outage), and whether it stops: the first row."""
    outage = region is None
    asked = PASS if region is None else slowly_asked(region, policy, can_steer=can_steer)
    annotates = policy.on_flag == "annotate"
    rows = [
        (policy.mode == "shadow", PASS, False),
        (outage and policy.fail == "closed", FLAG, True),
        (outage and policy.fail == "open", PASS, False),
        (asked is FLAG, FLAG, not annotates),
        (asked is PASS, PASS, False),
        (not can_steer, PASS, False),
        (not beyond, STEER, False),
        (FLAG in policy.actions, FLAG, not annotates),
        (True, PASS, False),
    ]
    return next((action, stop) for holds, action, stop in rows if holds)


def every_policy() -> Iterator[Policy]:
    for mode, fail, actions, unsteerable, on_flag in product(
        ("enforce", "shadow"),
        ("closed", "open"),
        ALLOWED,
        ("flag", "caution", "pass"),
        ("refuse", "raise", "annotate"),
    ):
        rules: dict[str, Any] = {"mode": mode, "fail": fail, "unsteerable": unsteerable}
        yield Policy(actions=actions, on_flag=on_flag, **rules)


def test_every_score_and_outage_comes_to_what_the_slow_account_says() -> None:
    cases = 0
    for policy, region, can_steer, beyond in product(
        every_policy(), (*SCORES, None), (True, False), (True, False)
    ):
        asked = None
        if region is not None:
            asked = action_for(SCORES[region], AT, policy, can_steer=can_steer)
            assert asked is slowly_asked(region, policy, can_steer=can_steer)
        action = applied(asked, policy, can_steer=can_steer, beyond=beyond)
        stop = stops(action, policy.on_flag, outage=region is None)
        wanted = slowly_done(region, policy, can_steer=can_steer, beyond=beyond)
        assert (action, stop) == wanted, (policy, region, can_steer, beyond)
        cases += 1
    assert cases == 2 * 2 * 4 * 3 * 3 * 4 * 2 * 2


@pytest.mark.parametrize("actions", ALLOWED)
def test_what_an_answered_message_asks_for_is_flagged_instead_of_steered_if_wanted(
    actions: frozenset[Action],
) -> None:
    for asked, can_steer, beyond in product((PASS, STEER, FLAG), (True, False), (True, False)):
        settings = {"can_steer": can_steer, "beyond": beyond}
        for wanted in ("steer", "flag"):
            policy = Policy.model_validate({"actions": actions, "earlier": wanted})
            now, then = (applied(asked, policy, **settings, earlier=e) for e in (False, True))
            moved = wanted == "flag" and now is STEER and FLAG in actions
            assert then is (FLAG if moved else now)


def test_a_prompt_may_be_steered_where_some_score_has_it_steered() -> None:
    for policy in every_policy():
        done = {slowly_done(region, policy, can_steer=True, beyond=False)[0] for region in SCORES}
        assert may_steer(policy) is (STEER in done)


def test_a_threshold_is_effective_where_passing_it_changes_what_would_be_done() -> None:
    for policy, can_steer in product(every_policy(), (True, False)):
        acting = policy.model_copy(update={"mode": "enforce"})

        def done(steer: float, flag: float, acting: Policy = acting, can: bool = can_steer) -> Any:
            at = Thresholds(steer=steer, flag=flag)
            asked = [action_for(score, at, acting, can_steer=can) for score in (0.0, 1.0, 2.0, 3.0)]
            return [applied(each, acting, can_steer=can, beyond=False) for each in asked]

        felt = {STEER: done(0.5, 2.5) != done(1.5, 2.5), FLAG: done(0.5, 1.5) != done(0.5, 2.5)}
        if policy.actions == BOTH and not can_steer and policy.unsteerable == "flag":
            felt[FLAG] = True  # the steering threshold, which is never above, flags already
        found = effective_thresholds(policy, can_steer=can_steer)
        assert found == {action for action, is_felt in felt.items() if is_felt}, policy


@pytest.mark.parametrize(("fail", "asked"), [("closed", FLAG), ("open", PASS)])
def test_an_outage_asks_for_what_the_policy_says_and_hides_no_finding_where_it_passes(
    fail: Any, asked: Action
) -> None:
    for actions in ALLOWED:  # an outage is no finding, whose actions these are
        policy = allowing(actions, fail=fail)
        assert on_outage(policy) is asked
        found = [outranks_outage(action, policy) for action in ORDER]
        assert found == [False, fail == "open", fail == "open"]


@pytest.mark.parametrize(
    ("error", "closed", "open_"),
    [
        (DetectorError("gone"), False, True),
        (GuardClosedError("closed"), False, False),
        (UnsupportedContentError("what?"), False, False),
        (ValueError("no HTTP"), False, False),
    ],
)
def test_only_an_outage_passes_unchecked_where_the_policy_fails_open_and_all_does_in_shadow_mode(
    error: BaseException, closed: bool, open_: bool
) -> None:
    assert passes_unchecked(error, Policy()) is closed
    assert passes_unchecked(error, Policy(fail="open")) is open_
    for fail in ("closed", "open"):
        assert passes_unchecked(error, Policy.model_validate({"mode": "shadow", "fail": fail}))


# ---- in one place

RULES = {"mode", "fail", "unsteerable", "actions", "earlier"}
PICTURES = {"image", "picture", "upright"}  # Pillow's have a `mode`, too


def compared(tree: ast.AST) -> Iterator[ast.Attribute]:
    """Where code depends on what one of a policy's rules is."""
    for node in ast.walk(tree):
        match node:
            case ast.Compare(left=left, comparators=others):
                parts = [left, *others]
            case ast.Match(subject=subject):
                parts = [subject]
            case ast.Subscript(slice=key):
                parts = [key]
            case _:
                continue
        for part in parts:
            for each in part.elts if isinstance(part, ast.Tuple) else [part]:
                if isinstance(each, ast.Attribute) and each.attr in RULES:
                    yield each


def of_a_policy(rule: ast.Attribute) -> bool:
    holder = ast.unparse(rule.value).rpartition(".")[2]
    if rule.attr == "actions":  # decisions and figures have some, too
        return "policy" in holder or "rules" in holder
    return holder not in PICTURES


def test_a_policys_rules_of_acting_are_compared_in_one_module_only() -> None:
    found = {
        str(file.relative_to(ROOT))
        for folder in ("guardrail", "integrations")
        for file in (ROOT / folder).rglob("*.py")
        if any(map(of_a_policy, compared(ast.parse(file.read_text(encoding="utf-8")))))
    }
    assert found == {"guardrail/policy/acting.py"}


@pytest.mark.parametrize(
    "code",
    [
        'self._policy.mode == "shadow"',
        'verdict.mode != "enforce"',
        'guard.policy.fail in ("open",)',
        "Action.FLAG in policy.actions",
        '("closed", "enforce") == (policy.fail, policy.mode)',
        "{'open': 1}[policy.fail]",
        "match policy.unsteerable:\n    case 'flag':\n        pass",
    ],
)
def test_the_search_for_comparisons_finds_them(code: str) -> None:
    assert any(map(of_a_policy, compared(ast.parse(code))))
