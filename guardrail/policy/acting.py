"""From a score or an outage to what is done: the one place that knows a policy's rules of acting.

Everybody else asks here: what a score or an outage asks for, what of that is done to a prompt whose
model the guard runs, and to a call of a model that it does not run. An outage is a detector that
failed, and with it a steer that could not be carried out.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING

from guardrail.errors import DetectorError, GuardrailViolation
from guardrail.types import Action

if TYPE_CHECKING:
    from guardrail.policy.policy import Policy, Thresholds
    from guardrail.types import Verdict

# ---- what is asked for


def action_for(
    score: float, thresholds: Thresholds, policy: Policy, *, can_steer: bool = True
) -> Action:
    """What a score asks for: flag above the flag threshold, steer above the steering one.

    The comparison is strict, as in the calibration: a score equal to the threshold passes. A flag
    that the policy does not allow becomes a steer, and a steer that is not allowed a pass. An
    artefact that only detects (`can_steer` false) asks for a steer all the same, so that its
    verdicts say so, unless `unsteerable` has what cannot be steered flagged.

    Raises:
        ValueError: the score is not finite; it has no action, the detector failed.
    """
    if not math.isfinite(score):
        raise ValueError(f"no action for a score of {score}")
    if score > thresholds.flag and Action.FLAG in policy.actions:
        return Action.FLAG
    if score > thresholds.steer and Action.STEER in policy.actions:
        return Action.STEER if can_steer or not _flags_unsteerable(policy) else Action.FLAG
    return Action.PASS


def answer_action(score: float, threshold: float, policy: Policy) -> Action:
    """What a window of an answer asks for, at its own threshold; an outage where it is not finite.

    Nothing is steered here: the words are said.
    """
    if not math.isfinite(score):
        return on_outage(policy)
    flagged = score > threshold and Action.FLAG in policy.actions
    return Action.FLAG if flagged else Action.PASS


def on_outage(policy: Policy) -> Action:
    """What an outage asks for: a flag where the policy fails closed, whatever actions it allows.

    `actions` says what findings may lead to, and an outage is none.
    """
    return Action.FLAG if policy.fail == "closed" else Action.PASS


def outranks_outage(action: Action, policy: Policy) -> bool:
    """Whether what one part of a request asks for counts, and not the outage in another part.

    Where outages pass, they must not hide what the rest of the request was found to be.
    """
    return action is not Action.PASS and on_outage(policy) is Action.PASS


def effective_thresholds(policy: Policy, *, can_steer: bool) -> frozenset[Action]:
    """The actions whose thresholds make a difference to what is done."""
    felt = can_steer or _flags_unsteerable(policy)
    return policy.actions if felt else policy.actions - {Action.STEER}


# ---- what is done to a prompt


def enforces(rules: Policy | Verdict) -> bool:
    """Whether anything is done at all.

    In shadow mode nothing is: a guard is there to be compared with an app that runs without one, so
    it judges and tells, and nothing is changed, refused or stopped.
    """
    return rules.mode == "enforce"


def enforced(action: Action, rules: Policy | Verdict) -> Action:
    """What is done where `action` is asked for: nothing, in shadow mode."""
    return action if enforces(rules) else Action.PASS


def may_steer(policy: Policy) -> bool:
    """Whether a prompt may ever be edited."""
    return enforces(policy) and Action.STEER in policy.actions


def within_reach(
    action: Action, policy: Policy, *, can_steer: bool, beyond: bool, earlier: bool
) -> Action:
    """What can be done of what is asked for.

    Without a steering layer a steer passes, and the verdict says what was asked for. A prompt that
    is already more unsafe than an edit may reach (`beyond`) is flagged where flags are allowed, and
    so is one whose score is of an `earlier` message, if the policy wants that.
    """
    flags = can_steer and Action.FLAG in policy.actions
    if action is Action.STEER and flags and (beyond or (earlier and policy.earlier == "flag")):
        return Action.FLAG
    if action is Action.STEER and (beyond or not can_steer):
        return Action.PASS
    return action


def applied(
    asked: Action | None, policy: Policy, *, can_steer: bool, beyond: bool, earlier: bool = False
) -> Action:
    """What is done to a prompt that asks for an action, or had an outage (None)."""
    if asked is None:
        return enforced(on_outage(policy), policy)
    reached = within_reach(asked, policy, can_steer=can_steer, beyond=beyond, earlier=earlier)
    return enforced(reached, policy)


def stops(action: Action, on_flag: str, *, outage: bool) -> bool:
    """Whether what is done keeps a prompt from its answer.

    A flag does, unless `on_flag` only annotates; an outage is no finding, and nothing to annotate.
    """
    return action is Action.FLAG and (outage or on_flag != "annotate")


# ---- what is done to a call of a model that the guard does not run


def passes_unchecked(error: BaseException, policy: Policy) -> bool:
    """Whether a request goes on that could not be checked, for this error.

    Only an outage does where the policy fails open: what cannot be read, a full queue or a check
    that takes too long are none. In shadow mode everything goes on.
    """
    outage = isinstance(error, DetectorError) and on_outage(policy) is Action.PASS
    return outage or not enforces(policy)


def is_refused_outage(verdict: Verdict, policy: Policy) -> bool:
    """Whether a verdict is an outage that the policy refuses: no finding, whoever asks."""
    failed = verdict.reason == "detector_failed"
    return failed and enforces(verdict) and on_outage(policy) is Action.FLAG


def wants_caution(verdict: Verdict, policy: Policy) -> bool:
    """Whether a call is to be made with words of caution, which stand in for steering."""
    return policy.unsteerable == "caution" and _wants_steering(verdict, policy)


def unsteered(verdict: Verdict, policy: Policy, *, cautioned: bool) -> Verdict:
    """The verdict on a call whose model cannot be steered; `cautioned` where it has a caution.

    A refused outage is a flag, whatever the guard says that had it. What would be steered passes
    under `unsteerable = "pass"`, and is flagged where no caution stands in for steering and flags
    are allowed.
    """
    if is_refused_outage(verdict, policy):
        return replace(verdict, action=Action.FLAG, would_be=Action.FLAG)
    if not _wants_steering(verdict, policy):
        return verdict
    if policy.unsteerable == "pass":
        return replace(verdict, action=Action.PASS)
    flagged = not cautioned and Action.FLAG in policy.actions
    return replace(verdict, action=Action.FLAG) if flagged else verdict


def stopped(verdict: Verdict) -> DetectorError | GuardrailViolation:
    """The error for a call that is not made, or for an answer that is not given out.

    A refused outage asks for a flag itself (`on_outage`). Where only an edit failed and the policy
    fails open, the score still asks for steering, so what is stopped then is a finding.
    """
    if verdict.reason == "detector_failed" and verdict.would_be is Action.FLAG:
        return DetectorError("the detector failed, and the policy fails closed")
    return GuardrailViolation(verdict)


def one_reading(policy: Policy) -> Policy:
    """The rules for pictures that go on byte by byte: they must have one reading.

    Whoever leaves bytes as they are hands on what another decoder may read in another way.
    """
    return policy.model_copy(update={"pictures": "refuse"})


def _wants_steering(verdict: Verdict, policy: Policy) -> bool:
    # An artefact that only detects passes what it cannot steer, and says so in `would_be`.
    return (
        enforces(verdict)
        and verdict.action is not Action.FLAG
        and verdict.would_be is Action.STEER
        and Action.STEER in policy.actions
    )


def _flags_unsteerable(policy: Policy) -> bool:
    return policy.unsteerable == "flag" and Action.FLAG in policy.actions
