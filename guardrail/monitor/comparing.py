"""Whether the scores of late still look like those the thresholds were set on."""

from __future__ import annotations

import math
from datetime import datetime
from statistics import median
from typing import TYPE_CHECKING, Literal

from pydantic import BaseModel, ConfigDict, Field

from guardrail.errors import ConfigurationError
from guardrail.extras import require
from guardrail.monitor.monitor import references
from guardrail.stats import Rate, conformal_place
from guardrail.types import Modality, Reading

if TYPE_CHECKING:
    from collections.abc import Sequence

    from guardrail.artefact import Artefact
    from guardrail.artefact.header import Calibration
    from guardrail.monitor.monitor import Reference
    from guardrail.monitor.snapshot import ModalityCounts, MonitorSnapshot

_MANY = 10**9
_SMOOTHING = 0.5  # added to every bin, so that an empty one has a logarithm
PSI_LIMIT, ALPHA, LEAST = 0.2, 0.01, 100
_TESTS_EACH = 3  # the index and two thresholds
MEANING = (
    "The scores no longer look like those the thresholds were set on. Either the traffic has "
    "changed, and the thresholds no longer have their stated rates: run `guardrail calibrate` on "
    "benign requests of now. Or unusual requests, attacks among them, are coming in: look at what "
    "was flagged before calibrating on it."
)


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Exceedance(_Frozen):
    """The share of inputs beyond one of the calibration's thresholds, and its target.

    `p_value`: how probable so many are without a shift (`exceedance_p_value`).
    """

    action: Literal["steer", "flag"]
    threshold: float
    target: float
    rate: float
    hits: int
    n: int
    low: float
    high: float
    p_value: float
    alarm: bool


class ModalityComparison(_Frozen):
    """One modality's scores beside the calibration they are held to (`reference`: whose it is).

    `psi` is the population stability index; it alarms when it exceeds both `psi_limit` and
    `psi_by_chance`, what the numbers of inputs alone explain. `finding` is "too few" or "no
    calibration" where nothing is judged, and the figures then are None. `flagged_by` is that of the
    snapshot (see `ModalityCounts`); nothing is held against it.
    """

    modality: Modality
    finding: Literal["alarm", "no alarm", "too few", "no calibration"]
    n: int
    outages: int
    median: float | None
    flagged_by: dict[Reading, int] = Field(default_factory=dict)
    reference: Modality | None = None
    reference_n: int | None = None
    reference_median: float | None = None
    reference_source: str | None = None
    psi: float | None = None
    psi_by_chance: float | None = None
    exceedances: tuple[Exceedance, ...] = ()
    reasons: tuple[str, ...] = ()


class Comparison(_Frozen):
    """A snapshot beside its artefact's calibration.

    `alpha` is the chance of any false alarm, shared out evenly among `tests`. `meaning` says what
    an alarm may mean, and is empty without one. `outages` counts requests without any decision.
    """

    artefact_id: str
    since: datetime | None
    until: datetime | None
    outages: int
    alarm: bool
    meaning: str
    psi_limit: float
    alpha: float
    least: int
    tests: int
    modalities: tuple[ModalityComparison, ...]

    def to_dict(self) -> dict[str, object]:
        """Plain values, ready for JSON."""
        return self.model_dump(mode="json")


def compare(
    snapshot: MonitorSnapshot,
    artefact: Artefact,
    *,
    psi_limit: float = PSI_LIMIT,
    alpha: float = ALPHA,
    least: int = LEAST,
) -> Comparison:
    """Hold each modality's counts against the calibration its requests are judged by.

    Args:
        snapshot: of a guard with this artefact.
        artefact: what the guard ran with.
        psi_limit: the index from which a shift is large enough to matter.
        alpha: chance of any false alarm (Bonferroni over all tests).
        least: a modality with fewer scored inputs is not judged.

    Raises:
        ConfigurationError: the snapshot is another artefact's, or a limit cannot hold.
    """
    _check_limits(psi_limit, alpha, least)
    if snapshot.artefact_id != artefact.artefact_id:
        raise ConfigurationError(
            f"the counts are of {snapshot.artefact_id}, not of {artefact.artefact_id}; give the "
            "artefact that the guard ran with"
        )
    known = _comparable(references(artefact, snapshot.bins))
    judged = [m for m, c in snapshot.modalities.items() if m in known and c.n >= least]
    tests = _TESTS_EACH * len(judged)
    rows = tuple(
        _judged(modality, counts, known[modality], psi_limit, alpha / tests)
        if modality in judged
        else _not_judged(modality, counts, known.get(modality))
        for modality, counts in snapshot.modalities.items()
    )
    alarm = any(row.finding == "alarm" for row in rows)
    return Comparison(
        artefact_id=snapshot.artefact_id,
        since=snapshot.since,
        until=snapshot.until,
        outages=snapshot.outages,
        alarm=alarm,
        meaning=MEANING if alarm else "",
        psi_limit=psi_limit,
        alpha=alpha,
        least=least,
        tests=tests,
        modalities=rows,
    )


def _comparable(known: dict[Modality, Reference]) -> dict[Modality, Reference]:
    """The references that scores may be held against.

    The score of a long video is the highest of its windows, and so lies higher than that of single
    pictures without any shift: without a calibration of its own it is compared with nothing.
    """
    return {
        modality: reference
        for modality, reference in known.items()
        if modality is not Modality.VIDEO or reference.modality is Modality.VIDEO
    }


def _check_limits(psi_limit: float, alpha: float, least: int) -> None:
    if not (psi_limit > 0 and 0 < alpha < 1 and least >= 1):
        raise ConfigurationError(
            f"psi_limit ({psi_limit}) and least ({least}) must be positive, and alpha ({alpha}) "
            "between 0 and 1"
        )


def _not_judged(
    modality: Modality, counts: ModalityCounts, reference: Reference | None
) -> ModalityComparison:
    return ModalityComparison(
        modality=modality,
        finding="no calibration" if reference is None else "too few",
        n=counts.n,
        outages=counts.outages,
        median=counts.quantile(0.5),
        flagged_by=counts.flagged_by,
        reference=None if reference is None else reference.modality,
    )


def _judged(
    modality: Modality,
    counts: ModalityCounts,
    reference: Reference,
    psi_limit: float,
    alpha: float,
) -> ModalityComparison:
    before = reference.counts()
    if counts.edges != reference.edges or len(counts.counts) != len(before):
        raise ConfigurationError(
            f"the {modality} bins of the counts are not those of {reference.calibration.source}; "
            "the snapshot was edited"
        )
    psi = population_stability_index(counts.counts, before)
    chance = index_by_chance(counts.n, reference.calibration.n, len(before), alpha)
    shares = (
        _exceedance("steer", Rate(counts.beyond_steer, counts.n), reference.calibration, alpha),
        _exceedance("flag", Rate(counts.beyond_flag, counts.n), reference.calibration, alpha),
    )
    reasons = [_index_reason(psi, psi_limit, chance)] if psi > max(psi_limit, chance) else []
    reasons += [_share_reason(share) for share in shares if share.alarm]
    return ModalityComparison(
        modality=modality,
        finding="alarm" if reasons else "no alarm",
        n=counts.n,
        outages=counts.outages,
        median=counts.quantile(0.5),
        flagged_by=counts.flagged_by,
        reference=reference.modality,
        reference_n=reference.calibration.n,
        reference_median=median(reference.calibration.scores),
        reference_source=reference.calibration.source,
        psi=psi,
        psi_by_chance=chance,
        exceedances=shares,
        reasons=tuple(reasons),
    )


def _exceedance(
    action: Literal["steer", "flag"], share: Rate, calibration: Calibration, alpha: float
) -> Exceedance:
    target: float = getattr(calibration.targets, action)
    p_value = exceedance_p_value(share.hits, share.n, target=target, n_before=calibration.n)
    low, high = share.interval()
    return Exceedance(
        action=action,
        threshold=getattr(calibration.thresholds, action),
        target=target,
        rate=share.value,
        hits=share.hits,
        n=share.n,
        low=low,
        high=high,
        p_value=p_value,
        alarm=p_value < alpha,
    )


def _index_reason(psi: float, limit: float, chance: float) -> str:
    return (
        f"scores are distributed otherwise: population stability index {psi:.2f}, above "
        f"{limit:g} and above the {chance:.2f} that chance explains"
    )


def _share_reason(share: Exceedance) -> str:
    return (
        f"{share.rate:.1%} of {share.n} inputs lie beyond the {share.action} threshold, whose "
        f"target is {share.target:.1%} (p = {share.p_value:.2g})"
    )


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
    chi2 = require("scipy.stats").chi2
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
    if hits == 0:
        return 1.0
    stats = require("scipy.stats")
    above = n_before - conformal_place(n_before, target)  # old scores, without ties
    if above < 0:
        return float(stats.binom.sf(hits - 1, n, target))
    if n > _MANY:
        return float(stats.beta.sf(hits / n, above + 1, n_before - above))
    return float(stats.hypergeom.cdf(above, n + n_before, n_before, hits + above))
