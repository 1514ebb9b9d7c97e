"""Whether the scores of late still look like those the thresholds were set on."""

from __future__ import annotations

from statistics import median
from typing import TYPE_CHECKING

from guardrail.errors import ConfigurationError
from guardrail.monitor.comparison import Comparison, Exceedance, ModalityComparison
from guardrail.monitor.reference import references
from guardrail.monitor.stability import (
    exceedance_p_value,
    index_by_chance,
    population_stability_index,
)
from guardrail.stats import Rate
from guardrail.types import Modality

if TYPE_CHECKING:
    from typing import Literal

    from guardrail.artefact import Artefact
    from guardrail.artefact.header import Calibration
    from guardrail.monitor.reference import Reference
    from guardrail.monitor.snapshot import ModalityCounts, MonitorSnapshot

    _Action = Literal["steer", "flag"]

PSI_LIMIT, ALPHA, LEAST = 0.2, 0.01, 100
_TESTS_EACH = 3  # the index and two thresholds
MEANING = (
    "The scores no longer look like those the thresholds were set on. Either the traffic has "
    "changed, and the thresholds no longer have their stated rates: run `guardrail calibrate` on "
    "benign requests of now. Or unusual requests, attacks among them, are coming in: look at what "
    "was flagged before calibrating on it."
)


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
    shares = _exceedances(counts, reference, alpha)
    reasons = [_index_reason(psi, psi_limit, chance)] if psi > max(psi_limit, chance) else []
    reasons += [_share_reason(share) for share in shares if share.alarm]
    return ModalityComparison(
        modality=modality,
        finding="alarm" if reasons else "no alarm",
        n=counts.n,
        outages=counts.outages,
        median=counts.quantile(0.5),
        reference=reference.modality,
        reference_n=reference.calibration.n,
        reference_median=median(reference.calibration.scores),
        reference_source=reference.calibration.source,
        psi=psi,
        psi_by_chance=chance,
        exceedances=shares,
        reasons=tuple(reasons),
    )


def _exceedances(
    counts: ModalityCounts, reference: Reference, alpha: float
) -> tuple[Exceedance, ...]:
    beyond: dict[_Action, int] = {"steer": counts.beyond_steer, "flag": counts.beyond_flag}
    return tuple(
        _exceedance(action, Rate(hits, counts.n), reference.calibration, alpha)
        for action, hits in beyond.items()
    )


def _exceedance(action: _Action, share: Rate, calibration: Calibration, alpha: float) -> Exceedance:
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
