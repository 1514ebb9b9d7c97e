"""Clips that a fit draws itself."""

from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from guardrail.errors import UnsupportedContentError
from guardrail.fit.clips import clip_request, drawn_clip, meaningless_clips, unfit_for_video
from guardrail.fit.drawing import draw_text
from guardrail.policy import VideoSampling

if TYPE_CHECKING:
    from guardrail.types import Clip


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
