"""Thresholds at stated false-positive rates: from fitted prompts, or from a user's own traffic."""

from __future__ import annotations

import logging
import math
from itertools import islice
from typing import TYPE_CHECKING, Any

from guardrail.artefact.header import Calibration, Rates
from guardrail.errors import ArtefactMismatchError, CalibrationError, ConfigurationError
from guardrail.metrics import Rate, conformal_threshold
from guardrail.model.fingerprint import fingerprint
from guardrail.policy import Thresholds

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from guardrail.artefact import Artefact
    from guardrail.guard import Guard
    from guardrail.types import Modality

log = logging.getLogger(__name__)


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


def calibration(scores: Sequence[float], rates: Rates, *, source: str) -> Calibration:
    """Conformal thresholds of benign scores, with the intervals of the rates they give.

    The interval of each rate is that of the share of these same inputs beyond the threshold
    (Clopper-Pearson, 95 %): how far the true rate may be from the target with so few inputs.

    Raises:
        CalibrationError: fewer inputs than a target needs; it takes 1/rate - 1.
    """
    needed = math.ceil(1 / min(rates.steer, rates.flag) - 1 - 1e-9)
    if len(scores) < needed:
        raise CalibrationError(
            f"{len(scores)} benign inputs ({source}) cannot support a target of "
            f"{min(rates.steer, rates.flag):g}: at least {needed} are needed. Collect more, or "
            f"raise the target to {1 / (len(scores) + 1):.3g} or more"
        )
    ordered = sorted(scores)
    steer, flag = (conformal_threshold(ordered, rate) for rate in (rates.steer, rates.flag))
    thresholds = Thresholds(steer=min(steer, flag), flag=flag)
    beyond = {
        "steer": Rate.of([s > thresholds.steer for s in ordered]).interval(),
        "flag": Rate.of([s > thresholds.flag for s in ordered]).interval(),
    }
    return Calibration(
        scores=tuple(ordered),
        targets=rates,
        thresholds=thresholds,
        source=source,
        n=len(ordered),
        intervals=beyond,
    )


def calibrate(
    guard: Guard, values: Iterable[Any], *, steer_rate: float = 0.05, flag_rate: float = 0.01
) -> Artefact:
    """A new artefact whose thresholds fit benign requests of one's own.

    Each modality with enough requests gets thresholds of its own; the others keep theirs and a
    warning says so. Requests are scored in chunks, so `values` may be a long stream.

    Raises:
        ConfigurationError: the rates are no shares, or the wrong way round.
        ArtefactMismatchError: the guard runs on another model than its artefact was fitted on, so
            the thresholds would belong to neither.
        CalibrationError: no modality has enough requests, or the detector failed on one.
        InputError: a request that cannot be scored.
    """
    rates = target_rates(steer_rate, flag_rate)
    differing = guard.artefact.header.fingerprint.differences(fingerprint(guard.loaded))
    if differing:
        raise ArtefactMismatchError(differing)
    scores: dict[Modality, list[float]] = {}
    for chunk in _chunks(values, guard.policy.limits.queue):
        for verdict in guard.check_batch(chunk):
            if verdict.score is None:
                raise CalibrationError("the detector failed on a benign request; see the log")
            scores.setdefault(verdict.modality, []).append(verdict.score)
    old = guard.artefact
    made, problems = dict(old.header.calibration), []
    for modality, found in scores.items():
        try:
            made[modality] = calibration(found, rates, source="benign traffic")
        except CalibrationError as exc:
            problems.append(f"{modality}: {exc}")
    if len(problems) == len(scores):
        raise CalibrationError("; ".join(problems) or "there was no request to calibrate on")
    for problem in problems:
        log.warning("thresholds kept as they were: %s", problem)
    kept = [w for w in old.header.warnings if not w.startswith("calibration: ")]
    return old.revised(
        calibration=made,
        parent=old.artefact_id,
        warnings=(*kept, *(f"calibration: {problem}" for problem in problems)),
    )


def _chunks(values: Iterable[Any], size: int) -> Iterator[list[Any]]:
    rest = iter(values)
    while chunk := list(islice(rest, size)):
        yield chunk
