"""A snapshot beside the calibration."""

from __future__ import annotations

import json

import numpy as np
import pytest

from guardrail.errors import ConfigurationError
from guardrail.monitor import Monitor, compare
from guardrail.types import Action, Modality


def _counted(artefact, **scores):
    monitor = Monitor(artefact)
    for name, found in scores.items():
        for score in np.asarray(found).tolist():
            monitor.add(Modality(name), Action.PASS, score)
    return monitor.snapshot()


def test_like_traffic_raises_no_alarm(artefact):
    rng = np.random.default_rng(1)
    found = compare(
        _counted(artefact, text=rng.normal(0, 0.5, 500), image=rng.normal(0.2, 0.5, 300)), artefact
    )
    assert not found.alarm
    assert found.meaning == ""
    assert [row.finding for row in found.modalities] == ["no alarm", "no alarm"]
    assert found.tests == 6
    image, text = found.modalities
    assert (text.n, text.reference_n, text.reference_source) == (500, 999, "safe prompts")
    assert text.median == pytest.approx(0, abs=0.1)
    steer, flag = text.exceedances
    assert (steer.action, steer.target, flag.target, steer.n) == ("steer", 0.05, 0.01, 500)
    assert steer.low < steer.rate < steer.high
    assert image.reference is Modality.IMAGE


@pytest.mark.parametrize("shift", [0.5, -0.5])
def test_a_shift_of_half_a_standard_deviation_is_found_in_500_inputs(artefact_with, shift):
    rng, alarms, draws = np.random.default_rng(2), 0, 60
    for _ in range(draws):
        artefact = artefact_with(text=rng.normal(size=1000))
        snapshot = _counted(artefact, text=rng.normal(shift, 1, 500))
        alarms += compare(snapshot, artefact).alarm
    assert alarms >= 0.75 * draws  # simulated: 0.99 upwards, 0.86 downwards


def test_false_alarms_are_rarer_than_stated(artefact_with):
    rng, alarms, draws = np.random.default_rng(3), 0, 150
    for _ in range(draws):
        artefact = artefact_with(text=rng.normal(size=300), image=rng.normal(size=200))
        snapshot = _counted(artefact, text=rng.normal(size=400), image=rng.normal(size=400))
        alarms += compare(snapshot, artefact, alpha=0.1).alarm
    assert alarms <= 25  # of 150 at 10 %: more has a chance of 0.4 %


def test_a_shift_says_what_it_is_and_what_it_may_mean(artefact):
    rng = np.random.default_rng(4)
    found = compare(_counted(artefact, text=rng.normal(0.5, 0.5, 500)), artefact)
    (text,) = found.modalities
    assert (found.alarm, text.finding) == (True, "alarm")
    index, steer, flag = text.reasons
    assert "population stability index" in index
    assert "steer threshold, whose target is 5.0%" in steer
    assert "flag threshold" in flag
    assert "guardrail calibrate" in found.meaning
    assert "attacks" in found.meaning


def test_a_few_attacks_show_in_the_flagged_share_alone(artefact):
    rng = np.random.default_rng(5)
    scores = np.concatenate([rng.normal(0, 0.5, 470), rng.normal(3, 0.1, 30)])
    (text,) = compare(_counted(artefact, text=scores), artefact).modalities
    assert text.psi < 0.2
    assert text.finding == "alarm"
    assert any("flag threshold" in reason for reason in text.reasons)


def test_a_large_index_that_few_inputs_explain_is_no_alarm(artefact_with):
    rng = np.random.default_rng(8)
    seen = []
    for _ in range(40):
        artefact = artefact_with(text=rng.normal(size=99))
        snapshot = _counted(artefact, text=rng.normal(size=100))
        (row,) = compare(snapshot, artefact, least=50).modalities
        seen.append((row.psi > 0.2, row.finding))
    assert any(large for large, _ in seen)
    assert sum(finding == "alarm" for _, finding in seen) <= 3


def test_a_large_limit_leaves_the_index_out_of_it(artefact):
    low = _counted(artefact, text=np.random.default_rng(6).normal(-0.6, 0.5, 500))
    assert compare(low, artefact).alarm
    assert not compare(low, artefact, psi_limit=50).alarm


def test_too_few_inputs_are_not_judged(artefact):
    found = compare(_counted(artefact, text=[9.0] * 99), artefact)
    (text,) = found.modalities
    assert (text.finding, text.n, text.psi, text.exceedances) == ("too few", 99, None, ())
    assert not found.alarm
    assert compare(_counted(artefact, text=[9.0] * 100), artefact).alarm
    assert compare(_counted(artefact, text=[9.0] * 99), artefact, least=99).alarm


def test_no_traffic_and_no_calibration_are_no_alarm(artefact):
    assert compare(Monitor(artefact).snapshot(), artefact).modalities == ()
    bare = artefact.revised(calibration={})
    (row,) = compare(_counted(bare, text=[0.0] * 200), bare).modalities
    assert (row.finding, row.reference) == ("no calibration", None)


def test_pictures_without_a_calibration_are_held_to_that_of_texts(artefact_with):
    rng = np.random.default_rng(7)
    artefact = artefact_with(text=rng.normal(size=300))
    (row,) = compare(_counted(artefact, image=rng.normal(size=200)), artefact).modalities
    assert (row.modality, row.reference, row.finding) == ("image", "text", "no alarm")


def test_scores_that_all_tie_can_be_compared(artefact_with):
    artefact = artefact_with(text=[0.0] * 150)
    found = compare(_counted(artefact, text=[0.0] * 150), artefact)
    assert not found.alarm
    assert compare(_counted(artefact, text=[1.0] * 150), artefact).alarm


def test_outages_are_told_and_are_no_finding(artefact):
    monitor = Monitor(artefact)
    for _ in range(200):
        monitor.add(Modality.TEXT, Action.FLAG, None)
        monitor.record(None)
    found = compare(monitor.snapshot(), artefact)
    (text,) = found.modalities
    assert (found.alarm, found.outages, text.outages, text.finding) == (False, 200, 200, "too few")


def test_it_is_plain_data(artefact):
    snapshot = _counted(artefact, text=np.random.default_rng(8).normal(0.5, 0.5, 200))
    document = json.loads(json.dumps(compare(snapshot, artefact).to_dict(), allow_nan=False))
    assert document["modalities"][0]["exceedances"][1]["action"] == "flag"


def test_what_cannot_be_compared_is_refused(artefact, artefact_with):
    snapshot = _counted(artefact, text=[0.0] * 200)
    with pytest.raises(ConfigurationError, match="the guard ran with"):
        compare(snapshot, artefact_with(text=range(99)))
    for bad in ({"psi_limit": 0}, {"alpha": 1}, {"least": 0}):
        with pytest.raises(ConfigurationError, match="must be positive"):
            compare(snapshot, artefact, **bad)
    text = snapshot.modalities[Modality.TEXT]
    moved = text.model_copy(update={"edges": tuple(edge + 1 for edge in text.edges)})
    edited = snapshot.model_copy(update={"modalities": {Modality.TEXT: moved}})
    with pytest.raises(ConfigurationError, match="edited"):
        compare(edited, artefact)


def test_videos_are_compared_with_videos_and_with_nothing_else(artefact_with):
    """The highest of several windows lies higher than single pictures, without any shift."""
    rng = np.random.default_rng(8)
    windows = rng.normal(0, 0.5, (500, 10)).max(axis=1)
    pictures = {name: rng.normal(0, 0.5, 500) for name in ("text", "image")}
    borrowed = artefact_with(**pictures)
    (row,) = compare(_counted(borrowed, video=windows), borrowed).modalities
    assert (row.modality, row.finding, row.n) == ("video", "no calibration", 500)
    own = artefact_with(**pictures, video=rng.normal(0, 0.5, (500, 10)).max(axis=1))
    (row,) = compare(_counted(own, video=windows), own).modalities
    assert (row.finding, row.reference) == ("no alarm", "video")
    (row,) = compare(_counted(own, video=windows + 1), own).modalities
    assert row.finding == "alarm"
