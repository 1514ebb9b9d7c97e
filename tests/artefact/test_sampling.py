"""Thresholds of videos belong to the sampling that they were set under."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import pytest
from PIL import Image

from guardrail.artefact.sampling import sampling_notes, sampling_record
from guardrail.guard import Guard
from guardrail.policy import Policy, Thresholds, VideoSampling
from guardrail.testing import tiny_artefact
from guardrail.types import Modality

if TYPE_CHECKING:
    from guardrail.artefact import Artefact

USUAL = VideoSampling().window


@pytest.fixture(scope="module")
def fitted(llava: Any) -> Artefact:
    return tiny_artefact(llava.model, llava.processor)


def policy(**sampling: Any) -> Policy:
    return Policy(video=VideoSampling(**sampling))


def calibrated(fitted: Artefact, under: Policy) -> Artefact:
    rows = fitted.header.calibration
    return fitted.revised(
        calibration={**rows, Modality.VIDEO: rows[Modality.TEXT]},
        extra={"calibration": {"video": {"seen": 9, **sampling_record(under)}}},
    )


def test_the_sampling_of_the_fit_is_no_cause_for_a_note(fitted: Artefact) -> None:
    assert list(sampling_notes(fitted, Policy())) == []
    assert list(sampling_notes(fitted, policy(fps=1))) == []  # re-centring knows windows alone


def test_another_window_than_that_of_re_centring_is_told(fitted: Artefact) -> None:
    (note,) = sampling_notes(fitted, policy(window=3))
    assert "windows of 3 frames" in note
    assert f"measured with {USUAL}" in note
    told = fitted.revised(data={"video_window": 3})
    assert list(sampling_notes(told, policy(window=3))) == []
    (note,) = sampling_notes(told, Policy())
    assert "measured with 3" in note


def test_a_calibration_holds_for_its_own_sampling_alone(fitted: Artefact) -> None:
    made = calibrated(fitted, policy(window=3, fps=1))
    assert list(sampling_notes(made, policy(window=3, fps=1))) == []
    (note,) = sampling_notes(made, policy(window=3))
    assert "fps 2.0 (1.0 then)" in note
    assert "window" not in note


def test_who_fixes_thresholds_or_reads_no_videos_is_told_nothing(
    fitted: Artefact, llava: Any
) -> None:
    fixed = {Modality.VIDEO: Thresholds(steer=1.0, flag=2.0)}
    assert list(sampling_notes(fitted, Policy(video={"window": 3}, thresholds=fixed))) == []
    without = tiny_artefact(llava.model, llava.processor, video=False)
    assert list(sampling_notes(without, policy(window=3))) == []


def test_a_guard_tells_it_once_and_only_who_asks_about_videos(
    fitted: Artefact, llava: Any, caplog: pytest.LogCaptureFixture
) -> None:
    frames = [Image.new("RGB", (40, 40), "red")] * 2
    video = [{"role": "user", "content": [{"type": "video", "video": frames}]}]
    with (
        caplog.at_level(logging.WARNING, "guardrail"),
        Guard((llava.model, llava.processor), fitted, policy=policy(window=3)) as guard,
    ):
        guard.check("text")
        assert not caplog.messages
        guard.check_batch([video, video])
    assert [m for m in caplog.messages if "windows of 3 frames" in m] == caplog.messages
    assert len(caplog.messages) == 1
