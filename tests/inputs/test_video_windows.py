from __future__ import annotations

import gc
import itertools
import math
import weakref
from collections import Counter
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from guardrail.errors import LimitExceededError, VideoDecodeError
from guardrail.inputs.video_files import SIDE, Shot
from guardrail.inputs.video_windows import SampledVideo, Tally, read_video, sampled, windows
from guardrail.inputs.videos import Frames, VideoBytes
from guardrail.policy import Limits, VideoSampling
from guardrail.types import VideoPart, VideoStream

EVERY = VideoSampling(fps=8, max_fps=8, scenes=False, window=4)


def video(data: bytes, sampling: VideoSampling = EVERY, **limits: Any) -> SampledVideo:
    bounds = Limits(**limits)
    return SampledVideo(VideoBytes(data), sampling, Tally(bounds), 0, "it")


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

    monkeypatch.setattr("guardrail.inputs.video_files._upright", tracked)
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
    tally, data = Tally(limits), VideoBytes(film(12))
    one, two, three = (SampledVideo(data, EVERY, tally, i, "it") for i in range(3))
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
        read_video(SampledVideo(Empty(), EVERY, Tally(limits), 0, "it"))  # type: ignore[arg-type]


@pytest.mark.parametrize("large", [3, 9])
def test_a_window_may_not_have_more_pixels_than_a_request(large, numbered):
    frames = [numbered(i) for i in range(12)]
    frames[large] = np.zeros((400, 400, 3), np.uint8)
    footage, bounds = Frames(tuple(frames), tuple(map(float, range(12)))), 64 * 48 * 4
    whole = SampledVideo(footage, EVERY, Tally(Limits()), 0, "it")
    assert len(list(whole)) == 3
    limits = Limits(total_pixels=bounds)
    held = SampledVideo(footage, EVERY, Tally(limits), 0, "it")
    with pytest.raises(LimitExceededError, match="a window of it has total_pixels"):
        list(held)


A, B, C = 0, 120, 240  # grey levels of scenes


def shot(time: float, level: int = 0) -> Shot:
    return Shot(time, lambda: None, lambda: np.full((SIDE, SIDE), level, np.uint8))


def film(*scenes: tuple[int, int], fps: float = 24) -> list[Shot]:
    """Shots of scenes, each of a level for so many frames."""
    levels = [level for level, count in scenes for _ in range(count)]
    return [shot(i / fps, level) for i, level in enumerate(levels)]


def levels(shots: Any) -> list[int]:
    return [int(s.thumbnail()[0, 0]) for s in shots]


def on_grid(times: list[float], fps: float) -> list[float]:
    """The slow way: for each tick the first frame at or after it, in its turn."""
    found, tick = [], 0
    while tick / fps <= times[-1] + 0.002:
        at = next((t for t in times if t >= tick / fps - 0.002), None)
        if at is not None and at not in found:
            found.append(at)
        tick += 1
    return found


@given(
    rate=st.floats(1, 60),
    count=st.integers(1, 200),
    fps=st.floats(0.1, 60),
)
@example(rate=8, count=40, fps=2.0)
@example(rate=29.97, count=100, fps=3.0)
@settings(max_examples=150, deadline=None)
def test_the_grid_is_the_first_frame_of_each_tick(rate, count, fps):
    shots = [shot(i / rate) for i in range(count)]
    rules = VideoSampling(fps=fps, max_fps=60, scenes=False)
    found = [s.time for s in sampled(shots, rules)]
    assert found == on_grid([s.time for s in shots], fps)


@given(gaps=st.lists(st.floats(0.001, 3), min_size=1, max_size=80), fps=st.floats(0.2, 30))
@settings(max_examples=150, deadline=None)
def test_nothing_is_unseen_for_longer_than_a_tick_and_a_frame(gaps, fps):
    times = [0.0, *itertools.accumulate(gaps)]
    rules = VideoSampling(fps=fps, max_fps=60, scenes=False)
    found = [s.time for s in sampled([shot(t) for t in times], rules)]
    assert found[0] == 0.0
    gone = dict(itertools.pairwise(times))  # when each frame makes room for the next
    for one, two in itertools.pairwise([*found, times[-1]]):
        assert two - gone.get(one, one) <= 1 / fps + max(gaps) + 0.003


def test_a_flash_of_one_frame_is_taken():
    shots = film((A, 30), (C, 1), (A, 60))
    rules = VideoSampling(fps=1, max_fps=8)
    assert C in levels(sampled(shots, rules))
    assert C not in levels(sampled(shots, rules.model_copy(update={"scenes": False})))


def test_the_first_frame_of_a_scene_is_the_one_that_is_taken():
    shots = film((A, 31), (C, 200))
    taken = [s.time for s in sampled(shots, VideoSampling(fps=0.5, max_fps=8))]
    assert taken == [0.0, 31 / 24, *(float(t) for t in (2, 4, 6, 8))]


def test_a_scene_right_behind_a_decoy_is_not_missed():
    shots = film((A, 5), (B, 1), (C, 12), (A, 100))  # C lasts 0.5 s, between two ticks
    taken = levels(sampled(shots, VideoSampling(fps=0.2, max_fps=8)))
    assert {A, B, C} <= set(taken)


def test_a_still_picture_and_slow_change_are_left_to_the_grid():
    still = film((B, 100))
    fade = [shot(i / 24, i) for i in range(200)]
    rules = VideoSampling(fps=1, max_fps=8)
    for shots in (still, fade):
        plain = rules.model_copy(update={"scenes": False})
        assert list(sampled(shots, rules)) == list(sampled(shots, plain))


@pytest.mark.parametrize("cycle", [(A, C), (A, B, C)])
def test_flicker_in_step_with_the_grid_hides_no_scene(cycle):
    """At 24 a second each tick of 0.5 s meets the same scene."""
    shots = [shot(i / 24, cycle[i % len(cycle)]) for i in range(240)]
    taken = list(sampled(shots, VideoSampling()))
    assert set(levels(taken)) == set(cycle)
    assert len(taken) <= 10 * VideoSampling().max_fps + 1  # not frame by frame


STAYS = [0.0, 0.4, 1.2, 1.25, 2.0, 2.1, 2.6, 2.8]  # 0.4, 1.25 and 2.1 are on for a tick and more


@pytest.mark.parametrize("scenes", [False, True])
def test_what_stays_for_a_tick_is_seen_wherever_it_begins(scenes):
    shots = [shot(time, 10 * i) for i, time in enumerate(STAYS)]  # too alike for scenes
    rules = VideoSampling(fps=2, max_fps=8, scenes=scenes)
    assert [s.time for s in sampled(shots, rules)] == [0.0, 0.4, 1.25, 2.0, 2.1]
    for lasts, seen in ((0.0, False), (0.4, False), (0.5, True)):
        last = replace(shots[-1], lasts=lasts)
        assert (last in sampled([*shots[:-1], last], rules)) is seen


@given(gaps=st.lists(st.floats(0.001, 3), min_size=1, max_size=80), fps=st.floats(0.2, 30))
@settings(max_examples=100, deadline=None)
def test_irregular_frames_hide_nothing_that_stays_and_cost_a_frame_a_tick(gaps, fps):
    times = [0.0, *itertools.accumulate(gaps)]
    rules = VideoSampling(fps=fps, max_fps=60, scenes=False)
    found = [s.time for s in sampled([shot(t) for t in times], rules)]
    stay = [one for one, two in itertools.pairwise(times) if two - one >= 1 / fps]
    assert set(stay) <= set(found)
    assert found == sorted(set(found))
    assert len(found) <= math.floor((times[-1] + 0.002) * fps) + 1


@given(
    scenes=st.lists(
        st.tuples(st.sampled_from([A, B, C]), st.integers(1, 30)), min_size=1, max_size=30
    ),
    fps=st.sampled_from([1.0, 2.0, 4.0]),
    most=st.sampled_from([4.0, 6.0, 8.0]),
)
@settings(max_examples=100, deadline=None)
def test_there_are_never_more_than_max_fps_a_second(scenes, fps, most):
    shots = film(*scenes)
    taken = [s.time for s in sampled(shots, VideoSampling(fps=fps, max_fps=most))]
    for start in taken:
        # one more, as a tick's frame may come up to a frame late
        assert sum(start <= t < start + 1 for t in taken) <= most + 1
    assert Counter(math.floor(t) for t in taken).most_common(1)[0][1] <= most + 1


def test_without_room_for_scenes_there_is_the_grid_alone():
    shots = film((A, 5), (C, 5), (B, 30))
    taken = [s.time for s in sampled(shots, VideoSampling(fps=2, max_fps=2))]
    assert taken == on_grid([s.time for s in shots], 2)


def test_what_finds_no_room_is_taken_once_there_is_some():
    blinks = [(A, 2), (C, 2), (B, 2)] * 4
    shots = film(*blinks, (A, 10), (C, 200))  # after 1 s and more of cuts
    taken = [s for s in sampled(shots, VideoSampling(fps=0.1, max_fps=3))]
    assert levels(taken)[-1] == C
    assert taken[-1].time < 34 / 24 + 1
