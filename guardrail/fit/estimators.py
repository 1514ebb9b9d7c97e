"""Linear estimators of the same contrast, all put on one scale: 0 safe, 1 unsafe."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from guardrail.decide.linear import refusal_scores
from guardrail.stats import auroc

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
        return refusal_scores(
            residuals[:, list(self.layers)],
            weight=self.weight,
            zero=self.zero,
            gap=self.gap,
            offset=torch.as_tensor(offset),
        )


def readout(
    name: str, layer: int, unsafe: Sequence[Tensor], safe: Sequence[Tensor]
) -> LinearReadout | None:
    """Estimator `name` at one layer; None where it is degenerate.

    Args:
        name: a key of `ESTIMATORS`.
        layer: which layer of the residuals.
        unsafe: residuals of each form of prompts, (n, L, d_model); forms weigh the same, however
            many prompts they have.
        safe: the same forms, (m, L, d_model).
    """
    high, low = ([form[:, layer].double() for form in part] for part in (unsafe, safe))
    weight = ESTIMATORS[name](high, low)
    norm = weight.norm()
    if not bool(torch.isfinite(norm) & (norm > 0)):
        return None
    weight = (weight / norm).float().double()  # as stored
    zero, gap = weight @ _centre(low), weight @ (_centre(high) - _centre(low))
    if not bool(gap > 0):
        return None
    return LinearReadout(name, (layer,), weight[None].float(), zero[None], gap[None])


def averaged(readouts: Sequence[LinearReadout]) -> LinearReadout:
    """The mean score of several layers, ascending."""
    parts = sorted(readouts, key=lambda r: r.layers)
    return LinearReadout(
        parts[0].estimator,
        tuple(layer for part in parts for layer in part.layers),
        torch.cat([part.weight for part in parts]),
        torch.cat([part.zero for part in parts]),
        torch.cat([part.gap for part in parts]),
    )


def mean_difference(unsafe: Sequence[Tensor], safe: Sequence[Tensor]) -> Tensor:
    """Difference of means at one layer, forms of (n, d) and (m, d) float64 -> (d,)."""
    return _centre(unsafe) - _centre(safe)


def shrinkage_lda(unsafe: Sequence[Tensor], safe: Sequence[Tensor]) -> Tensor:
    """Within-class covariance, shrunk (Ledoit and Wolf 2004), solved for the difference of means.

    Forms of (n, d) and (m, d) float64 -> (d,). Classes and forms weigh the same, however many
    prompts they have; how a class moves between forms counts as variation within it. NaN where
    nothing varies.
    """
    pooled = (_covariance(unsafe) + _covariance(safe)) / 2
    solved: Tensor
    solved, singular = torch.linalg.solve_ex(pooled, mean_difference(unsafe, safe))
    return torch.full_like(solved, torch.nan) if singular else solved


ESTIMATORS = {"difference of means": mean_difference, "shrinkage LDA": shrinkage_lda}


def _centre(forms: Sequence[Tensor]) -> Tensor:
    return torch.stack([form.mean(0) for form in forms]).mean(0)


def _covariance(forms: Sequence[Tensor]) -> Tensor:
    from sklearn.covariance import ledoit_wolf

    centre = _centre(forms)
    found = [ledoit_wolf((form - centre).numpy(), assume_centered=True)[0] for form in forms]
    return torch.stack([torch.from_numpy(one) for one in found]).mean(0)


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
