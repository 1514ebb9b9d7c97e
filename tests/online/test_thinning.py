"""A few frames that stand for a whole video."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guardrail.errors import InputError
from guardrail.online.thinning import Thinner
from guardrail.types import Clip


@dataclass(frozen=True)
class Frame:
    number: int


def windows(total, window):
    """Frames 0 to total - 1 in windows; the last is filled up backwards."""
    frames = [Frame(n) for n in range(total)]
    for end in [*range(window, total, window), total]:
        shown = frames[max(end - window, 0) : end]
        yield Clip(tuple(shown), tuple(frame.number / 2 for frame in shown))


@given(total=st.integers(1, 700), window=st.integers(1, 9), count=st.integers(1, 9))
def test_the_frames_are_spread_evenly_from_the_first_to_the_last(total, window, count):
    thinner = Thinner(count)
    for clip in windows(total, window):
        thinner.add(clip)
    found = thinner.clip()
    numbers = [frame.number for frame in found.frames]
    assert found.times == tuple(n / 2 for n in numbers)
    assert len(numbers) == min(count, total)
    assert numbers == sorted(set(numbers))
    assert numbers[0] == 0
    if count > 1:
        assert numbers[-1] == total - 1
        step = (total - 1) / max(len(numbers) - 1, 1)
        assert all(abs(n - i * step) <= step / 2 + 0.5 for i, n in enumerate(numbers))


def test_what_is_kept_does_not_grow_with_the_video():
    thinner, kept = Thinner(4), 0
    for clip in windows(5000, 8):
        thinner.add(clip)
        kept = max(kept, len(thinner._kept))
    assert kept <= 9


def test_frames_shown_at_one_time_are_several_frames():
    thinner, frames = Thinner(4), [Frame(n) for n in range(4)]
    for pair in (frames[:2], frames[1:3], frames[2:]):
        thinner.add(Clip(tuple(pair), (1.0, 1.0)))
    assert thinner.clip() == Clip(tuple(frames), (1.0,) * 4)


def test_a_video_without_frames_is_refused():
    with pytest.raises(InputError, match="no frame"):
        Thinner(4).clip()
