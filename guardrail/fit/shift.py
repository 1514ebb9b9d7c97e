"""Whether new benign scores look like those the thresholds were set on before."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

P_VALUE = 0.01
LEAST_DISTANCE = 0.1


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoreShift:
    """The two-sample Kolmogorov-Smirnov distance of two sets of scores, and their medians."""

    distance: float
    p_value: float
    n_now: int
    n_before: int
    median_now: float
    median_before: float

    @property
    def notable(self) -> bool:
        """Beyond chance (p < 0.01), and more than a tenth of the inputs lie elsewhere."""
        return self.p_value < P_VALUE and self.distance > LEAST_DISTANCE

    def describe(self, *, source: str) -> str:
        """For the one who calibrates; `source` is what the earlier scores are of."""
        way = "higher" if self.median_now > self.median_before else "lower"
        way = "about as high" if self.median_now == self.median_before else way
        return (
            f"this traffic scores differently ({way}) from the inputs calibrated on before "
            f"({source}): median {self.median_now:.3f} (n = {self.n_now}) against "
            f"{self.median_before:.3f} (n = {self.n_before}), Kolmogorov-Smirnov D = "
            f"{self.distance:.3f}, p = {self.p_value:.2g}. The new thresholds fit this traffic; "
            "detection rates measured at the old ones need not hold for it"
        )


def score_shift(now: Sequence[float], before: Sequence[float]) -> ScoreShift:
    """Compare two non-empty sets of scores (Kolmogorov 1933, Smirnov 1939).

    The p-value is the asymptotic one: exact ones are slow for thousands of scores. Ties make it
    larger than it is, so they cannot cause a false warning.
    """
    from scipy.stats import ks_2samp

    found = ks_2samp(list(now), list(before), method="asymp")
    return ScoreShift(
        distance=float(found.statistic),
        p_value=float(found.pvalue),
        n_now=len(now),
        n_before=len(before),
        median_now=median(now),
        median_before=median(before),
    )
