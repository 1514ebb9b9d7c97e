"""How far a row may be moved along the refusal direction."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


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
