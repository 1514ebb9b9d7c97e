"""The refusal direction of each layer: the difference of means."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

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
