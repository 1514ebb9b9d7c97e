"""Residuals of what a guard judges of one request: every window of its videos, and the answered."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

import torch

from guardrail.online.video_scan import judged_requests
from guardrail.types import Request

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from guardrail.fit.collect import Collector
    from guardrail.policy import VideoSampling


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
