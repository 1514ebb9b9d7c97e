from __future__ import annotations

import json
from dataclasses import replace

import pytest

from guardrail.types import Action, Modality, Verdict, Window

VERDICT = Verdict(
    action=Action.PASS,
    would_be=Action.STEER,
    score=0.5,
    tau_steer=0.4,
    tau_flag=0.9,
    layers=(1, 2),
    modality=Modality.TEXT,
    artefact_id="guard-1",
    mode="shadow",
)
WINDOW = Window(number=1, of=3, start_s=0.0, end_s=2.0, frames=4)


@pytest.mark.parametrize(
    "verdict",
    [
        VERDICT,
        replace(VERDICT, window=WINDOW),
        replace(VERDICT, score=None, reason="detector_failed"),
    ],
)
def test_a_verdict_written_down_is_read_again(verdict):
    assert Verdict.from_dict(json.loads(json.dumps(verdict.to_dict()))) == verdict
