"""Which prompts are read as they stand, and what is drawn for them.

Text as a picture: all of it visible, the same every time, within its frame.

Clips that a fit draws itself.
"""

from __future__ import annotations

from collections import Counter
from itertools import pairwise
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from guardrail.errors import UnsupportedContentError
from guardrail.fit.dataset import SPLITS, ContrastSet, Prompt, neutral_prompts
from guardrail.fit.prompts import (
    HEIGHT,
    WIDTH,
    Sample,
    clip_request,
    draw_text,
    drawn_clip,
    meaningless_clips,
    meaningless_images,
    plain,
    spread,
    unfit_for_video,
)
from guardrail.policy import VideoSampling

if TYPE_CHECKING:
    from guardrail.types import Clip


@pytest.fixture(scope="module")
def contrast() -> ContrastSet:
    return ContrastSet(
        tuple(
            Prompt(text=f"TEXT {split} {label} {i}", label=label, split=split)
            for split in SPLITS
            for i in range(16)
            for label in ("unsafe", "safe")
        )
    )


def words(sample: Sample) -> str:
    (message,) = sample.request.messages
    assert message.role == "user"
    return str(message.parts[-1].text)


def test_plain_requests_are_the_prompts_that_some_decision_needs(contrast: ContrastSet) -> None:
    samples = plain(contrast)
    needed = [
        i
        for i, p in enumerate(contrast.prompts)
        if (p.split, p.label) != ("calibrate", "unsafe")  # thresholds come from safe ones
    ]
    assert sorted(s.index for s in samples) == needed
    assert all(words(s) == contrast.prompts[s.index].text for s in samples)
    assert {s.form for s in samples} == {"plain"}


def test_a_limit_thins_fit_and_select_but_never_what_thresholds_need(
    contrast: ContrastSet,
) -> None:
    every, some = plain(contrast), plain(contrast, 4)

    def count(samples: list[Sample], split: str) -> Counter[str]:
        chosen = [contrast.prompts[s.index] for s in samples]
        return Counter(p.kind for p in chosen if p.split == split)

    assert set(count(some, "fit").values()) == {4}
    assert set(count(some, "select").values()) == {2}
    assert count(some, "calibrate") == count(every, "calibrate")


def test_fewer_of_a_sample_are_all_out_of_it(contrast: ContrastSet) -> None:
    of_the_fit = {s.index for s in plain(contrast, 11)}
    fewer = {s.index for s in plain(contrast, 11, of_these=7)}
    assert fewer < of_the_fit
    assert len(fewer) == len({s.index for s in plain(contrast, 7)})
    assert not {s.index for s in plain(contrast, 7)} <= of_the_fit  # drawn anew they would not be
    assert {s.index for s in plain(contrast, 11, of_these=50)} == of_the_fit


def test_what_judges_a_fit_has_other_words_around_it(contrast: ContrastSet) -> None:
    assert len(neutral_prompts("fit")) >= 8
    assert len(neutral_prompts("held out")) >= 8
    assert not set(neutral_prompts("fit")) & set(neutral_prompts("held out"))


@pytest.mark.parametrize("limit", [1, 3, 7, 10, 30])
def test_items_are_spread_evenly(limit: int) -> None:
    found = spread(range(10), limit)
    assert len(found) == min(limit, 10)
    assert found == sorted(set(found))
    gaps = {b - a for a, b in pairwise(found)}
    assert len(gaps) <= 2
    assert max(gaps, default=1) - min(gaps, default=1) <= 1


def ink(text: str, seed: int = 0) -> np.ndarray:
    """Where the picture is darker than its ground."""
    grey = np.asarray(draw_text(text, seed=seed).convert("L"), dtype=int)
    return grey < grey[0, 0] - 60


def test_the_same_text_and_seed_give_the_same_picture() -> None:
    assert draw_text("a boat", seed=4).tobytes() == draw_text("a boat", seed=4).tobytes()
    assert draw_text("a boat", seed=4).tobytes() != draw_text("a boat", seed=5).tobytes()


@pytest.mark.parametrize("words", [1, 12, 40, 90])
def test_text_stays_inside_the_margins(words: int) -> None:
    rows, columns = np.nonzero(ink("harbour " * words))
    assert rows.min() >= 16
    assert columns.min() >= 16
    assert rows.max() < HEIGHT - 8
    assert columns.max() < WIDTH - 8


def test_more_words_leave_more_ink() -> None:
    assert 0 < ink("one").sum() < ink("one two three four").sum()


def test_a_picture_of_nothing_is_its_ground() -> None:
    assert not ink("").any()


def test_meaningless_pictures_have_one_colour_each_and_repeat_by_seed() -> None:
    first, again, other = (meaningless_images(8, seed=s) for s in (0, 0, 1))
    assert all(len(image.getcolors()) == 1 for image in first)
    assert [i.tobytes() for i in first] == [i.tobytes() for i in again]
    assert not {i.tobytes() for i in first} & {i.tobytes() for i in other}
    assert {(i.mode, i.size) for i in first} == {("RGB", (336, 336))}


def colours(clip: Clip) -> list[Any]:
    """The one colour of each frame."""
    found = [frame.getcolors(1) for frame in clip.frames]
    assert all(found)
    return [colour[0][1] for colour in found if colour]


def test_meaningless_clips_fill_a_window_at_the_default_rate() -> None:
    sampling = VideoSampling()
    clips = meaningless_clips(3)
    assert len(clips) == 3
    for clip in clips:
        assert len(clip.frames) == sampling.window
        assert clip.times[0] == 0
        assert {b - a for a, b in zip(clip.times, clip.times[1:], strict=False)} == {
            1 / sampling.fps
        }


def test_every_other_meaningless_clip_stands_still_and_the_others_change() -> None:
    kinds = [len(set(colours(clip))) for clip in meaningless_clips(4)]
    assert kinds[0::2] == [1, 1]
    assert kinds[1::2] == [VideoSampling().window] * 2
    assert len({colours(clip)[0] for clip in meaningless_clips(4)}) == 4


def test_clips_repeat_by_seed() -> None:
    first, again, other = (meaningless_clips(2, seed=s) for s in (0, 0, 1))
    assert [colours(clip) for clip in first] == [colours(clip) for clip in again]
    assert [colours(clip) for clip in first] != [colours(clip) for clip in other]


def test_a_drawn_clip_shows_the_text_on_a_run_of_its_frames() -> None:
    lengths = set()
    for seed in range(30):
        written = draw_text("how to bake bread", seed=seed).tobytes()
        shown = [
            frame.tobytes() == written
            for frame in drawn_clip("how to bake bread", seed=seed).frames
        ]
        start, length = shown.index(True), sum(shown)
        assert shown == [start <= i < start + length for i in range(VideoSampling().window)]
        lengths.add(length)
    assert {1, VideoSampling().window} <= lengths


def collector(*, multimodal: bool = True, positions: int | None = 100, takes: int = 40) -> Any:
    """Stands in for a collector: `takes` positions are what a clip takes."""

    def encode(requests: Any) -> Any:
        assert requests[0].offset_kind == "video"
        if not takes:
            raise UnsupportedContentError("one picture only")
        return SimpleNamespace(prompt_len=takes)

    text = SimpleNamespace(max_position_embeddings=positions)
    config = SimpleNamespace(get_text_config=lambda **_: text)
    loaded = SimpleNamespace(is_multimodal=multimodal, model=SimpleNamespace(config=config))
    return SimpleNamespace(loaded=loaded, encoder=SimpleNamespace(encode=encode))


def test_a_model_is_fit_for_videos_when_a_window_goes_into_it() -> None:
    assert unfit_for_video(collector()) is None
    assert unfit_for_video(collector(positions=None)) is None


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"multimodal": False}, "takes no pictures"),
        ({"takes": 0}, "one picture only"),
        ({"takes": 100}, f"{VideoSampling().window} frames take 100 positions, the model has 100"),
    ],
)
def test_the_reason_is_told_when_it_does_not(options: dict[str, Any], words: str) -> None:
    assert words in str(unfit_for_video(collector(**options)))


def test_a_clip_request_has_the_video_before_the_words() -> None:
    (clip,) = meaningless_clips(1)
    request = clip_request("What is this?", clip)
    assert (request.offset_kind, request.shape) == ("video", (0, (VideoSampling().window,)))
    assert request.messages[0].parts[-1].text == "What is this?"  # type: ignore[union-attr]
