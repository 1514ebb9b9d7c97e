"""Thresholds from benign scores, and from a user's own traffic."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pytest
from pydantic import ValidationError

from guardrail.artefact.header import Rates
from guardrail.errors import (
    ArtefactMismatchError,
    CalibrationError,
    ConfigurationError,
    GuardrailError,
)
from guardrail.fit.calibrate import calibrate, calibration
from guardrail.metrics import Rate
from guardrail.model.load import LoadedModel, wrap_model
from guardrail.policy import Limits, Policy
from guardrail.testing import tiny_artefact
from guardrail.types import Action, Modality, Verdict

if TYPE_CHECKING:
    from collections.abc import Sequence

    from guardrail.artefact import Artefact

RATES = Rates(steer=0.05, flag=0.01)


@dataclass
class FakeGuard:
    """Scores a number by itself; text unless its value is given as (score, modality)."""

    artefact: Artefact
    loaded: LoadedModel
    policy: Policy = field(default_factory=lambda: Policy(limits=Limits(queue=64)))
    chunks: list[int] = field(default_factory=list)

    def check_batch(self, values: Sequence[Any]) -> list[Verdict]:
        self.chunks.append(len(values))
        return [self.verdict(value) for value in values]

    def verdict(self, value: Any) -> Verdict:
        score, modality = value if isinstance(value, tuple) else (value, Modality.TEXT)
        return Verdict(
            action=Action.PASS,
            would_be=Action.PASS,
            score=score,
            tau_steer=0.5,
            tau_flag=1.0,
            layers=(1,),
            modality=modality,
            artefact_id=self.artefact.artefact_id,
            reason="score" if score is not None else "detector_failed",
        )


@pytest.fixture(scope="module")
def artefact(llava: Any) -> Artefact:
    made = tiny_artefact(llava.model, llava.processor)
    both = {m: made.header.calibration[Modality.TEXT] for m in (Modality.TEXT, Modality.IMAGE)}
    return made.revised(calibration=both, warnings=("kept", "calibration: old"))


@pytest.fixture
def guard(artefact: Artefact, llava: Any) -> FakeGuard:
    return FakeGuard(artefact, wrap_model(llava.model, llava.processor))


def test_thresholds_are_not_set_on_another_model_than_the_artefacts(
    artefact: Artefact, llama: Any
) -> None:
    guard = FakeGuard(artefact, wrap_model(llama.model, llama.processor))
    with pytest.raises(ArtefactMismatchError, match="weights_digest"):
        calibrate(guard, [i / 100 for i in range(150)])
    assert guard.chunks == []


def test_thresholds_are_conformal_quantiles_of_the_scores() -> None:
    scores = [i / 200 for i in range(199)]
    made = calibration(list(reversed(scores)), RATES, source="mine")
    assert made.thresholds.steer == scores[189]  # the 190th of 199: 200 * 0.95
    assert made.thresholds.flag == scores[197]
    assert made.scores == tuple(scores)
    assert (made.n, made.source, made.targets) == (199, "mine", RATES)


def test_intervals_are_those_of_the_share_beyond_each_threshold() -> None:
    made = calibration([i / 200 for i in range(199)], RATES, source="mine")
    assert made.intervals == {"steer": Rate(9, 199).interval(), "flag": Rate(1, 199).interval()}
    assert made.intervals["steer"][0] < RATES.steer < made.intervals["steer"][1]


def test_ties_hit_fewer_inputs_than_the_target_never_more() -> None:
    made = calibration([0.0] * 150 + [1.0] * 49, Rates(steer=0.3, flag=0.1), source="mine")
    assert (made.thresholds.steer, made.thresholds.flag) == (0.0, 1.0)
    strict = calibration([0.0] * 150 + [1.0] * 49, Rates(steer=0.2, flag=0.1), source="mine")
    assert strict.thresholds.steer == 1.0


@pytest.mark.parametrize(("n", "fits"), [(98, False), (99, True)])
def test_too_few_inputs_for_the_target_are_refused(n: int, fits: bool) -> None:
    scores = [float(i) for i in range(n)]
    if fits:
        assert calibration(scores, RATES, source="mine").thresholds.flag == 98.0
    else:
        with pytest.raises(
            CalibrationError, match=r"98 benign inputs \(mine\).*at least 99"
        ) as caught:
            calibration(scores, RATES, source="mine")
        # what the message offers instead holds
        offered = float(str(caught.value).split("target to ")[1].split(" ")[0])
        assert offered == pytest.approx(1 / 99, rel=0.01)


def test_own_traffic_makes_a_new_artefact_with_its_parent(guard: FakeGuard) -> None:
    made = calibrate(guard, [i / 100 for i in range(150)])
    assert made.header.parent == guard.artefact.artefact_id
    assert made.artefact_id != guard.artefact.artefact_id
    text = made.header.calibration[Modality.TEXT]
    assert (text.source, text.n) == ("benign traffic", 150)
    assert text.thresholds.steer == 1.43
    assert made.tensors.keys() == guard.artefact.tensors.keys()


def test_a_modality_that_was_not_seen_keeps_its_thresholds(guard: FakeGuard) -> None:
    made = calibrate(guard, [i / 100 for i in range(150)])
    old = guard.artefact.header.calibration[Modality.IMAGE]
    assert made.header.calibration[Modality.IMAGE] == old
    assert made.header.warnings == ("kept",)


def test_a_modality_with_too_few_requests_keeps_its_thresholds_and_says_so(
    guard: FakeGuard, caplog: Any
) -> None:
    values = [i / 100 for i in range(150)] + [(0.5, Modality.IMAGE)] * 20
    with caplog.at_level(logging.WARNING):
        made = calibrate(guard, values)
    old = guard.artefact.header.calibration
    assert made.header.calibration[Modality.IMAGE] == old[Modality.IMAGE]
    assert made.header.calibration[Modality.TEXT] != old[Modality.TEXT]
    first, second = made.header.warnings
    assert first == "kept"
    assert second.startswith("calibration: image: 20 benign inputs")
    assert "thresholds kept as they were" in caplog.text


def test_both_modalities_get_their_own(guard: FakeGuard) -> None:
    texts = [i / 100 for i in range(120)]
    images = [(5 + i / 100, Modality.IMAGE) for i in range(120)]
    made = calibrate(guard, [x for pair in zip(texts, images, strict=True) for x in pair])
    both = made.header.calibration
    assert both[Modality.IMAGE].thresholds.flag == pytest.approx(
        both[Modality.TEXT].thresholds.flag + 5
    )


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([], "no request"),
        ([0.1] * 98, "text: 98 benign inputs"),
        ([0.1] * 5 + [(0.1, Modality.IMAGE)] * 7, "text: 5 .*; image: 7 "),
        ([0.1] * 200 + [None], "the detector failed"),
    ],
)
def test_what_cannot_be_calibrated_on_is_refused(
    guard: FakeGuard, values: list, message: str
) -> None:
    with pytest.raises(CalibrationError, match=message):
        calibrate(guard, values)


def test_a_long_stream_is_scored_in_chunks_the_queue_can_hold(guard: FakeGuard) -> None:
    calibrate(guard, (i / 100 for i in range(150)))
    assert guard.chunks == [64, 64, 22]


def test_rates_the_wrong_way_round_are_refused(guard: FakeGuard) -> None:
    with pytest.raises(ConfigurationError, match="steer_rate"):
        calibrate(guard, [0.1] * 150, steer_rate=0.01, flag_rate=0.05)
    assert guard.chunks == []


def test_rates_that_are_no_shares_are_refused_before_anything_is_scored(guard: FakeGuard) -> None:
    with pytest.raises((ValidationError, GuardrailError)):
        calibrate(guard, [0.1] * 150, steer_rate=1.5)
    assert guard.chunks == []
