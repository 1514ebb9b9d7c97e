"""What a verdict means for a call to a model that cannot be steered."""

from __future__ import annotations

from dataclasses import replace
from itertools import product
from typing import Any

import pytest

from guardrail.errors import ConfigurationError, DetectorError, GuardrailViolation
from guardrail.front.consequences import Reaction, Settled, settled
from guardrail.policy import Policy
from guardrail.policy.acting import applied, on_outage, stopped
from guardrail.testing import FakeGuard
from guardrail.types import Action, Verdict

PASS, STEER, FLAG = Action.PASS, Action.STEER, Action.FLAG
SENT = "a caution before what is sent"


def verdict_of(asked: Action | None, policy: Policy, *, can_steer: bool = True) -> Verdict:
    """As a guard gives it; without an action, that of an outage."""
    plain = FakeGuard(policy=policy).check("fine")
    action = applied(asked, policy, can_steer=can_steer, beyond=False)
    if asked is None:
        failed: Any = {"score": None, "reason": "detector_failed"}
        return replace(plain, action=action, would_be=on_outage(policy), **failed)
    return replace(plain, action=action, would_be=asked)


def slowly_settled(
    asked: Action | None, policy: Policy, on_flag: str, *, has_place: bool, can_steer: bool
) -> tuple[str, Action]:
    """What is done and the action that is told: the first row that holds."""
    flagged = ("pass" if on_flag == "annotate" else "flag", FLAG)
    own = STEER if can_steer else PASS  # what the guard's own model would have had done to it
    rows = [
        (policy.mode == "shadow", ("pass", PASS)),
        (asked is None and policy.fail == "closed", ("flag", FLAG)),
        (asked is None or asked is PASS, ("pass", PASS)),
        (asked is FLAG, flagged),
        (policy.unsteerable == "pass", ("pass", PASS)),
        (policy.unsteerable == "caution" and has_place, ("caution", own)),
        (FLAG in policy.actions, flagged),
        (True, ("pass", own)),
    ]
    return next(found for holds, found in rows if holds)


@pytest.mark.parametrize("mode", ["enforce", "shadow"])
@pytest.mark.parametrize("fail", ["closed", "open"])
def test_every_verdict_comes_to_what_the_slow_account_says(mode: Any, fail: Any) -> None:
    for actions, unsteerable, own, other, has_place, can_steer in product(
        ({STEER, FLAG}, {STEER}, {FLAG}, set()),
        ("flag", "caution", "pass"),
        ("refuse", "annotate"),
        (None, "refuse", "raise", "annotate"),
        (True, False),
        (True, False),
    ):
        rules: dict[str, Any] = {"actions": actions, "unsteerable": unsteerable, "on_flag": own}
        policy = Policy(mode=mode, fail=fail, **rules)
        for asked in (None, PASS, *sorted(actions)):
            verdict = verdict_of(asked, policy, can_steer=can_steer)
            found = settled(
                verdict,
                policy,
                caution=lambda words, sent=SENT if has_place else None: sent,
                on_flag=other,
            )
            wanted = slowly_settled(
                asked, policy, other or own, has_place=has_place, can_steer=can_steer
            )
            assert (found.done, found.verdict.action) == wanted, (policy, asked, other)
            assert found.cautioned == (SENT if found.done == "caution" else None)


def test_an_outage_is_refused_whatever_the_guard_says_that_had_it() -> None:
    policy = Policy()
    verdict = replace(verdict_of(None, policy), action=PASS, would_be=PASS)
    after = settled(verdict, policy, caution=lambda words: SENT, on_flag="annotate")
    assert (after.done, after.verdict.action) == ("flag", FLAG)
    assert isinstance(stopped(after.verdict), DetectorError)


def test_a_stopped_call_is_an_outage_or_a_finding() -> None:
    policy = Policy(fail="open", unsteerable="flag")
    # The score asks for steering, and the edit failed.
    failed = replace(verdict_of(STEER, policy), action=PASS, reason="detector_failed")
    after = settled(failed, policy, caution=lambda words: None)
    assert after == Settled(replace(failed, action=FLAG), "flag")
    assert isinstance(stopped(after.verdict), GuardrailViolation)
    assert isinstance(stopped(verdict_of(FLAG, Policy())), GuardrailViolation)
    assert isinstance(stopped(verdict_of(None, Policy())), DetectorError)


@pytest.mark.parametrize("own", ["refuse", "raise", "annotate"])
@pytest.mark.parametrize("other", [None, "refuse", "raise", "annotate"])
def test_a_reaction_is_the_policys_or_another_and_goes_on_record(own: Any, other: Any) -> None:
    lines: list[Any] = []
    guard = FakeGuard(policy=Policy(on_flag=own))
    reaction = Reaction(guard, other, audit=lambda *line: lines.append(line))
    assert reaction.on_flag == (other or own)
    after = reaction.settle(guard.check("bad"))
    assert after.done == ("pass" if reaction.on_flag == "annotate" else "flag")
    assert lines == [(after.verdict, {"event": "call", "done": after.done})]
    if reaction.on_flag == "raise":
        with pytest.raises(GuardrailViolation):
            reaction.stop(after.verdict)
    else:
        reaction.stop(after.verdict)


def test_a_reaction_says_one_thing_about_flags() -> None:
    unknown: Any = "ignore"
    with pytest.raises(ConfigurationError, match="refuse, raise or annotate"):
        Reaction(FakeGuard(), unknown)
    with pytest.raises(ConfigurationError, match="give one"):
        Reaction.of(FakeGuard(), "raise", fallback=print)
    fallback: Any = "no"
    with pytest.raises(ConfigurationError, match="cannot be called"):
        Reaction.of(FakeGuard(), None, fallback=fallback)
    answering = Reaction.of(FakeGuard(policy=Policy(on_flag="raise")), None, fallback=print)
    assert answering.on_flag == "refuse"  # the fallback stands for what is not sent
