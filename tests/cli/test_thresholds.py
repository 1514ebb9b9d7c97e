from __future__ import annotations

import io

import pytest

from guardrail.artefact import Artefact
from guardrail.artefact.header import Calibration
from guardrail.cli.thresholds import earlier_rows, show_thresholds
from guardrail.policy import Thresholds
from guardrail.types import Modality

ROW = {
    "thresholds": {"steer": 0.25, "flag": 0.5},
    "targets": {"steer": 0.1, "flag": 0.02},
    "source": "safe prompts",
    "n": 120,
}


@pytest.fixture(scope="module")
def artefact(saved):
    return Artefact.load(saved.artefact["pass"])


def _after(artefact, earlier):
    return artefact.revised(extra={"calibrated_from": earlier})


def test_what_was_in_force_before_is_told(artefact):
    made = _after(artefact, {"calibration": {"text": ROW}})
    expected = "steer at 0.250 (target 10.0%), flag at 0.500 (target 2.0%), n = 120, safe prompts"
    assert earlier_rows(made.header) == [("text before", expected)]


def test_what_was_kept_is_not_told_twice(artefact):
    row = artefact.header.calibration[Modality.TEXT]
    same = row.model_dump(mode="json", include=set(ROW))
    made = _after(artefact, {"calibration": {"text": same, "image": ROW}})
    assert [name for name, _ in earlier_rows(made.header)] == ["image before"]


@pytest.mark.parametrize(
    "earlier", [None, 3, {}, {"calibration": 3}, {"calibration": {"text": {"n": "many"}}}]
)
def test_notes_of_another_form_are_passed_over(artefact, earlier):
    assert earlier_rows(_after(artefact, earlier).header) == []


def test_a_modality_that_had_none_says_so_and_a_sample_its_whole(artefact):
    scores = tuple(float(i) for i in range(10))
    thresholds = Thresholds(steer=8, flag=9)
    row = Calibration(scores=scores, thresholds=thresholds, source="mine", n=10)
    made = artefact.revised(
        calibration={Modality.TEXT: row, Modality.IMAGE: row},
        extra={"calibration": {"image": {"seen": 77, "kept": 10}, "text": {"seen": 10}}},
    )
    stdout = io.StringIO()
    show_thresholds(stdout, made, before=artefact)
    lines = {tuple(line.split()[:2]): line.split()[2:] for line in stdout.getvalue().splitlines()}
    assert lines["image", "steer"] == ["none", "8.000", "5.0%", "10", "of", "77"]
    assert lines["text", "flag"][1:] == ["9.000", "1.0%", "10"]
