"""How far new scores may lie from their calibration by chance alone."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

_MANY = 10**9
_SMOOTHING = 0.5  # added to every bin, so that an empty one has a logarithm


def population_stability_index(now: Sequence[int], before: Sequence[int]) -> float:
    """Sum over bins of (p - q) ln(p / q), the symmetrised Kullback-Leibler divergence, in nats.

    p and q are the shares of two samples in the same bins, half an input added to each bin of
    both. By custom below 0.1 is small and above 0.2 (or 0.25) large, whatever the sample sizes.

    Raises:
        ValueError: the bins differ in number, or a sample is empty.
    """
    if len(now) != len(before) or not sum(now) or not sum(before):
        raise ValueError("the index needs two samples, counted in the same bins")
    p, q = _shares(now), _shares(before)
    return sum((a - b) * math.log(a / b) for a, b in zip(p, q, strict=True))


def _shares(counts: Sequence[int]) -> list[float]:
    total = sum(counts) + _SMOOTHING * len(counts)
    return [(count + _SMOOTHING) / total for count in counts]


def index_by_chance(n_now: int, n_before: int, bins: int, alpha: float) -> float:
    """The index that two samples of the same distribution exceed with probability `alpha`.

    (1/n + 1/m) times a quantile of chi-square with bins - 1 degrees of freedom (Yurdakul and
    Naranjo 2020, "Statistical properties of the population stability index", Journal of Risk Model
    Validation 14(4)). Asymptotic; a hundred inputs in ten bins are enough.
    """
    from scipy.stats import chi2

    return float((1 / n_now + 1 / n_before) * chi2.isf(alpha, bins - 1)) if bins > 1 else 0.0


def exceedance_p_value(hits: int, n: int, *, target: float, n_before: int) -> float:
    """Probability of `hits` or more of `n` inputs beyond a conformal threshold, without a shift.

    The threshold is the k-th smallest of `n_before` calibration scores, so it is itself an
    estimate. The binomial test of `target` takes it for exact and raises false alarms as soon as
    there is more traffic than calibration data. Given that old and new scores are exchangeable, the
    exact distribution is hypergeometric: `hits` new scores above the threshold means that of the
    highest hits + (n_before + 1 - k) - 1 scores of both together at most n_before - k are old. Ties
    and thresholds set higher than the target asks for only make the test more cautious.

    With too few calibration scores for the target, the exact binomial test of the target. Beyond
    10^9 inputs the share counts as known: the limit is the Beta distribution of `rate_interval`,
    and the exact one is no longer computed in reasonable time.
    """
    from scipy.stats import beta, binom, hypergeom

    if hits == 0:
        return 1.0
    above = n_before - math.ceil((n_before + 1) * (1 - target) - 1e-9)  # old scores, without ties
    if above < 0:
        return float(binom.sf(hits - 1, n, target))
    if n > _MANY:
        return float(beta.sf(hits / n, above + 1, n_before - above))
    return float(hypergeom.cdf(above, n + n_before, n_before, hits + above))
