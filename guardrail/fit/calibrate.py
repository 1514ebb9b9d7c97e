"""Thresholds at stated false-positive rates: from fitted prompts, or from a user's own traffic.

New benign scores are compared with those that the thresholds were set on before.
"""

from __future__ import annotations

import logging
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from statistics import median
from typing import TYPE_CHECKING, Any

from guardrail.artefact.artefact import sampling_record
from guardrail.artefact.header import Calibration, Rates
from guardrail.errors import CalibrationError, ConfigurationError
from guardrail.extras import require, require_extra
from guardrail.fit.outcome import NOTE, TRAFFIC, video_notes
from guardrail.fit.traffic import score_traffic
from guardrail.model.fingerprint import require_fitted_on
from guardrail.policy import Thresholds
from guardrail.policy.acting import enforces
from guardrail.stats import conformal_place, conformal_threshold, needed_scores
from guardrail.types import Modality

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from guardrail.artefact import Artefact
    from guardrail.artefact.header import Header
    from guardrail.fit.traffic import Reservoir
    from guardrail.guard import Guard

P_VALUE = 0.01
LEAST_DISTANCE = 0.1
log = logging.getLogger(__name__)
KEEP = 10_000
MOST_KEPT = 50_000  # of each modality; more would not fit into an artefact's header


def calibrate(
    guard: Guard,
    values: Iterable[Any],
    *,
    steer_rate: float = 0.05,
    flag_rate: float = 0.01,
    keep: int = KEEP,
    seed: int = 0,
    skip_errors: bool = False,
) -> Artefact:
    """A new artefact whose thresholds fit benign requests of one's own.

    Each modality with enough requests gets thresholds of its own; the others keep theirs and a
    warning says so. So does one when the scores differ from those calibrated on before. Requests
    are scored in chunks and at most `keep` scores of each modality are kept, a uniform sample
    (`Reservoir`), so `values` may be a stream of any length. `Placed` values are named by their
    place when one cannot be scored. Of a video the highest of all windows counts.

    `header.extra` tells under "calibration" what was seen, how it compares, by modality, and how
    videos were sampled; under "calibrated_from" the thresholds, targets, source and n of before.

    Raises:
        ConfigurationError: the rates are no shares, or the wrong way round, or `keep` scores could
            not support them.
        ArtefactMismatchError: the guard runs on another model than its artefact was fitted on, so
            the thresholds would belong to neither.
        CalibrationError: no modality has enough requests, or the detector failed on one; with
            `skip_errors`, on more than 1 %.
        DatasetError: a request that cannot be scored, unless `skip_errors`.
        MissingExtraError: the extra `fit` is not installed.
    """
    require_extra("fit")
    rates = target_rates(steer_rate, flag_rate)
    _check_keep(keep, rates)
    require_fitted_on(guard.artefact, guard.loaded)
    with _to_the_end(guard) as scorer:
        traffic = score_traffic(scorer, values, keep=keep, seed=seed, skip_errors=skip_errors)
    made, problems = _calibrations(traffic.samples, rates)
    if not made:
        raise CalibrationError("; ".join(problems) or "there was no request to calibrate on")
    for problem in problems:
        log.warning("thresholds kept as they were: %s", problem)
    shifts = _shifts(made, guard.artefact.header)
    if failed := traffic.failed:
        problems.append(f"{failed} of {failed + traffic.scored} requests could not be scored")
    told = {name: _seen(traffic.samples[name], shifts.get(name)) for name in made}
    if Modality.VIDEO in told:
        told[Modality.VIDEO] |= sampling_record(guard.policy)
    return _revised(guard.artefact, made, told, [*problems, *_notable(shifts, guard.artefact)])


@contextmanager
def _to_the_end(guard: Guard) -> Iterator[Guard]:
    """The guard in shadow mode: one that acts stops at a video's first window that is flagged.

    The score that counts is the highest of all windows.
    """
    if not enforces(guard.policy) or not guard.artefact.reads_videos:
        yield guard
        return
    with guard.with_policy(guard.policy.model_copy(update={"mode": "shadow"})) as shadow:
        yield shadow


def _check_keep(keep: int, rates: Rates) -> None:
    needed = needed_scores(rates.flag)
    if keep < needed:
        raise ConfigurationError(
            f"{keep} kept scores cannot support a target of {rates.flag:g}: raise keep (--keep) to "
            f"{needed} or more, or the target to {1 / (keep + 1):.3g} or more"
        )
    if keep > MOST_KEPT:
        raise ConfigurationError(f"an artefact holds at most {MOST_KEPT} scores; got keep {keep}")


def _calibrations(
    samples: dict[Modality, Reservoir], rates: Rates
) -> tuple[dict[Modality, Calibration], list[str]]:
    """The modalities with enough scores, and what is wrong with the others."""
    made, problems = {}, []
    for modality, sample in samples.items():
        try:
            made[modality] = calibration(sample.values, rates, source=TRAFFIC)
        except CalibrationError as error:
            problems.append(f"{modality}: {error}")
    return made, problems


def _shifts(made: dict[Modality, Calibration], old: Header) -> dict[Modality, ScoreShift]:
    """How each modality's scores compare with its earlier calibration, where there was one."""
    return {
        modality: score_shift(found.scores, old.calibration[modality].scores)
        for modality, found in made.items()
        if modality in old.calibration and old.calibration[modality].scores
    }


def _notable(shifts: dict[Modality, ScoreShift], old: Artefact) -> list[str]:
    """A sentence for each shift that somebody should know of."""
    found = []
    for modality, shift in shifts.items():
        if shift.notable:
            source = old.header.calibration[modality].source
            found.append(f"{modality}: {shift.describe(source=source)}")
            log.warning("%s", found[-1])
    return found


def _seen(sample: Reservoir, shift: ScoreShift | None) -> dict[str, Any]:
    compared = None if shift is None else asdict(shift)
    return {"seen": sample.seen, "kept": len(sample.values), "compared": compared}


def _revised(
    old: Artefact, made: dict[Modality, Calibration], told: dict[Modality, Any], problems: list[str]
) -> Artefact:
    """The artefact with its new thresholds, and a note of its direct parent's."""
    header = old.header
    before = {
        modality.value: row.model_dump(
            mode="json", include={"thresholds", "targets", "source", "n"}
        )
        for modality, row in header.calibration.items()
    }
    earlier: Any = header.extra.get("calibration")
    facts = (earlier if isinstance(earlier, dict) else {}) | {m.value: t for m, t in told.items()}
    parent = {"artefact_id": header.artefact_id, "created": header.created, "calibration": before}
    now = {**header.calibration, **made}
    renewed = ("calibration: ", NOTE) if old.reads_videos else ("calibration: ",)
    kept = [w for w in header.warnings if not w.startswith(renewed)]
    kept += video_notes(now, reads_videos=old.reads_videos)
    return old.revised(
        calibration=now,
        parent=header.artefact_id,
        warnings=(*kept, *(f"calibration: {problem}" for problem in problems)),
        extra={**header.extra, "calibration": facts, "calibrated_from": parent},
    )


def target_rates(steer_rate: float, flag_rate: float) -> Rates:
    """The two targets, checked.

    Raises:
        ConfigurationError: they are no shares, or the wrong way round.
    """
    if not 0 < flag_rate <= steer_rate < 1:
        raise ConfigurationError(
            f"steer_rate ({steer_rate}) includes what is flagged, so it must be at least "
            f"flag_rate ({flag_rate}), and both are shares between 0 and 1"
        )
    return Rates(steer=steer_rate, flag=flag_rate)


def require_enough(n: int, rates: Rates, *, source: str) -> None:
    """Refuse targets that `n` benign inputs cannot support.

    Raises:
        CalibrationError: fewer inputs than a target needs; it takes 1/rate - 1.
    """
    needed = needed_scores(min(rates.steer, rates.flag))
    if n < needed:
        raise CalibrationError(
            f"{n} benign inputs ({source}) cannot support a target of "
            f"{min(rates.steer, rates.flag):g}: at least {needed} are needed. Collect more, or "
            f"raise the target to {1 / (n + 1):.3g} or more"
        )


def calibration(scores: Sequence[float], rates: Rates, *, source: str) -> Calibration:
    """Conformal thresholds of benign scores, with the intervals of the rates they give.

    Each interval is `rate_interval`: how far the true rate on traffic of the same kind may be from
    the target with so few inputs.

    Raises:
        CalibrationError: fewer inputs than a target needs; it takes 1/rate - 1.
    """
    require_enough(len(scores), rates, source=source)
    ordered = sorted(scores)
    steer, flag = (conformal_threshold(ordered, rate) for rate in (rates.steer, rates.flag))
    return Calibration(
        scores=tuple(ordered),
        targets=rates,
        thresholds=Thresholds(steer=min(steer, flag), flag=flag),
        source=source,
        n=len(ordered),
        intervals={
            "steer": rate_interval(ordered, rates.steer),
            "flag": rate_interval(ordered, rates.flag),
        },
    )


def rate_interval(scores: Sequence[float], rate: float) -> tuple[float, float]:
    """95 % interval of the true share of benign inputs beyond the conformal threshold for `rate`.

    The threshold is the k-th smallest of n exchangeable scores, so the share beyond it is
    distributed as Beta(n + 1 - k, k) when scores are continuous (Vovk 2012, "Conditional validity
    of inductive conformal predictors"; Angelopoulos and Bates 2023, section 3.2). Where scores tie,
    anywhere, they come in steps, and a step at the threshold only lowers the share: the lower end
    is then that of Clopper and Pearson (1934) for the scores that really lie beyond.
    """
    beta = require("scipy.stats").beta
    n, threshold = len(scores), conformal_threshold(scores, rate)
    place = conformal_place(n, rate)
    high = float(beta.ppf(0.975, n + 1 - place, place))
    if len(set(scores)) == n:
        return float(beta.ppf(0.025, n + 1 - place, place)), high
    beyond = sum(score > threshold for score in scores)
    return float(beta.ppf(0.025, beyond, n - beyond + 1)) if beyond else 0.0, high


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
    found = require("scipy.stats").ks_2samp(list(now), list(before), method="asymp")
    return ScoreShift(
        distance=float(found.statistic),
        p_value=float(found.pvalue),
        n_now=len(now),
        n_before=len(before),
        median_now=median(now),
        median_before=median(before),
    )
