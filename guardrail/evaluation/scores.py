"""From one input's residuals to everything that is read off them; the residuals are not kept."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from guardrail.decide.detector import Detector
from guardrail.decide.projection import projections
from guardrail.errors import DetectorError
from guardrail.types import Action

if TYPE_CHECKING:
    from guardrail.artefact import Artefact
    from guardrail.policy import Policy

RANDOM_SEEDS = 20


@dataclass(frozen=True, slots=True)
class ItemScores:
    """What one input's residuals say.

    `score` is the guard's own; `action` what it does at the thresholds in force, or in shadow mode
    would do if it enforced them; `layers` (L,) float64, the projection on each layer's difference
    of means; `random` (20,) float64, the score along random directions.
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

        Raises:
            DetectorError: its score is not finite.
        """
        read = residuals[None, list(self.detector.layers)]
        decision = self.detector.decide(read, [kind])
        if decision.failed[0]:
            raise DetectorError("the score is not finite: the detector failed on this input")
        return ItemScores(
            score=float(decision.scores[0]),
            action=self._action(decision, residuals, kind),
            layers=(residuals.double() * self._direction).sum(-1),
            random=self._along_random(read),
        )

    def _action(self, decision: object, residuals: Tensor, kind: str) -> Action:
        """The decision, less what no edit can do: steer without a layer, or beyond its region."""
        (action,) = decision.actions  # type: ignore[attr-defined]
        policy, at = self.detector.policy, self.detector.steering_layer
        if action is not Action.STEER:
            return Action(action)
        if at is None:
            return Action.PASS
        edit = self.detector.edit(decision, residuals[None, at], [kind])  # type: ignore[arg-type]
        if bool(edit.any()):
            return Action.STEER
        return Action.FLAG if Action.FLAG in policy.actions else Action.PASS

    def _along_random(self, read: Tensor) -> Tensor:
        readout = self.detector.readout
        seeds = len(self._random)
        gap = readout.gap.double()
        along = torch.stack([projections(read, weight)[0] for weight in self._random])
        scores: Tensor = ((along - readout.zero.double()) / gap).mean(-1)
        return scores.reshape(seeds)


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
        ValueError: the bytes are no residuals of this shape.
    """
    try:
        residuals = load(data)["residuals"].float()
    except (SafetensorError, KeyError) as error:
        raise ValueError(str(error)) from error
    if tuple(residuals.shape) != shape:
        raise ValueError(f"residuals of shape {tuple(residuals.shape)}, wanted {shape}")
    return residuals
