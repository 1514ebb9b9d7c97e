"""The change of residual basis between two checkpoints, when it is a permutation with sign flips.

Every module of a decoder reads and writes the same residual stream, so the order of its coordinates
is a free choice: permute them in all weights and the model answers as before. With RMSNorm (whose
weights move along) signs are free, too; a LayerNorm, which subtracts the mean of the coordinates,
leaves only permutations. Which of these holds need not be known: the map is recovered from what
both checkpoints make of the same prompts. The basis is shared by all layers, so a coordinate is
known by its values in all of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from guardrail.fit.direction import Directions

RATIO = 4.0  # squared distance of the next best place to that of the best; below it, ambiguous
FLOOR = 1e-10  # squared relative distance that float32 means leave between equal coordinates


@dataclass(frozen=True)
class SignedPermutation:
    """new[..., j] = signs[j] * old[..., places[j]]; `places` (d,) int64, `signs` (d,) float64."""

    places: Tensor
    signs: Tensor

    def apply(self, vectors: Tensor) -> Tensor:
        """(..., d_model) in the old basis -> the same in the new one, in its dtype."""
        moved: Tensor = vectors[..., self.places] * self.signs.to(vectors.dtype)
        return moved

    @property
    def moved(self) -> int:
        """How many coordinates come from another place."""
        return int((self.places != torch.arange(len(self.places))).sum())

    @property
    def flipped(self) -> int:
        """How many change their sign."""
        return int((self.signs < 0).sum())


@dataclass(frozen=True)
class BasisMap:
    """The best map, what it leaves unexplained, and which coordinates it is unsure of, (d,) bool.

    `unexplained` is ||new - map(old)|| / ||new||, at most 1, root mean square over the features.
    """

    map: SignedPermutation
    unexplained: float
    ambiguous: Tensor


def recovered(old: Tensor, new: Tensor) -> BasisMap:
    """The signed permutation nearest to carrying `old` into `new`, by linear assignment.

    Coordinates are matched by 2 |<a, b>| / (||a||^2 + ||b||^2), the absolute cosine of their values
    less a penalty for unequal lengths: a basis change keeps lengths. Dead coordinates (zero
    everywhere) match each other. A coordinate is ambiguous when another place is less than twice as
    far from it as its own, so ties and noise are seen.

    Args:
        old: (features, d_model), float; one row per layer and class mean, or layer and prompt.
        new: the same features of the other checkpoint.

    Raises:
        ValueError: the shapes differ, there is no feature, or a value is not finite.
    """
    from scipy.optimize import linear_sum_assignment

    if old.shape != new.shape or old.dim() != 2 or not len(old):
        raise ValueError(f"features of shape {tuple(old.shape)} and {tuple(new.shape)}")
    if not bool(torch.isfinite(old).all() & torch.isfinite(new).all()):
        raise ValueError("features that are not finite have no map")
    scale = old.double().norm(dim=-1, keepdim=True).clamp_min(1e-30)
    before, after = old.double() / scale, new.double() / scale
    inner = after.T @ before
    lengths = after.square().sum(0)[:, None] + before.square().sum(0)
    likeness = torch.where(lengths > 0, 2 * inner.abs() / lengths.clamp_min(1e-300), 1.0)
    rows, columns = linear_sum_assignment(likeness.numpy(), maximize=True)
    places = torch.from_numpy(columns)[torch.from_numpy(rows).argsort()]
    own = torch.arange(len(places))
    signs = torch.where(inner[own, places] < 0, -1.0, 1.0).double()
    found = SignedPermutation(places, signs)
    rest = (after - found.apply(before)).norm(dim=-1)
    share = (rest / after.norm(dim=-1).clamp_min(1e-30)).clamp_max(1.0)
    return BasisMap(found, float(share.square().mean().sqrt()), _ambiguous(likeness, places))


def _ambiguous(likeness: Tensor, places: Tensor) -> Tensor:
    own = likeness[torch.arange(len(places)), places]
    others = likeness.clone()
    others[torch.arange(len(places)), places] = -1.0
    result: Tensor = (1 - others.amax(1)) < RATIO * (1 - own).clamp_min(FLOOR)
    return result


def mean_features(directions: Directions) -> Tensor:
    """Safe means and differences of means of every layer, (2 L, d_model) float64."""
    safe = directions.mu_safe.double()
    return torch.cat([safe, directions.mu_unsafe.double() - safe])
