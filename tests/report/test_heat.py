"""Scores as colours, and text that is safe to show."""

from __future__ import annotations

from guardrail.report.heat import MIDDLE_SCORE, scale_for, shown
from guardrail.types import Action, Modality, Verdict


def verdict(score: float | None = 0.9, steer: float = 0.6, flag: float = 1.1) -> Verdict:
    return Verdict(
        action=Action.PASS,
        would_be=Action.PASS,
        score=score,
        tau_steer=steer,
        tau_flag=flag,
        layers=(1,),
        modality=Modality.TEXT,
        artefact_id="guard-0123",
        reason="score" if score is not None else "detector_failed",
    )


def test_the_scale_is_even_around_the_middle_and_holds_what_matters():
    scale = scale_for(verdict(score=1.9))
    low, high = scale.ends
    assert low < 0 < 1 < 1.9 < high
    assert (low + high) / 2 == MIDDLE_SCORE
    assert scale.share(0.5) == 0
    assert scale.share(-1e9) == -1
    assert scale.rgb(0.5)[0] == scale.rgb(0.5)[2]
    red, _, blue = scale.rgb(high)
    assert red > blue + 100
    red, _, blue = scale.rgb(low)
    assert blue > red + 100
    assert scale_for(verdict(score=None, steer=1e6, flag=2e6)).half == 2.5  # not useless
    assert scale_for(verdict(score=0.5, steer=0.5, flag=0.6)).half == 1.0


def test_text_cannot_steer_a_terminal_or_turn_what_follows_round():
    assert shown("a\x1b[31mb\u202ec\x00d\te") == "a\ufffd[31mb\ufffdc\ufffdd    e"
