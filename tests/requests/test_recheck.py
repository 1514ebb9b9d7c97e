"""A request that was read before is held to the policy it meets now."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from PIL import Image

from guardrail.errors import InputError, LimitExceededError, VideoDecodeError
from guardrail.policy import Limits, Policy, VideoSampling
from guardrail.requests.messages import to_request
from guardrail.types import Clip, Message, Request, TextPart, VideoPart, VideoStream


def policy(window: int = 4, fps: float = 8, **limits: Any) -> Policy:
    video = VideoSampling(fps=fps, max_fps=8, scenes=False, window=window)
    return Policy(video=video, limits=Limits(**limits))


def asked(*videos: Any) -> Request:
    return Request((Message(role="user", parts=(*videos, TextPart("?"))),))


def clip(count: int, size: tuple[int, int] = (8, 8), start: float = 0.0) -> Clip:
    frames = tuple(Image.new("RGB", size, (i, 0, 0)) for i in range(count))
    return Clip(frames, tuple(start + i for i in range(count)))


def read(film: Any, count: int, rules: Policy) -> Request:
    chat = [{"role": "user", "content": [{"type": "video", "video": film(count)}]}]
    return to_request(chat, policy=rules)


def test_a_clip_that_fits_stays_the_same_object():
    part = VideoPart(clip(4))
    assert to_request(asked(part), policy=policy()).videos[0] is part


def test_a_clip_larger_than_the_window_is_divided():
    (video,) = to_request(asked(VideoPart(clip(6, start=9.0))), policy=policy()).videos
    assert isinstance(video, VideoStream)
    assert [c.times for c in video.windows] == [(9, 10, 11, 12), (11, 12, 13, 14)]
    assert [f.getpixel((0, 0))[0] for c in video.windows for f in c.frames] == [
        0, 1, 2, 3, 2, 3, 4, 5
    ]  # fmt: skip


def test_frames_of_other_modes_become_rgb():
    odd = Clip((Image.new("L", (4, 4), 7),), (0.0,))
    (video,) = to_request(asked(VideoPart(odd)), policy=policy()).videos
    assert (video.clip.frames[0].mode, video.clip.times) == ("RGB", (0.0,))


@pytest.mark.parametrize(
    ("limits", "says"),
    [
        ({"videos": 1}, "videos 2"),
        ({"image_pixels": 63}, "image_pixels 64"),
        ({"total_pixels": 64 * 5}, "total_pixels"),
        ({"video_frames": 5}, "video_frames 6"),
        ({"video_seconds": 1.5}, "video_seconds"),
    ],
)
def test_clips_are_held_to_the_limits(limits, says):
    request = asked(VideoPart(clip(3)), VideoPart(clip(3)))
    to_request(request, policy=policy())
    with pytest.raises(LimitExceededError, match=says):
        to_request(request, policy=policy(**limits))


@pytest.mark.parametrize("times", [(1.0, 0.0), (0.0, float("nan"))])
def test_times_must_ascend(times):
    frames = clip(2).frames
    with pytest.raises(VideoDecodeError, match="do not ascend"):
        to_request(asked(VideoPart(Clip(frames, times))), policy=policy())


def test_a_stream_under_the_same_policy_is_the_same_windows(film):
    request = read(film, 10, policy())
    (again,) = to_request(request, policy=policy()).videos
    assert [c.times for c in again.windows] == [c.times for c in request.videos[0].windows]
    assert again.windows.digest == request.videos[0].windows.digest


def test_a_stream_is_sampled_anew_under_other_rules(film):
    request = read(film, 10, policy())
    (whole,) = to_request(request, policy=policy(window=10)).videos
    assert isinstance(whole, VideoPart)
    assert len(whole.clip.frames) == 10
    (thin,) = to_request(request, policy=policy(fps=4)).videos
    assert [len(c.frames) for c in thin.windows] == [4, 4]


def test_a_stream_is_held_to_the_limits_it_meets_now(film):
    request = read(film, 10, policy())
    list(request.videos[0].windows)
    (video,) = to_request(request, policy=policy(video_frames=9)).videos
    with pytest.raises(LimitExceededError, match="video_frames 10"):
        list(video.windows)


def test_a_request_with_a_stream_can_be_copied(film):
    request = read(film, 10, policy())
    other = copy.deepcopy(request)
    assert [c.times for c in other.videos[0].windows] == [
        c.times for c in request.videos[0].windows
    ]


class Own:
    """Windows that somebody else made."""

    digest = "own"

    def __init__(self, *clips: Clip) -> None:
        self._clips = clips

    def __iter__(self) -> Any:
        return iter(self._clips)


def test_windows_of_others_are_checked_as_they_come():
    fine = Own(clip(4), clip(4, start=2.0))
    (video,) = to_request(asked(VideoStream(fine)), policy=policy()).videos
    assert [c.times for c in video.windows] == [c.times for c in fine]
    assert video.windows.digest == "own"


@pytest.mark.parametrize(
    ("windows", "limits", "says"),
    [
        (Own(clip(4), clip(5)), {}, "window"),
        (Own(clip(4), clip(4)), {"video_frames": 7}, "video_frames"),
        (Own(clip(4), clip(4, start=20.0)), {"video_seconds": 10.0}, "video_seconds"),
        (Own(clip(4), clip(4, size=(9, 9))), {"image_pixels": 64}, "image_pixels"),
        (Own(), {}, "no frame"),
    ],
)
def test_windows_of_others_are_held_to_the_policy(windows, limits, says):
    (video,) = to_request(asked(VideoStream(windows)), policy=policy(**limits)).videos
    with pytest.raises(InputError, match=says):
        list(video.windows)
