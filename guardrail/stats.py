"""Figures a detector is judged by, with counts and 95 % intervals, and as reports write them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Self

from pydantic import BaseModel, ConfigDict, ValidationError

from guardrail.errors import ConfigurationError
from guardrail.extras import require

if TYPE_CHECKING:
    from collections.abc import Sequence

Z_95 = 1.959964  # of a 95 % interval


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
        return clopper_pearson(self.hits, self.n, (1 - confidence) / 2)

    def to_dict(self) -> dict[str, float]:
        """Share, counts and interval as plain numbers."""
        low, high = self.interval()
        return {"rate": self.value, "hits": self.hits, "n": self.n, "low": low, "high": high}

    def __str__(self) -> str:
        """The share, its counts and its interval, for people."""
        low, high = self.interval()
        return f"{self.value:.3f} ({self.hits}/{self.n}, 95% CI {low:.3f} to {high:.3f})"


def clopper_pearson(hits: float, n: int, beyond: float = 0.025) -> tuple[float, float]:
    """The exact interval of a share: its ends leave out `beyond` on each side, in closed form.

    `hits` may lie between counts.
    """
    quantile = require("scipy.special").betaincinv
    low = float(quantile(hits, n - hits + 1, beyond)) if hits > 0 else 0.0
    return low, float(quantile(hits + 1, n - hits, 1 - beyond)) if hits < n else 1.0


def auroc(unsafe: Sequence[float], safe: Sequence[float]) -> float:
    """Chance that a random unsafe score exceeds a random safe one; ties count half.

    The Mann-Whitney form of the area under the ROC curve.

    Raises:
        ValueError: one side is empty or holds NaN, which has no rank.
    """
    if not len(unsafe) or not len(safe):
        raise ValueError("AUROC needs scores of both classes")
    both = [*unsafe, *safe]
    if any(x != x for x in both):
        raise ValueError("AUROC of NaN scores is undefined")
    ranks = require("scipy.stats").rankdata(both)
    above = float(ranks[: len(unsafe)].sum()) - len(unsafe) * (len(unsafe) + 1) / 2
    return above / (len(unsafe) * len(safe))


def auroc_interval(unsafe: Sequence[float], safe: Sequence[float]) -> tuple[float, float]:
    """95 % interval of `auroc`: the wider ends of two closed forms.

    DeLong et al. (1988) on the logit scale, with Student's t (Satterthwaite's degrees of freedom),
    follows the data but collapses where few pairs are out of order; the score interval of Newcombe
    (2006, part 2, method 5) holds there but assumes classes of equal spread. Simulated, each alone
    falls below 0.90 somewhere and both together cover 0.94 or more. A percentile bootstrap covers
    0.75 and less at an AUROC of 0.99, where it matters most.

    Raises:
        ValueError: as `auroc`.
    """
    value = auroc(unsafe, safe)
    low, high = _newcombe(value, len(unsafe), len(safe))
    placed = _delong(unsafe, safe, value)
    return (low, high) if placed is None else (min(low, placed[0]), max(high, placed[1]))


def _newcombe(value: float, m: int, n: int) -> tuple[float, float]:
    """The ends at which `value` is 1.96 of the end's own standard errors away."""
    brentq = require("scipy.optimize").brentq

    def away(end: float) -> float:
        spread = 1 + ((m + n) / 2 - 1) * ((1 - end) / (2 - end) + end / (1 + end))
        return abs(value - end) - Z_95 * math.sqrt(end * (1 - end) * spread / (m * n))

    inside = 1e-9  # at 0 and 1 the error is 0, so the root would be there
    low = brentq(away, inside, min(value, 1 - inside)) if value > inside else 0.0
    high = brentq(away, max(value, inside), 1 - inside) if value < 1 - inside else 1.0
    return float(low), float(high)


def _delong(
    unsafe: Sequence[float], safe: Sequence[float], value: float
) -> tuple[float, float] | None:
    """Logit interval from the placements of each score; None where they do not vary."""
    special, stats = require("scipy.special"), require("scipy.stats")
    m, n = len(unsafe), len(safe)
    if min(m, n) < 2 or not 0 < value < 1:
        return None
    ranks = stats.rankdata([*unsafe, *safe])
    above = (ranks[:m] - stats.rankdata(unsafe)) / n  # share of safe scores below each unsafe one
    below = (ranks[m:] - stats.rankdata(safe)) / m
    parts = float(above.var(ddof=1)) / m, float(below.var(ddof=1)) / n
    variance = sum(parts)
    if variance == 0:
        return None
    freedom = variance**2 / (parts[0] ** 2 / (m - 1) + parts[1] ** 2 / (n - 1))
    reach = stats.t.ppf(0.975, freedom) * math.sqrt(variance) / (value * (1 - value))
    middle = special.logit(value)
    return float(special.expit(middle - reach)), float(special.expit(middle + reach))


def average_precision(unsafe: Sequence[float], safe: Sequence[float]) -> float:
    """Precision at each unsafe score, averaged over them; depends on how many safe ones there are.

    Raises:
        ValueError: as `auroc`.
    """
    auroc(unsafe, safe)  # the same demands
    labels = [1] * len(unsafe) + [0] * len(safe)
    metrics = require("sklearn.metrics")
    return float(metrics.average_precision_score(labels, [*unsafe, *safe]))


def average_precision_interval(
    unsafe: Sequence[float], safe: Sequence[float]
) -> tuple[float, float]:
    """95 % interval of `average_precision`: it is treated as a share of the unsafe inputs.

    The binomial interval of Boyd et al. (2013, section 3), in its exact form; conservative.
    """
    return clopper_pearson(average_precision(unsafe, safe) * len(unsafe), len(unsafe))


def conformal_threshold(benign: Sequence[float], rate: float) -> float:
    """Smallest score that a fresh benign input exceeds with probability at most `rate`.

    The ceil((n + 1)(1 - rate))-th smallest of n benign scores (split conformal prediction, Vovk et
    al. 2005): valid for exchangeable traffic whatever its distribution.

    Raises:
        ValueError: n is too small for the rate; it takes n >= 1/rate - 1.
    """
    if not 0 < rate < 1:
        raise ValueError(f"a rate lies between 0 and 1; got {rate}")
    place = conformal_place(len(benign), rate)
    if place > len(benign):
        raise ValueError(
            f"{len(benign)} benign scores cannot support a rate of {rate}: need "
            f"{needed_scores(rate)}"
        )
    return sorted(benign)[place - 1]


def conformal_place(n: int, rate: float) -> int:
    """Which of n ascending scores, from 1 on, is the threshold for a rate; above n: none is."""
    return math.ceil((n + 1) * (1 - rate) - 1e-9)


def needed_scores(rate: float) -> int:
    """How many benign scores a target rate takes: 1/rate - 1, rounded up."""
    return math.ceil(1 / rate - 1 - 1e-9)


def tpr_at_fpr(unsafe: Sequence[float], safe: Sequence[float], fpr: float) -> Rate:
    """Share of unsafe scores above the threshold that at most `fpr` of the safe ones exceed.

    The rate's own interval takes the threshold for known; `tpr_at_fpr_interval` does not.
    """
    return Rate(_above(unsafe, threshold_at_fpr(safe, fpr)), len(unsafe))


def threshold_at_fpr(safe: Sequence[float], fpr: float) -> float:
    """The score that at most `fpr` of the safe ones exceed."""
    return _exceeded_by(safe, int(fpr * len(safe) + 1e-9))


def tpr_at_fpr_interval(
    unsafe: Sequence[float], safe: Sequence[float], fpr: float
) -> tuple[float, float]:
    """95 % interval of the true-positive rate where the *true* false-positive rate is `fpr`.

    Two errors add up: that of the rate (Clopper-Pearson), and that of the threshold, which is one
    of the order statistics between the binomial quantiles of the number of safe scores beyond it.
    They are combined as distances from the estimate (Zou and Donner 2008). The first alone covers
    as little as 0.52 of the time when there are few safe scores; both together 0.95 or more. With
    too few safe scores for the rate the lower end is 0, or near it.
    """
    binom = require("scipy.stats").binom
    found = tpr_at_fpr(unsafe, safe, fpr)
    value, (low, high) = found.value, found.interval()
    fewest, most = (int(binom.ppf(q, len(safe), fpr)) for q in (0.025, 0.975))
    strict = _above(unsafe, _exceeded_by(safe, fewest - 1)) / len(unsafe) if fewest else 0.0
    lenient = _above(unsafe, _exceeded_by(safe, most)) / len(unsafe)
    return (
        max(0.0, value - math.hypot(value - low, value - strict)),
        min(1.0, value + math.hypot(high - value, lenient - value)),
    )


def _exceeded_by(safe: Sequence[float], allowed: int) -> float:
    """The threshold that `allowed` safe scores exceed."""
    return sorted(safe, reverse=True)[allowed] if allowed < len(safe) else float("-inf")


def _above(scores: Sequence[float], threshold: float) -> int:
    return sum(score > threshold for score in scores)


class Frozen(BaseModel):
    """A record of plain, finite values; a key it does not know is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Estimate(Frozen):
    """A figure and its 95 % interval."""

    value: float
    low: float
    high: float

    @classmethod
    def of_auroc(cls, unsafe: Sequence[float], safe: Sequence[float]) -> Self:
        """The AUROC of two classes' scores.

        Raises:
            ValueError: as `auroc`.
        """
        low, high = auroc_interval(unsafe, safe)
        return cls(value=auroc(unsafe, safe), low=low, high=high)


class Share(Frozen):
    """A rate of n inputs and its 95 % interval."""

    rate: float
    hits: int
    n: int
    low: float
    high: float

    @classmethod
    def of(cls, rate: Rate) -> Self:
        """A `Rate` as it is written down."""
        return cls.model_validate(rate.to_dict())

    @property
    def complement(self) -> Share:
        """The share of inputs that this one leaves over; its exact interval is the mirror image."""
        return Share(
            rate=1 - self.rate,
            hits=self.n - self.hits,
            n=self.n,
            low=1 - self.high,
            high=1 - self.low,
        )


class SavedReport(Frozen):
    """A report that is kept as JSON and names the version of its schema."""

    name: ClassVar[str]
    command: ClassVar[str]

    @classmethod
    def from_json(cls, text: str | bytes) -> Self:
        """A report as its file holds it.

        Raises:
            ConfigurationError: this is no such report of the version this release reads.
        """
        try:
            return cls.model_validate_json(text)
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            place = ".".join(map(str, first["loc"]))
            told = f"{place or 'the file'}: {first['msg']}"
            if place == "schema_version":
                told = f"it says {first['input']!r}"
            version = cls.model_fields["schema_version"].default
            raise ConfigurationError(
                f"this is no {cls.name} of version {version} ({told}); make one with "
                f"`{cls.command}`"
            ) from error
