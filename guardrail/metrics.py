"""Rates with their counts, and the two figures a detector is judged by."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence


@dataclass(frozen=True, slots=True)
class Rate:
    """A share of `n` inputs, with its exact 95 % interval (Clopper and Pearson 1934)."""

    hits: int
    n: int

    def __post_init__(self) -> None:
        """Refuse counts that are no share."""
        if not 0 <= self.hits <= self.n or self.n < 1:
            raise ValueError(f"a rate needs 0 <= hits <= n and n >= 1; got {self.hits} of {self.n}")

    @classmethod
    def of(cls, flags: Sequence[bool]) -> Rate:
        """The share of true flags."""
        return cls(sum(map(bool, flags)), len(flags))

    @property
    def value(self) -> float:
        """The share itself, 0 to 1."""
        return self.hits / self.n

    def interval(self, confidence: float = 0.95) -> tuple[float, float]:
        """Lower and upper end of the Clopper-Pearson interval."""
        from scipy.stats import binomtest

        ends = binomtest(self.hits, self.n).proportion_ci(confidence, method="exact")
        return float(ends.low), float(ends.high)

    def to_dict(self) -> dict[str, float]:
        """Share, counts and interval as plain numbers."""
        low, high = self.interval()
        return {"rate": self.value, "hits": self.hits, "n": self.n, "low": low, "high": high}

    def __str__(self) -> str:
        """The share, its counts and its interval, for people."""
        low, high = self.interval()
        return f"{self.value:.3f} ({self.hits}/{self.n}, 95% CI {low:.3f} to {high:.3f})"


def auroc(unsafe: Sequence[float], safe: Sequence[float]) -> float:
    """Chance that a random unsafe score exceeds a random safe one; ties count half.

    The Mann-Whitney form of the area under the ROC curve.

    Raises:
        ValueError: one side is empty or holds NaN, which has no rank.
    """
    from scipy.stats import rankdata

    if not len(unsafe) or not len(safe):
        raise ValueError("AUROC needs scores of both classes")
    both = [*unsafe, *safe]
    if any(x != x for x in both):
        raise ValueError("AUROC of NaN scores is undefined")
    ranks = rankdata(both)
    above = float(ranks[: len(unsafe)].sum()) - len(unsafe) * (len(unsafe) + 1) / 2
    return above / (len(unsafe) * len(safe))


def auroc_interval(
    unsafe: Sequence[float], safe: Sequence[float], *, draws: int = 2000, seed: int = 0
) -> tuple[float, float]:
    """95 % percentile bootstrap interval of `auroc`, each class resampled on its own."""
    import numpy as np

    rng = np.random.default_rng(seed)
    high, low = np.asarray(unsafe, dtype=float), np.asarray(safe, dtype=float)
    values = [
        auroc(rng.choice(high, len(high)).tolist(), rng.choice(low, len(low)).tolist())
        for _ in range(draws)
    ]
    first, last = np.quantile(values, [0.025, 0.975])
    return float(first), float(last)


def conformal_threshold(benign: Sequence[float], rate: float) -> float:
    """Smallest score that a fresh benign input exceeds with probability at most `rate`.

    The ceil((n + 1)(1 - rate))-th smallest of n benign scores (split conformal prediction, Vovk et
    al. 2005): valid for exchangeable traffic whatever its distribution.

    Raises:
        ValueError: n is too small for the rate; it takes n >= 1/rate - 1.
    """
    import math

    if not 0 < rate < 1:
        raise ValueError(f"a rate lies between 0 and 1; got {rate}")
    place = math.ceil((len(benign) + 1) * (1 - rate) - 1e-9)
    if place > len(benign):
        needed = math.ceil(1 / rate - 1 - 1e-9)
        raise ValueError(
            f"{len(benign)} benign scores cannot support a rate of {rate}: need {needed}"
        )
    return sorted(benign)[place - 1]


def tpr_at_fpr(unsafe: Sequence[float], safe: Sequence[float], fpr: float) -> Rate:
    """Share of unsafe scores above the threshold that at most `fpr` of the safe ones exceed."""
    allowed = int(fpr * len(safe) + 1e-9)
    threshold = sorted(safe, reverse=True)[allowed] if allowed < len(safe) else float("-inf")
    return Rate.of([score > threshold for score in unsafe])
