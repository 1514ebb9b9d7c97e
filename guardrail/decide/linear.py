"""The two linear maps of a detector: what it reads, and which way it steers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from guardrail.decide.projection import projections, refusal_scores, wide
from guardrail.decide.trust_region import bounded_strength

if TYPE_CHECKING:
    from collections.abc import Sequence


@dataclass(frozen=True)
class Readout:
    """A linear detector over k layers; see `projection.refusal_scores` for the formula."""

    layers: tuple[int, ...]
    weight: Tensor
    zero: Tensor
    gap: Tensor
    offsets: dict[str, Tensor]

    def scores(self, residuals: Tensor, kinds: Sequence[str]) -> Tensor:
        """(rows, k, d_model) and the offset kind of each row -> (rows,) float64."""
        offset = torch.stack([self.offsets[kind] for kind in kinds])
        return refusal_scores(
            residuals, weight=self.weight, zero=self.zero, gap=self.gap, offset=offset
        )


@dataclass(frozen=True)
class Steering:
    """The edit: a unit direction at one layer, how far along it, and for how many tokens."""

    layer: int
    direction: Tensor
    zero: float
    gap: float
    offsets: dict[str, float]
    gain: float
    a_max: float
    region_max: float
    tokens: int

    def edits(
        self, scores: Tensor, residual: Tensor, gates: Tensor, kinds: Sequence[str]
    ) -> Tensor:
        """(rows, d_model) at the steering layer -> what to add, (rows, d_model) float32.

        Not finite where the residual or the score is not; zero beyond the trust region.
        """
        offset = torch.tensor([self.offsets[kind] for kind in kinds], dtype=torch.float64)
        read = projections(residual[:, None], self.direction[None])[:, 0].cpu().double()
        local = (read - offset - self.zero) / self.gap
        move = bounded_strength(
            scores, local, gate=gates, gain=self.gain, a_max=self.a_max, region_max=self.region_max
        )
        away = move * self.gap
        direction = wide(self.direction.to(residual.device))
        edit: Tensor = (away.to(residual.device, direction.dtype)[:, None] * direction).float()
        return edit
