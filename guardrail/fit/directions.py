"""What a fit takes from residuals: directions, and scores of the layers.

A layer's refusal direction is its difference of means. Which layers carry the direction is told by
three held-out scores, those of MARS (arXiv 2606.31876).
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from guardrail.stats import auroc

if TYPE_CHECKING:
    from collections.abc import Sequence

NAMES = ("consistency", "separability", "margin")
SMALLEST = (
    1e-4  # of the safe mean's length; below it the template's own tokens are all that is seen
)


@dataclass(frozen=True)
class Directions:
    """Per layer: unit directions and class means, (L, d_model) float32; `usable` (L,) bool."""

    direction: Tensor
    mu_safe: Tensor
    mu_unsafe: Tensor
    usable: Tensor

    @property
    def norms(self) -> Tensor:
        """||mu_unsafe - mu_safe|| of each layer, (L,) float64: the text gap."""
        norms: Tensor = (self.mu_unsafe.double() - self.mu_safe.double()).norm(dim=-1)
        return norms


def difference_of_means(unsafe: Tensor, safe: Tensor) -> Directions:
    """Unit differences of the class means (Arditi et al. 2024, arXiv 2406.11717, section 2.3).

    Sums are taken in float64. A layer whose means (nearly) coincide, or are not finite, is marked
    unusable and gets a zero direction (and, if not finite, zero means): with most chat templates
    layer 0 at the last prompt position depends on the template's own tokens only.

    Args:
        unsafe: (n, L, d_model) residuals at the last prompt position.
        safe: (m, L, d_model).
    """
    low, high = safe.double().mean(0), unsafe.double().mean(0)
    difference = high - low
    norm = difference.norm(dim=-1)
    usable = torch.isfinite(norm) & (norm > SMALLEST * low.norm(dim=-1))
    unit = torch.where(usable[:, None], difference / norm.clamp_min(1e-30)[:, None], 0.0)
    # An overflow in one layer must not keep the others out of an artefact, which holds numbers only
    low, high = (torch.where(torch.isfinite(norm)[:, None], mean, 0.0) for mean in (low, high))
    return Directions(unit.float(), low.float(), high.float(), usable)


@dataclass(frozen=True)
class LayerScore:
    """Scores of one layer on held-out prompts; `score` is the mean of the three, min-max scaled."""

    layer: int
    usable: bool
    norm: float
    consistency: float = math.nan
    separability: float = math.nan
    margin: float = math.nan
    score: float = math.nan

    def to_dict(self) -> dict[str, float | int | bool | None]:
        """Plain values; NaN becomes None."""
        return {
            k: None if isinstance(v, float) and math.isnan(v) else v
            for k, v in asdict(self).items()
        }


def layer_scores(
    directions: Directions, unsafe: Tensor, safe: Tensor, pairs: Tensor | None
) -> list[LayerScore]:
    """Every layer's three scores on held-out residuals, and their min-max scaled mean.

    Args:
        directions: from other prompts than those scored here.
        unsafe: (n, L, d_model) held-out residuals.
        safe: (m, L, d_model).
        pairs: (p, L, d_model), residual of an unsafe prompt minus that of its matched safe
            one; None when the prompts come without pairs (no consistency then).
    """
    norms = directions.norms
    found = []
    for layer in range(len(norms)):
        plain = LayerScore(layer, bool(directions.usable[layer]), float(norms[layer]))
        if not plain.usable:
            found.append(replace(plain, norm=0.0 if not math.isfinite(plain.norm) else plain.norm))
            continue
        unit, base = directions.direction[layer].double(), directions.mu_safe[layer].double()
        high, low = (((x[:, layer].double() - base) @ unit) / norms[layer] for x in (unsafe, safe))
        found.append(
            replace(
                plain,
                consistency=math.nan if pairs is None else direction_consistency(pairs[:, layer]),
                separability=auroc(high.tolist(), low.tolist()),
                margin=safety_margin(high, low),
            )
        )
    return _combined(found)


def _combined(found: Sequence[LayerScore]) -> list[LayerScore]:
    usable = [s for s in found if s.usable]
    if not usable:
        return list(found)

    def scaled(name: str, layer: LayerScore) -> float:
        values = [getattr(s, name) for s in usable]
        low, high = min(values), max(values)
        value: float = getattr(layer, name)
        return (value - low) / (high - low) if high > low else 1.0

    names = [n for n in NAMES if not any(math.isnan(getattr(s, n)) for s in usable)]
    return [
        replace(s, score=sum(scaled(name, s) for name in names) / len(names)) if s.usable else s
        for s in found
    ]


def direction_consistency(differences: Tensor) -> float:
    """Mean pairwise cosine of per-pair differences, (n, d_model) -> float.

    Closed form, O(n): with unit rows u, sum over i != j of <u_i, u_j> = ||sum u||^2 - n.
    """
    unit = torch.nn.functional.normalize(differences.double(), dim=-1)
    n = len(unit)
    return float((unit.sum(0).square().sum() - n) / (n * (n - 1)))


def safety_margin(unsafe: Tensor, safe: Tensor) -> float:
    """q05 of the unsafe minus q95 of the safe scores, in units of the text gap."""
    return float(unsafe.double().quantile(0.05) - safe.double().quantile(0.95))
