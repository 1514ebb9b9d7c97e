"""What a guard judges of one request: every window of its long videos, and what it answers from."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, NamedTuple

import torch

from guardrail.online.scanning import showing
from guardrail.online.thinning import Thinner
from guardrail.types import Request, VideoPart, VideoStream

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from torch import Tensor

    from guardrail.fit.collect import Collector
    from guardrail.policy import VideoSampling


class Judged(NamedTuple):
    """What is judged on the way to a verdict; `video` is whose window it is, None of the last."""

    request: Request
    video: int | None


def judged_requests(request: Request, answer_frames: int) -> Iterator[Judged]:
    """Each window of the videos, other videos left out; last the request that is answered.

    In that one `answer_frames` frames stand for each long video. A request with one short video, or
    none, is its own last one. Windows are decoded as they are asked for.
    """
    thinned = {}
    for number, video in enumerate(request.videos):
        if isinstance(video, VideoStream):
            thinner = Thinner(answer_frames)
            for clip in video.windows:
                thinner.add(clip)
                yield Judged(showing(request, {number: VideoPart(clip)}), number)
            thinned[number] = VideoPart(thinner.clip())
        elif request.in_windows:
            yield Judged(showing(request, {number: video}), number)
    yield Judged(showing(request, thinned, beside_clips=True) if thinned else request, None)


def answered_request(request: Request, answer_frames: int) -> Request:
    """The request as the model answers it, without long videos."""
    if not request.in_windows:
        return request
    (last,) = deque(judged_requests(request, answer_frames), maxlen=1)
    return last.request


def residuals_of(
    collect: Collector, requests: Sequence[Request], sampling: VideoSampling
) -> list[Tensor]:
    """All layers' residuals: (L, d_model) of each request, (windows + 1, L, d_model) of long ones.

    Of a long video memory holds as many windows as go into a batch, and the residuals of all.
    """
    if not any(request.in_windows for request in requests):
        return list(collect(requests, "residuals"))
    return [_residuals(collect, request, sampling) for request in requests]


def _residuals(collect: Collector, request: Request, sampling: VideoSampling) -> Tensor:
    size = max(collect.batch_size // sampling.window, 1)
    read, waiting = [], list[Request]()
    for judged in judged_requests(request, sampling.answer_frames):
        waiting.append(judged.request)
        if len(waiting) == size or judged.video is None:
            read.append(collect(waiting, "residuals"))
            waiting = []
    found = torch.cat(read)
    return found if request.in_windows else found[0]
