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
    from collections.abc import Mapping, Sequence


def wide(tensor: Tensor) -> Tensor:
    """The tensor in float64, or in float32 where the device has nothing wider (Apple's MPS)."""
    return tensor.float() if tensor.device.type == "mps" else tensor.double()


def projections(residuals: Tensor, weight: Tensor) -> Tensor:
    """<h, w> for every row and layer: (rows, k, d_model), (k, d_model) -> (rows, k) float64."""
    result: Tensor = (wide(residuals) * wide(weight.to(residuals.device))).sum(-1)
    return result


def refusal_scores(residuals: Tensor, *, weight: Tensor, zero: Tensor, gap: Tensor) -> Tensor:
    """Mean over the readout layers of (<h, w> - zero) / gap.

    With w the unit difference of means this is the projection on the refusal direction (Arditi et
    al. 2024, arXiv 2406.11717) with 0 at the text-safe and 1 at the text-unsafe centroid; any other
    linear estimator is put on the same scale by its own two centroids.

    Args:
        residuals: (rows, k, d_model), any float dtype; the readout layers at the last prompt
            position.
        weight: (k, d_model), the direction read at each layer.
        zero: (k,), projection of the text-safe centroid.
        gap: (k,), distance of the two text centroids along `weight`; positive.

    Returns:
        (rows,) float64 on the CPU; NaN or infinite where a residual was.
    """
    read = projections(residuals, weight).cpu().double()
    result: Tensor = ((read - zero.double()) / gap.double()).mean(-1)
    return result


Recentring = tuple[float, float]
"""(b, m): beside a meaningless picture a request that scores s as text scores b + m s."""
UNMOVED: Recentring = (0.0, 1.0)


def recentred(scores: Tensor, lines: Sequence[Recentring]) -> Tensor:
    """Scores (rows,) float64 as they would be without the rows' pictures: (s - b) / m.

    MARS (arXiv 2606.31876) takes a constant off. A picture contracts the scores, though: no
    constant fits both classes, and one that fits the safe ones lowers the unsafe ones.
    """
    line = torch.tensor(lines, dtype=torch.float64)
    result: Tensor = (scores - line[:, 0]) / line[:, 1]
    return result


def bounded_strength(
    score: Tensor,
    local_score: Tensor,
    *,
    gate: Tensor,
    gain: float,
    a_max: float,
    region_max: Tensor,
) -> Tensor:
    """clip(gain * (score - gate), 0, a_max), cut so that the moved row stays in the trust region.

    The ReLU gate of MARS (arXiv 2606.31876) opens by the detection score; the region is bounded at
    the steering layer, by the largest score that calibration found safe to reach there.

    Args:
        score: (rows,), detection score.
        local_score: (rows,), score of the same rows at the steering layer, as it was read.
        gate: (rows,), score at which the gate opens.
        gain: move per unit of score above the gate, in text gaps.
        a_max: largest move, in text gaps.
        region_max: (rows,), largest score a row may have there after the move.

    Returns:
        (rows,) float64, the move in units of the text gap at the steering layer; never negative.
    """
    wanted = (gain * (score.double() - gate.double())).clamp(0.0, a_max)
    room = (region_max.double() - local_score.double()).clamp_min(0.0)
    result: Tensor = wanted.minimum(room)
    return result


@dataclass(frozen=True)
class Readout:
    """A linear detector over k layers (see `refusal_scores`), re-centred by kind of picture."""

    layers: tuple[int, ...]
    weight: Tensor
    zero: Tensor
    gap: Tensor
    recentring: Mapping[str, Recentring]

    def scores(self, residuals: Tensor, kinds: Sequence[str]) -> Tensor:
        """(rows, k, d_model) and the kind of each row -> (rows,) float64."""
        read = refusal_scores(residuals, weight=self.weight, zero=self.zero, gap=self.gap)
        return recentred(read, [self.recentring[kind] for kind in kinds])


@dataclass(frozen=True)
class Steering:
    """The edit: a unit direction at one layer, how far along it, and for how many tokens."""

    layer: int
    direction: Tensor
    zero: float
    gap: float
    recentring: Mapping[str, Recentring]
    gain: float
    a_max: float
    region_max: float
    tokens: int

    def local_scores(self, residuals: Tensor) -> Tensor:
        """(rows, 1, d_model) here, or (rows, L, d_model) of all layers -> (rows,) float64.

        Projections on the direction at this layer, 0 and 1 at the text centroids.
        """
        at = 0 if residuals.shape[1] == 1 else self.layer
        read = projections(residuals[:, at : at + 1], self.direction[None])[:, 0]
        scores: Tensor = (read.cpu().double() - self.zero) / self.gap
        return scores

    def edits(
        self, scores: Tensor, residual: Tensor, gates: Tensor, kinds: Sequence[str]
    ) -> Tensor:
        """(rows, d_model) at the steering layer -> what to add, (rows, d_model) float32.

        Not finite where the residual or the score is not; zero beyond the trust region.
        """
        line = torch.tensor([self.recentring[kind] for kind in kinds], dtype=torch.float64)
        move = bounded_strength(
            scores,
            self.local_scores(residual[:, None]),
            gate=gates,
            gain=self.gain,
            a_max=self.a_max,
            # the region as it is read beside each row's pictures
            region_max=line[:, 0] + line[:, 1] * self.region_max,
        )
        away = move * self.gap
        direction = wide(self.direction.to(residual.device))
        edit: Tensor = (away.to(residual.device, direction.dtype)[:, None] * direction).float()
        return edit
