"""What an artefact says about the thresholds of videos."""

from __future__ import annotations

import pytest

from guardrail.artefact.header import Calibration
from guardrail.fit.video_notes import TRAFFIC, video_notes
from guardrail.policy import Thresholds
from guardrail.types import Modality


def calibration(source: str = "safe contrast prompts, drawn") -> Calibration:
    levels = Thresholds(steer=0.5, flag=1.0)
    return Calibration(scores=(0.0,), thresholds=levels, source=source, n=1)


@pytest.mark.parametrize("whose", [Modality.TEXT, Modality.IMAGE])
def test_borrowed_thresholds_are_named(whose: Modality) -> None:
    known = {m: calibration() for m in (Modality.TEXT, whose)}
    (note,) = video_notes(known, reads_videos=True)
    assert f"held to the thresholds of {whose} inputs" in note
    assert "guardrail calibrate" in note


def test_drawn_videos_of_one_window_give_no_rate_for_long_ones() -> None:
    (note,) = video_notes({Modality.VIDEO: calibration("prompts, filmed")}, reads_videos=True)
    assert "videos of one window (prompts, filmed)" in note


def test_nothing_is_said_of_videos_of_ones_own_or_where_none_are_read() -> None:
    assert not list(video_notes({Modality.VIDEO: calibration(TRAFFIC)}, reads_videos=True))
    assert not list(video_notes({Modality.TEXT: calibration()}, reads_videos=False))
