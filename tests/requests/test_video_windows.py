from __future__ import annotations

import gc
import itertools
import weakref
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from guardrail.errors import LimitExceededError, VideoDecodeError
from guardrail.policy import Limits, VideoSampling
from guardrail.requests.video_footage import Encoded, Frames
from guardrail.requests.video_windows import SampledVideo, Tally, read_video, windows
from guardrail.types import VideoPart, VideoStream

EVERY = VideoSampling(fps=8, max_fps=8, scenes=False, window=4)


def video(data: bytes, sampling: VideoSampling = EVERY, **limits: Any) -> SampledVideo:
    bounds = Limits(**limits)
    return SampledVideo(Encoded(data), sampling, bounds, Tally(bounds), 0, "it")


def numbers(clip: Any, number_of: Any) -> list[int]:
    return [number_of(frame) for frame in clip.frames]


@given(count=st.integers(0, 60), size=st.integers(1, 12))
def test_all_windows_are_full_and_hold_every_frame_once(count, size):
    frames = [(f"frame {i}", float(i)) for i in range(count)]
    made = list(windows(iter(frames), size))  # type: ignore[arg-type]
    assert len(made) == -(-count // size)
    assert all(len(clip.frames) == min(size, count) for clip in made)
    assert all(list(clip.times) == sorted(set(clip.times)) for clip in made)
    *full, last = [list(zip(c.frames, c.times, strict=True)) for c in made] or [[]]
    assert list(itertools.chain(*full)) == frames[: len(full) * size]
    assert last == frames[-size:]


@given(
    rate=st.sampled_from([3, 8, 12, 25]),
    count=st.integers(1, 40),
    fps=st.sampled_from([0.5, 1, 2, 5, 8]),
    window=st.integers(1, 9),
)
@settings(max_examples=40, deadline=None)
def test_a_real_video_is_sampled_as_a_slow_reader_would(rate, count, fps, window, film, number_of):
    sampling = VideoSampling(fps=fps, max_fps=60, scenes=False, window=window)
    times = [i / rate for i in range(count)]
    expected: list[int] = []
    for tick in range(int(times[-1] * fps) + 2):
        number = next((i for i, t in enumerate(times) if t >= tick / fps - 2e-3), None)
        if number is not None and number not in expected:
            expected.append(number)
    found = read_video(video(film(count, fps=rate), sampling))
    clips = [found.clip] if isinstance(found, VideoPart) else list(found.windows)
    if len(expected) <= window:
        assert isinstance(found, VideoPart)
    assert all(len(clip.frames) == min(window, len(expected)) for clip in clips)
    seen = {}
    for clip in clips:
        seen |= dict(zip(clip.times, numbers(clip, number_of), strict=True))
    assert [seen[t] for t in sorted(seen)] == expected
    assert sorted(seen) == pytest.approx([times[i] for i in expected], abs=2e-3)
    for one, two in itertools.pairwise([*sorted(seen), times[-1]]):
        assert two - one <= 1 / fps + 1 / rate + 0.005


def test_a_short_video_is_a_clip_and_a_long_one_a_stream(film, number_of):
    short, long = read_video(video(film(4))), read_video(video(film(5)))
    assert isinstance(short, VideoPart)
    assert numbers(short.clip, number_of) == [0, 1, 2, 3]
    assert short.clip.times == pytest.approx((0, 1 / 8, 2 / 8, 3 / 8))
    assert isinstance(long, VideoStream)
    assert [numbers(c, number_of) for c in long.windows] == [[0, 1, 2, 3], [1, 2, 3, 4]]


def test_windows_can_be_gone_through_again(film, number_of):
    stream = video(film(10))
    first = [numbers(clip, number_of) for clip in stream]
    next(iter(stream))  # and be left
    assert [numbers(clip, number_of) for clip in stream] == first
    assert len(first) == 3


def test_no_more_than_a_window_of_pictures_is_alive(film, monkeypatch):
    made: list[weakref.ref[Any]] = []
    most = 0

    def alive() -> int:
        return sum(ref() is not None for ref in made)

    def tracked(picture: Any, frame: Any) -> Any:
        nonlocal most
        made.append(weakref.ref(picture))
        most = max(most, alive())
        return picture

    monkeypatch.setattr("guardrail.requests.video_decoding._upright", tracked)
    stream = read_video(video(film(120)))
    count = 0
    for clip in stream.windows:
        count += 1
        del clip
    gc.collect()
    assert count == 30
    assert len(made) == 120 + EVERY.window + 1  # the first window was looked at before
    assert EVERY.window < most <= EVERY.window + 1  # and the one that is being decoded
    assert not alive()


def test_the_digest_tells_content_and_sampling(film):
    one, other = film(10), film(11)
    assert video(one).digest == video(one).digest
    assert video(one).digest != video(other).digest
    assert video(one).digest != video(one, EVERY.model_copy(update={"fps": 4.0})).digest


def test_frames_are_counted_as_they_are_judged(film):
    stream = video(film(20), video_frames=10)
    with pytest.raises(LimitExceededError) as caught:
        list(stream)
    assert (caught.value.limit, caught.value.found) == ("video_frames", 11)


def test_the_frames_of_several_videos_are_summed_and_going_through_again_is_free(film):
    limits = Limits(video_frames=25)
    tally, data = Tally(limits), Encoded(film(12))
    one, two, three = (SampledVideo(data, EVERY, limits, tally, i, "it") for i in range(3))
    for _ in range(3):
        assert len(list(one)) == len(list(two)) == 3
    with pytest.raises(LimitExceededError, match="video_frames"):
        list(three)


def test_seconds_are_counted_whatever_the_header_says(film):
    times = [0, 500, 4_000_000]
    data = film(3, times=times, container="matroska", codec="ffv1")
    with pytest.raises(LimitExceededError) as caught:
        read_video(video(data))
    assert caught.value.limit == "video_seconds"
    assert read_video(video(data, video_seconds=5000.0)).clip.times[-1] == pytest.approx(4000)


def test_a_header_that_claims_days_does_not_refuse_a_short_video(film, number_of):
    data = bytearray(film(4))
    at = data.index(b"mvhd") + 20  # its duration
    data[at : at + 4] = b"\x7f\xff\xff\xff"
    clip = read_video(video(bytes(data))).clip
    assert numbers(clip, number_of) == [0, 1, 2, 3]


def test_a_video_without_a_frame_is_an_error():
    class Empty:
        whole = True

        def shots(self, limits: Any, what: str) -> Any:
            yield from ()

    limits = Limits()
    with pytest.raises(VideoDecodeError, match="no frame"):
        read_video(SampledVideo(Empty(), EVERY, limits, Tally(limits), 0, "it"))  # type: ignore[arg-type]


@pytest.mark.parametrize("large", [3, 9])
def test_a_window_may_not_have_more_pixels_than_a_request(large, numbered):
    frames = [numbered(i) for i in range(12)]
    frames[large] = np.zeros((400, 400, 3), np.uint8)
    footage, bounds = Frames(tuple(frames), tuple(map(float, range(12)))), 64 * 48 * 4
    whole = SampledVideo(footage, EVERY, Limits(), Tally(Limits()), 0, "it")
    assert len(list(whole)) == 3
    limits = Limits(total_pixels=bounds)
    held = SampledVideo(footage, EVERY, limits, Tally(limits), 0, "it")
    with pytest.raises(LimitExceededError, match="a window of it has total_pixels"):
        list(held)
