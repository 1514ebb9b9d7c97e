"""The score: a re-centred projection of the residual stream, in units of the text gap."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


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
