from __future__ import annotations

import itertools
import math
from collections import Counter
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from guardrail.policy import VideoSampling
from guardrail.requests.shots import SIDE, Shot
from guardrail.requests.video_sampling import sampled

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
