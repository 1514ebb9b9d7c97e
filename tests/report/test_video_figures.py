"""What is drawn of an explained video."""

from __future__ import annotations

from dataclasses import replace
from io import StringIO
from typing import Any

import pytest
from PIL import Image

from guardrail.cli.heat_text import show_explanation
from guardrail.evaluation.explanation import Explanation, Frame, Position, Video, WindowScore
from guardrail.report.explain_figure import explanation_png
from guardrail.report.explain_page import explanation_html, explanation_page
from guardrail.report.heat import highest_rows, marks
from guardrail.report.video_figures import video_parts, window_curve
from guardrail.types import Action, Modality, Verdict, Window

SCORES = (0.1, 0.9, None, 0.4)


@pytest.fixture
def explained() -> Explanation:
    """Words around a video of four frames with two positions each, one of them hidden."""
    verdict = Verdict(
        action=Action.PASS,
        would_be=Action.PASS,
        score=0.4,
        tau_steer=0.6,
        tau_flag=1.1,
        layers=(1,),
        modality=Modality.VIDEO,
        artefact_id="guard-0",
        window=Window(number=0, of=1, start_s=0.0, end_s=1.5, frames=4),
    )
    scores = [score for score in SCORES for _ in range(2)]
    kinds: list[Any] = ["text", *["video"] * 8, "template"]
    positions = [
        Position(index=i, text=f"w{i}", kind=kind, role=None, score=score)
        for i, (kind, score) in enumerate(zip(kinds, [0.2, *scores, 0.4], strict=True))
    ]
    frames = [
        Frame(time_s=i / 2, position=2 + 2 * i, score=s, image=Image.new("RGB", (16, 9)))
        for i, s in enumerate(SCORES)
    ]
    video = Video(positions=tuple(range(1, 9)), frames=tuple(frames))
    return Explanation(
        model="m", verdict=verdict, positions=tuple(positions), pictures=(), videos=(video,)
    )


def scanned(explained: Explanation) -> Explanation:
    rows = [(0, 0.0, 3.5, -0.5), (0, 4.0, 7.5, 0.8), (None, 0.0, 7.5, 0.4)]
    windows = tuple(
        WindowScore(video=v, start_s=a, end_s=b, frames=8, score=s) for v, a, b, s in rows
    )
    return replace(explained, windows=windows)


def text_of(explanation: Explanation) -> str:
    out = StringIO()
    show_explanation(out, explanation)
    return out.getvalue()


def test_a_video_is_one_mark_in_the_prompt_and_its_slots_are_named(explained: Explanation) -> None:
    assert [mark.text for mark in marks(explained)] == [
        "w0",
        "[video 1: 8 positions, 0.0 to 1.5 s]",
        "w9",
    ]
    best = highest_rows(explained)[0]
    assert (best.text, best.source, best.score) == ("slot 3 of 8", "video 1", 0.9)


def test_the_score_after_each_frame_stands_with_its_time(explained: Explanation) -> None:
    (part,) = video_parts(explained)
    assert [(frame["time"], frame["score"]) for frame in part["frames"]] == [
        (0.0, 0.1),
        (0.5, 0.9),
        (1.0, None),
        (1.5, 0.4),
    ]
    assert "3 frames; the highest score is 0.90, at 0.5 s" in part["figure"]
    shown = text_of(explained)
    assert "0.0 s 0.10  0.5 s 0.90  1.0 s none  1.5 s 0.40" in shown
    assert "answer frames" not in shown


def test_every_window_of_a_long_video_is_drawn_along_time(explained: Explanation) -> None:
    assert window_curve(explained) is None
    curve = window_curve(scanned(explained))
    assert curve is not None
    assert "2 windows; the highest score is 0.80, at 4.0 to 7.5 s" in curve
    lines = text_of(scanned(explained)).splitlines()
    (highest,) = [line for line in lines if line.rstrip().endswith("highest")]
    assert highest.split()[:2] == ["2", "4.0"]
    assert any(line.startswith("answer frames") for line in lines)


def test_a_page_holds_frames_and_curve_and_a_part_of_a_page_too(explained: Explanation) -> None:
    page = explanation_page(scanned(explained))
    assert page.count('alt="Frame at') == 4
    assert "window by window" in page
    assert "window 1 of 1, 0.0 to 1.5 s" in page
    brief = str(explanation_html(explained, heading="h4", brief=True))
    assert "frame by frame" in brief
    assert "window by window" not in brief
    assert 'href="#picture-0"' not in page


def test_of_many_frames_a_page_shows_some_and_draws_all(explained: Explanation) -> None:
    (video,) = explained.videos
    many = tuple(replace(video.frames[0], time_s=float(i)) for i in range(60))
    (part,) = video_parts(replace(explained, videos=(replace(video, frames=many),)))
    assert len(part["frames"]) == 16
    assert "60 frames" in part["figure"]


def test_frames_that_are_tied_to_no_position_are_admitted(explained: Explanation) -> None:
    untied = replace(explained, videos=(Video(positions=(), frames=(), note="not known"),))
    (part,) = video_parts(untied)
    assert (part["figure"], part["frames"], part["note"]) == (None, [], "not known")
    assert "not known" in text_of(untied)
    assert "Not known." in explanation_page(untied)


def test_a_figure_of_a_video_can_be_made(explained: Explanation) -> None:
    assert explanation_png(scanned(explained)).startswith(b"\x89PNG")


def test_windows_that_tie_have_one_highest_and_name_their_video(explained: Explanation) -> None:
    rows = [(0, 0.0, 3.5, 0.8), (1, 0.0, 3.5, 0.8), (None, 0.0, 3.5, 0.8)]
    windows = tuple(
        WindowScore(video=v, start_s=a, end_s=b, frames=8, score=s) for v, a, b, s in rows
    )
    out = StringIO()
    show_explanation(out, replace(explained, windows=windows))
    lines = out.getvalue().splitlines()
    (highest,) = [line for line in lines if line.rstrip().endswith(" highest")]
    assert highest.startswith("1 (video 1) ")  # the one that a verdict names
    assert any(line.startswith("2 (video 2) ") for line in lines)
