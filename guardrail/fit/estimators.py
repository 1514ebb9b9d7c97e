"""Linear estimators of the same contrast, all put on one scale: 0 safe, 1 unsafe."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from guardrail.metrics import auroc

if TYPE_CHECKING:
    from collections.abc import Sequence


@dataclass(frozen=True)
class LinearReadout:
    """`weight` (k, d_model), unit rows, with the centroids' projections `zero` and `gap` (k,)."""

    estimator: str
    layers: tuple[int, ...]
    weight: Tensor
    zero: Tensor
    gap: Tensor

    def scores(self, residuals: Tensor, offset: Tensor | float = 0.0) -> Tensor:
        """All-layer residuals (n, L, d_model), offsets (k,) -> (n,) float64."""
        seen = residuals[:, list(self.layers)].double()
        read = (seen * self.weight.double()).sum(-1)
        scores: Tensor = ((read - offset - self.zero) / self.gap).mean(-1)
        return scores


def readout(name: str, layers: Sequence[int], unsafe: Tensor, safe: Tensor) -> LinearReadout | None:
    """Estimator `name` at `layers`, from residuals (n, L, d_model); None where it is degenerate."""
    made = [_one(ESTIMATORS[name], unsafe[:, i], safe[:, i]) for i in layers]
    rows = [row for row in made if row is not None]
    if len(rows) < len(made):
        return None
    weight, zero, gap = (torch.stack(part) for part in zip(*rows, strict=True))
    return LinearReadout(name, tuple(layers), weight.float(), zero, gap)


def mean_difference(unsafe: Tensor, safe: Tensor) -> Tensor:
    """Difference of means at one layer, (n, d) and (m, d) float64 -> (d,)."""
    difference: Tensor = unsafe.mean(0) - safe.mean(0)
    return difference


def shrinkage_lda(unsafe: Tensor, safe: Tensor) -> Tensor:
    """Within-class covariance, shrunk (Ledoit and Wolf 2004), solved for the difference of means.

    (n, d) and (m, d) float64 -> (d,). The classes weigh the same, however many prompts they have.
    """
    from sklearn.covariance import ledoit_wolf

    centred = [(part - part.mean(0)).numpy() for part in (unsafe, safe)]
    covariances = [torch.from_numpy(ledoit_wolf(part, assume_centered=True)[0]) for part in centred]
    pooled = (covariances[0] + covariances[1]) / 2
    solved: Tensor = torch.linalg.solve(pooled, mean_difference(unsafe, safe))
    return solved


ESTIMATORS = {"difference of means": mean_difference, "shrinkage LDA": shrinkage_lda}


def _one(estimate: object, unsafe: Tensor, safe: Tensor) -> tuple[Tensor, Tensor, Tensor] | None:
    high, low = unsafe.double(), safe.double()
    weight: Tensor = estimate(high, low)  # type: ignore[operator]
    norm = weight.norm()
    if not bool(torch.isfinite(norm) & (norm > 0)):
        return None
    weight = (weight / norm).float().double()  # as stored
    zero, gap = weight @ low.mean(0), weight @ (high.mean(0) - low.mean(0))
    return (weight, zero, gap) if bool(gap > 0) else None


@dataclass(frozen=True)
class Separation:
    """AUROC of unsafe prompts against each kind of safe prompt, and their plain mean."""

    by_kind: dict[str, float]

    @property
    def mean(self) -> float:
        """Every kind of safe prompt weighs the same, hard ones as much as ordinary ones."""
        return sum(self.by_kind.values()) / len(self.by_kind)


def separation(scores: Tensor, kinds: Sequence[str]) -> Separation:
    """How well scores (n,) tell `unsafe` from every other kind."""
    values = scores.tolist()
    unsafe = [s for s, kind in zip(values, kinds, strict=True) if kind == "unsafe"]
    others = sorted({kind for kind in kinds if kind != "unsafe"})
    return Separation(
        {
            kind: auroc(unsafe, [s for s, k in zip(values, kinds, strict=True) if k == kind])
            for kind in others
        }
    )
