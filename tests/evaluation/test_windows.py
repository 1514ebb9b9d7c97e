"""What a guard judges of a long video, one request after another."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch
from PIL import Image

from guardrail.errors import UnsupportedContentError
from guardrail.evaluation.windows import answered_request, residuals_of
from guardrail.fit.collect import Collector
from guardrail.model.load import wrap_model
from guardrail.online.engine import require_readable
from guardrail.online.video_scan import judged_requests
from guardrail.policy import VideoSampling
from guardrail.testing import tiny_artefact
from guardrail.types import Clip, Message, Request, TextPart, VideoPart, VideoStream

if TYPE_CHECKING:
    from collections.abc import Iterator

SAMPLING = VideoSampling(window=2, answer_frames=3)


class Windows:
    """Windows of two frames, one frame a second; they count how often they were begun."""

    digest = "windows"

    def __init__(self, count: int, seed: int = 0) -> None:
        self.count, self.seed, self.begun = count, seed, 0

    def __iter__(self) -> Iterator[Clip]:
        self.begun += 1
        for start in range(0, 2 * self.count, 2):
            yield clip(start, start + 1, seed=self.seed)


def clip(*times: int, seed: int = 0) -> Clip:
    frames = [Image.new("RGB", (40, 40), (10 * time, 90 * seed, 0)) for time in times]
    return Clip(tuple(frames), tuple(map(float, times)))


def request(*videos: VideoPart | VideoStream) -> Request:
    return Request((Message(role="user", parts=(*videos, TextPart("what is this"))),))


def times_of(shown: Request) -> list[tuple[float, ...]]:
    return [video.clip.times for video in shown.videos if isinstance(video, VideoPart)]


def test_every_window_is_judged_alone_and_last_what_is_answered() -> None:
    asked = request(VideoStream(Windows(3)), VideoPart(clip(7)), VideoStream(Windows(2, seed=1)))
    judged = list(judged_requests(asked, 3))
    assert [(video, times_of(shown)) for shown, video in judged] == [
        (0, [(0, 1)]),
        (0, [(2, 3)]),
        (0, [(4, 5)]),
        (1, [(7,)]),
        (2, [(0, 1)]),
        (2, [(2, 3)]),
        (None, [(0, 2, 5), (7,), (0, 1, 3)]),
    ]
    assert all(shown.messages[0].parts[-1] == TextPart("what is this") for shown, _ in judged)


def test_a_request_of_one_window_is_judged_as_it_is() -> None:
    short = request(VideoPart(clip(0, 1)))
    assert list(judged_requests(short, 3)) == [(short, None)]
    assert answered_request(short, 3) is short
    assert not short.in_windows
    assert request(VideoPart(clip(0)), VideoStream(Windows(1))).in_windows


def test_what_is_answered_holds_no_stream() -> None:
    windows = Windows(4)
    shown = answered_request(request(VideoStream(windows)), 3)
    assert times_of(shown) == [(0, 4, 7)]
    assert windows.begun == 1


def test_residuals_of_a_long_video_are_those_of_its_windows_read_alone(llava: Any) -> None:
    collect = Collector(wrap_model(llava.model, llava.processor), batch_size=4)
    asked = request(VideoStream(Windows(3)), VideoPart(clip(7)))
    found = residuals_of(collect, [asked, request(VideoPart(clip(3)))], SAMPLING)
    alone = [collect([shown], "alone")[0] for shown, _ in judged_requests(asked, 3)]
    torch.testing.assert_close(found[0], torch.stack(alone), atol=1e-5, rtol=1e-4)
    (short,) = collect([request(VideoPart(clip(3)))], "alone")
    torch.testing.assert_close(found[1], short, atol=1e-5, rtol=1e-4)


def test_no_more_windows_are_decoded_at_a_time_than_go_into_a_batch() -> None:
    seen: list[int] = []

    def collect(requests: Any, _stage: str) -> torch.Tensor:
        seen.append(len(requests))
        return torch.zeros(len(requests), 4, 8)

    reader: Any = type(
        "Reader", (), {"batch_size": 4, "__call__": lambda _s, r, n: collect(r, n)}
    )()
    (found,) = residuals_of(reader, [request(VideoStream(Windows(5)))], SAMPLING)
    assert seen == [2, 2, 2]
    assert found.shape == (6, 4, 8)


def test_a_video_needs_an_artefact_that_was_fitted_with_videos(llava: Any) -> None:
    old = tiny_artefact(llava.model, llava.processor, video=False)
    with pytest.raises(UnsupportedContentError, match=r"fitted without video.*fit again"):
        require_readable(request(VideoPart(clip(0))), old)
    require_readable(request(), old)
    require_readable(request(VideoPart(clip(0))), tiny_artefact(llava.model, llava.processor))
