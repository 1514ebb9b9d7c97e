"""The two linear maps of a detector, as tensors: what it reads, and which way it steers.

The score is a re-centred projection of the residual stream, in units of the text gap. The edit
moves a row along the refusal direction, no further than the trust region allows.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from collections.abc import Sequence


def wide(tensor: Tensor) -> Tensor:
    """The tensor in float64, or in float32 where the device has nothing wider (Apple's MPS)."""
    return tensor.float() if tensor.device.type == "mps" else tensor.double()


def projections(residuals: Tensor, weight: Tensor) -> Tensor:
    """<h, w> for every row and layer: (rows, k, d_model), (k, d_model) -> (rows, k) float64."""
    result: Tensor = (wide(residuals) * wide(weight.to(residuals.device))).sum(-1)
    return result


def refusal_scores(
    residuals: Tensor, *, weight: Tensor, zero: Tensor, gap: Tensor, offset: Tensor
) -> Tensor:
    """Mean over the readout layers of (<h - b, w> - zero) / gap.

    With w the unit difference of means this is the re-centred projection of MARS (arXiv
    2606.31876) with 0 at the text-safe and 1 at the text-unsafe centroid; any other linear
    estimator is put on the same scale by its own two centroids.

    Args:
        residuals: (rows, k, d_model), any float dtype; the readout layers at the last prompt
            position.
        weight: (k, d_model), the direction read at each layer.
        zero: (k,), projection of the text-safe centroid.
        gap: (k,), distance of the two text centroids along `weight`; positive.
        offset: (rows, k), what the row's kind of picture adds to the projection (0 for text).

    Returns:
        (rows,) float64 on the CPU; NaN or infinite where a residual was.
    """
    read = projections(residuals, weight).cpu().double()
    result: Tensor = ((read - offset.double() - zero.double()) / gap.double()).mean(-1)
    return result


def bounded_strength(
    score: Tensor,
    local_score: Tensor,
    *,
    gate: Tensor,
    gain: float,
    a_max: float,
    region_max: float,
) -> Tensor:
    """clip(gain * (score - gate), 0, a_max), cut so that the moved row stays in the trust region.

    The ReLU gate of MARS (arXiv 2606.31876) opens by the detection score; the region is bounded at
    the steering layer, by the largest re-centred score that calibration found safe to reach there.

    Args:
        score: (rows,), detection score.
        local_score: (rows,), re-centred score of the same rows at the steering layer.
        gate: (rows,), score at which the gate opens.
        gain: move per unit of score above the gate, in text gaps.
        a_max: largest move, in text gaps.
        region_max: largest score a row may have after the move.

    Returns:
        (rows,) float64, the move in units of the text gap at the steering layer; never negative.
    """
    wanted = (gain * (score.double() - gate.double())).clamp(0.0, a_max)
    room = (region_max - local_score.double()).clamp_min(0.0)
    result: Tensor = wanted.minimum(room)
    return result


@dataclass(frozen=True)
class Readout:
    """A linear detector over k layers; see `refusal_scores` for the formula."""

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
