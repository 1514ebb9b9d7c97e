"""Families with a video processor: frames reach the last position."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from PIL import Image

from guardrail.testing import family
from tests.families.catalogue import VIDEO_FAMILIES


def timed(frames: int) -> dict[str, Any]:
    """Frames that are taken as they come, two in a second."""
    metadata = {
        "fps": 2.0,
        "total_num_frames": frames,
        "frames_indices": list(range(frames)),
        "duration": frames / 2,
    }
    return {"video_metadata": [metadata], "do_sample_frames": False}


@pytest.mark.parametrize("name", VIDEO_FAMILIES)
def test_the_last_position_depends_on_early_and_late_frames(
    tiny_of: Any, encode: Any, user: Any, last: Any, video: Any, name: str
) -> None:
    tiny, frames = tiny_of(name), video(1)
    changed = [frames.copy(), frames.copy()]
    changed[0][:2], changed[1][2:] = video(2)[:2], video(2)[2:]
    states = [
        last(tiny, encode(tiny, user(name, "what is this?", clip), **timed(4)))
        for clip in (frames, *changed)
    ]
    for other in states[1:]:
        moved = (states[0] - other).norm(dim=-1) / states[0].norm(dim=-1)
        assert (moved[2:] > 1e-3).all()


@pytest.mark.parametrize("name", VIDEO_FAMILIES)
def test_longer_videos_take_more_tokens_and_the_model_answers(
    tiny_of: Any, encode: Any, user: Any, video: Any, name: str
) -> None:
    tiny = tiny_of(name)
    short, long = (
        encode(tiny, user(name, "what?", video(1, frames)), **timed(frames)) for frames in (4, 8)
    )
    length = long["input_ids"].shape[1]
    assert short["input_ids"].shape[1] < length
    assert tiny.model.generate(**long, max_new_tokens=3).shape[1] == length + 3


@pytest.mark.parametrize("name", VIDEO_FAMILIES)
def test_frames_may_be_an_array_or_a_list_of_pictures(
    tiny_of: Any, encode: Any, user: Any, video: Any, name: str
) -> None:
    tiny, frames = tiny_of(name), video(1)
    pictures = [Image.fromarray(frame) for frame in frames]
    one, other = (
        encode(tiny, user(name, "what?", clip), **timed(4)) for clip in (frames, pictures)
    )
    assert one.keys() == other.keys()
    for key in one:
        torch.testing.assert_close(one[key], other[key])


@pytest.mark.parametrize("name", [n for n in VIDEO_FAMILIES if family(n).mixed_media])
def test_a_picture_and_a_video_share_a_message(
    tiny_of: Any, encode: Any, user: Any, last: Any, picture: Any, video: Any, name: str
) -> None:
    tiny = tiny_of(name)

    def ask(image: int, clip: int) -> torch.Tensor:
        chat = user(name, "and these?", picture(image), video(clip))
        return last(tiny, encode(tiny, chat, **timed(4)))[-1, 0]

    states = ask(1, 1)
    assert (states - ask(2, 1)).norm() > 1e-3 * states.norm()
    assert (states - ask(1, 2)).norm() > 1e-3 * states.norm()


@pytest.mark.parametrize("name", [n for n in VIDEO_FAMILIES if not family(n).mixed_media])
def test_where_they_cannot_share_one_the_model_says_so(
    tiny_of: Any, encode: Any, user: Any, last: Any, picture: Any, video: Any, name: str
) -> None:
    tiny = tiny_of(name)
    inputs = encode(tiny, user(name, "and these?", picture(1), video(1)), **timed(4))
    with pytest.raises((ValueError, IndexError), match=r"do not match|same time|out of bounds"):
        last(tiny, inputs)
