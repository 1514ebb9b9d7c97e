"""What is read of one input, of a long video of all its windows, and all that follows from it.

Of a request a guard judges every window of its videos, and last what it answers.
"""

from __future__ import annotations

import json
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from guardrail.decide.detector import NO_FLOOR, Detector
from guardrail.decide.linear import projections
from guardrail.decide.reading import NOTHING, Found
from guardrail.errors import DetectorError
from guardrail.model.generate import last_residuals
from guardrail.online.video_scan import judged_requests
from guardrail.policy.acting import within_reach
from guardrail.types import Action, Request, Where

if TYPE_CHECKING:
    from collections.abc import Sequence

    from guardrail.artefact import Artefact
    from guardrail.model.encode import Encoder
    from guardrail.model.load import LoadedModel
    from guardrail.policy import Policy, VideoSampling
    from guardrail.types import Reading

RANDOM_SEEDS = 20


@dataclass(frozen=True, slots=True)
class Read:
    """What one prefill gives: of one input, or of a long video (windows + 1) of them, in order.

    `residuals` (rows, L, d_model) float32 are those of the last position, `found` what the rows
    score beside it.
    """

    residuals: Tensor
    found: tuple[Found, ...]

    def __post_init__(self) -> None:
        """Refuse what does not belong together."""
        if self.residuals.ndim != 3 or not 0 < len(self.residuals) == len(self.found):
            raise ValueError(
                f"residuals of shape {tuple(self.residuals.shape)} with {len(self.found)} readings"
            )


class Reader:
    """Reads what a guard's detector reads, and every layer at the last position, in one pass."""

    def __init__(
        self, loaded: LoadedModel, encoder: Encoder, detector: Detector, *, batch_size: int
    ) -> None:
        self._loaded, self._encoder, self._detector = loaded, encoder, detector
        self._batch_size = batch_size

    def __call__(self, requests: Sequence[Request], sampling: VideoSampling) -> list[Read]:
        """Read a batch that may be run together, or a request with long videos.

        Of a long video memory holds as many windows as go into a batch, and what was read of all.
        """
        if any(request.in_windows for request in requests):
            return [self._windows(request, sampling) for request in requests]
        return self._batch(requests)

    def _windows(self, request: Request, sampling: VideoSampling) -> Read:
        size = max(self._batch_size // sampling.window, 1)
        read, waiting = list[Read](), list[Request]()
        for judged in judged_requests(request, sampling.answer_frames):
            waiting.append(judged.request)
            if len(waiting) == size or judged.video is None:
                read += self._batch(waiting)
                waiting = []
        rows = torch.cat([one.residuals for one in read])
        return Read(rows, tuple(found for one in read for found in one.found))

    def _batch(self, requests: Sequence[Request]) -> list[Read]:
        encoded = self._encoder.encode(requests)
        reading = self._detector.reading(encoded.parts, encoded.prompt_len)
        residuals = last_residuals(self._loaded, encoded, reading=reading)
        found = [NOTHING] * len(requests) if reading is None else reading.found()
        return [Read(row[None], (one,)) for row, one in zip(residuals, found, strict=True)]


@dataclass(frozen=True, slots=True)
class ItemScores:
    """What was read of one input.

    `score` is the guard's own, `reading` which one it is from (see `Where`), None of a long video's
    windows; `action` what the guard does at the thresholds in force, or in shadow mode would do if
    it enforced them. At the last position alone: `layers` (L,) float64, the projection on each
    layer's difference of means; `random` (20,) float64, the score along random directions. Of a
    long video each is the highest of its windows, direction by direction.
    """

    score: float
    action: Action
    layers: Tensor
    random: Tensor
    reading: Reading | None = None


class Scorer:
    """Scores what was read as a guard of `artefact` under `policy` does."""

    def __init__(self, artefact: Artefact, policy: Policy) -> None:
        self.detector = Detector.from_artefact(artefact, policy)
        self._direction = artefact.tensors["direction"].double()
        self._random = random_directions(self.detector.readout.weight)

    @property
    def shape(self) -> tuple[int, ...]:
        """Layers and width of the residuals, (L, d_model)."""
        return tuple(self._direction.shape)

    def __call__(self, read: Read, kind: str) -> ItemScores:
        """The scores of one input of an offset kind.

        Raises:
            DetectorError: a score is not finite.
        """
        rows = read.residuals
        at_layers = rows[:, list(self.detector.layers)]
        scores = self.detector.decide(at_layers, [kind] * len(rows), read.found).scores
        # The floor under the last one, as in the guard; NaN where one has failed.
        floor = float(scores[:-1].max()) if len(rows) > 1 else NO_FLOOR
        decision = self.detector.decide(at_layers[-1:], [kind], read.found[-1:], [floor])
        if decision.failed[0]:
            raise DetectorError("the score is not finite: the detector failed on this input")
        score = float(decision.scores[0])
        earlier = read.found[-1].earlier and read.found[-1].score == score
        return ItemScores(
            score=score,
            action=self._action(decision, rows[-1], kind, earlier),
            layers=(rows.double() * self._direction).sum(-1).amax(0),
            random=self._along_random(at_layers).amax(0),
            reading=_reading(score, floor, read.found[-1]),
        )

    def _action(self, decision: object, residuals: Tensor, kind: str, earlier: bool) -> Action:
        """The decision, less what no edit can do: steer without a layer, or beyond its region."""
        (action,) = decision.actions  # type: ignore[attr-defined]
        policy, at = self.detector.policy, self.detector.steering_layer
        beyond = False
        if action is Action.STEER and at is not None:
            edit = self.detector.edit(decision, residuals[None, at], [kind])  # type: ignore[arg-type]
            beyond = not bool(edit.any())
        can_steer = at is not None
        return within_reach(action, policy, can_steer=can_steer, beyond=beyond, earlier=earlier)

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


def _reading(score: float, floor: float, found: Found) -> Reading | None:
    if score <= floor:
        return None
    return found.where.reading if found.where and found.score == score else "last"


def random_directions(weight: Tensor, seeds: int = RANDOM_SEEDS) -> Tensor:
    """Unit directions in the place of a readout's: (k, d_model) -> (seeds, k, d_model) float64."""
    drawn = []
    for seed in range(seeds):
        generator = torch.Generator().manual_seed(seed)
        drawn.append(torch.randn(weight.shape, generator=generator, dtype=torch.float64))
    directions: Tensor = torch.nn.functional.normalize(torch.stack(drawn), dim=-1)
    return directions


def packed(read: Read, dtype: torch.dtype) -> bytes:
    """What was read as safetensors, residuals in the model's own dtype where that loses nothing."""
    small = read.residuals.to(dtype)
    exact = torch.equal(small.float(), read.residuals)
    where = [one.where.to_dict(words=False) if one.where else None for one in read.found]
    return save(
        {
            "residuals": (small if exact else read.residuals).contiguous(),
            "scores": torch.tensor([one.score for one in read.found], dtype=torch.float64),
            "alone": torch.tensor([one.alone for one in read.found]),
            "where": torch.tensor(list(json.dumps(where).encode()), dtype=torch.uint8),
        }
    )


def unpacked(data: bytes, shape: tuple[int, ...]) -> Read:
    """What was read, as it was kept; residuals float32.

    Raises:
        ValueError: the bytes are nothing that was read of this shape.
    """
    try:
        kept = load(data)
        residuals, scores = kept["residuals"].float(), kept["scores"].tolist()
        alone = kept["alone"].tolist()
        where: Any = json.loads(bytes(kept["where"].tolist()))
        places = [None if one is None else Where.from_dict(one) for one in where]
        found = tuple(Found(*one) for one in zip(scores, places, alone, strict=True))
    except (SafetensorError, KeyError, TypeError) as error:
        raise ValueError(str(error)) from error
    if tuple(residuals.shape[-2:]) != shape:
        raise ValueError(f"residuals of shape {tuple(residuals.shape)}, wanted {shape}")
    return Read(residuals, found)
