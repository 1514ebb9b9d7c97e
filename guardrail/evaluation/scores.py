"""One input's residuals, of a long video those of all its windows, and all that is read off them.

Of a request a guard judges every window of its videos, and last what it answers.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from guardrail.decide.detector import NO_FLOOR, Detector
from guardrail.decide.linear import projections
from guardrail.errors import DetectorError
from guardrail.online.video_scan import judged_requests
from guardrail.policy.acting import within_reach
from guardrail.types import Action, Request

if TYPE_CHECKING:
    from collections.abc import Sequence

    from guardrail.artefact import Artefact
    from guardrail.fit.collect import Collector
    from guardrail.policy import Policy, VideoSampling

RANDOM_SEEDS = 20


@dataclass(frozen=True, slots=True)
class ItemScores:
    """What one input's residuals say.

    `score` is the guard's own; `action` what it does at the thresholds in force, or in shadow mode
    would do if it enforced them; `layers` (L,) float64, the projection on each layer's difference
    of means; `random` (20,) float64, the score along random directions. Of a long video each is the
    highest of its windows, direction by direction.
    """

    score: float
    action: Action
    layers: Tensor
    random: Tensor


class Scorer:
    """Reads scores off residuals as a guard of `artefact` under `policy` does."""

    def __init__(self, artefact: Artefact, policy: Policy) -> None:
        self.detector = Detector.from_artefact(artefact, policy)
        self._direction = artefact.tensors["direction"].double()
        self._random = random_directions(self.detector.readout.weight)

    @property
    def shape(self) -> tuple[int, ...]:
        """Layers and width of the residuals, (L, d_model)."""
        return tuple(self._direction.shape)

    def __call__(self, residuals: Tensor, kind: str) -> ItemScores:
        """Residuals of all layers (L, d_model) and the offset kind of one input.

        Of a long video (windows, L, d_model), the last row that of the request which is answered.

        Raises:
            DetectorError: a score is not finite.
        """
        rows = residuals if residuals.ndim == 3 else residuals[None]
        read = rows[:, list(self.detector.layers)]
        scores = self.detector.readout.scores(read, [kind] * len(rows))
        # The floor under the last one, as in the guard; NaN where one has failed.
        floor = float(scores[:-1].max()) if len(rows) > 1 else NO_FLOOR
        decision = self.detector.decide(read[-1:], [kind], [floor])
        if decision.failed[0]:
            raise DetectorError("the score is not finite: the detector failed on this input")
        return ItemScores(
            score=float(decision.scores[0]),
            action=self._action(decision, rows[-1], kind),
            layers=(rows.double() * self._direction).sum(-1).amax(0),
            random=self._along_random(read).amax(0),
        )

    def _action(self, decision: object, residuals: Tensor, kind: str) -> Action:
        """The decision, less what no edit can do: steer without a layer, or beyond its region."""
        (action,) = decision.actions  # type: ignore[attr-defined]
        policy, at = self.detector.policy, self.detector.steering_layer
        beyond = False
        if action is Action.STEER and at is not None:
            edit = self.detector.edit(decision, residuals[None, at], [kind])  # type: ignore[arg-type]
            beyond = not bool(edit.any())
        return within_reach(action, policy, can_steer=at is not None, beyond=beyond)

    def _along_random(self, read: Tensor) -> Tensor:
        """(rows, k, d_model) -> (rows, seeds) float64."""
        readout = self.detector.readout
        gap = readout.gap.double()
        along = torch.stack([projections(read, weight) for weight in self._random], dim=1)
        scores: Tensor = ((along - readout.zero.double()) / gap).mean(-1)
        return scores


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
    return [_residuals_of_windows(collect, request, sampling) for request in requests]


def _residuals_of_windows(collect: Collector, request: Request, sampling: VideoSampling) -> Tensor:
    size = max(collect.batch_size // sampling.window, 1)
    read, waiting = [], list[Request]()
    for judged in judged_requests(request, sampling.answer_frames):
        waiting.append(judged.request)
        if len(waiting) == size or judged.video is None:
            read.append(collect(waiting, "residuals"))
            waiting = []
    found = torch.cat(read)
    return found if request.in_windows else found[0]


def random_directions(weight: Tensor, seeds: int = RANDOM_SEEDS) -> Tensor:
    """Unit directions in the place of a readout's: (k, d_model) -> (seeds, k, d_model) float64."""
    drawn = []
    for seed in range(seeds):
        generator = torch.Generator().manual_seed(seed)
        drawn.append(torch.randn(weight.shape, generator=generator, dtype=torch.float64))
    directions: Tensor = torch.nn.functional.normalize(torch.stack(drawn), dim=-1)
    return directions


def packed(residuals: Tensor, dtype: torch.dtype) -> bytes:
    """Residuals as safetensors, in the model's own dtype where that loses nothing."""
    small = residuals.to(dtype)
    exact = torch.equal(small.float(), residuals)
    return save({"residuals": (small if exact else residuals).contiguous()})


def unpacked(data: bytes, shape: tuple[int, ...]) -> Tensor:
    """Residuals as they were kept, float32.

    Raises:
        ValueError: the bytes are no residuals of this shape, nor windows of it.
    """
    try:
        residuals = load(data)["residuals"].float()
    except (SafetensorError, KeyError) as error:
        raise ValueError(str(error)) from error
    if tuple(residuals.shape[-2:]) != shape or residuals.ndim > 3 or not residuals.numel():
        raise ValueError(f"residuals of shape {tuple(residuals.shape)}, wanted {shape}")
    return residuals
