"""Benign traffic, scored chunk by chunk into a bounded sample of each modality."""

from __future__ import annotations

import logging
import random
from dataclasses import dataclass, field
from itertools import islice
from typing import TYPE_CHECKING, Any, NamedTuple

from guardrail.errors import (
    CalibrationError,
    DatasetError,
    DetectorError,
    InputError,
    RequestTimeoutError,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from guardrail.guard import Guard
    from guardrail.types import Modality, Verdict

log = logging.getLogger(__name__)
MOST_FAILED = 0.01
_NAMED = 5  # failures that are told one by one


class Placed(NamedTuple):
    """A request and where it stands (`benign.jsonl, line 7`), for errors to name."""

    where: str
    value: Any


def score_traffic(
    guard: Guard, values: Iterable[Any], *, keep: int, seed: int = 0, skip_errors: bool = False
) -> Traffic:
    """Score requests (`Placed` ones are named by their place, others by their number).

    Scores are those of checks, so under a policy's `fold_text` the higher one of each request and
    its folded copy; thresholds on them are no lower than the guarded model's own answers need.
    Memory holds one chunk of requests, as many as the guard's queue has places, and the samples.

    Raises:
        DatasetError: a request that cannot be read, unless `skip_errors`.
        CalibrationError: the detector failed on one or it took too long, unless `skip_errors`; or
            more than 1 % failed.
    """
    traffic = Traffic(keep=keep, seed=seed)
    for chunk in _chunks(_placed(values), guard.policy.limits.queue):
        outcomes = guard.check_batch([item.value for item in chunk], return_exceptions=True)
        for item, outcome in zip(chunk, outcomes, strict=True):
            found = _score_or_problem(item.where, outcome)
            if not isinstance(found, BaseException):
                traffic.add(*found)
            elif skip_errors:
                traffic.fail(str(found))
            else:
                raise found from (outcome if isinstance(outcome, BaseException) else None)
    traffic.check_failures()
    return traffic


def _score_or_problem(
    where: str, outcome: Verdict | BaseException
) -> tuple[Modality, float] | BaseException:
    """What one request gave; errors that are not a request's own are raised."""
    match outcome:
        case InputError():
            return DatasetError(f"{where}: cannot be scored: {outcome}")
        case DetectorError():
            return CalibrationError(f"{where}: the detector failed on a benign request: {outcome}")
        case RequestTimeoutError():
            return CalibrationError(f"{where}: cannot be scored: {outcome}")
        case BaseException():
            raise outcome
    if outcome.score is None:
        return CalibrationError(f"{where}: the detector failed on a benign request; see the log")
    return outcome.modality, outcome.score


def _placed(values: Iterable[Any]) -> Iterator[Placed]:
    for number, value in enumerate(values, start=1):
        yield value if isinstance(value, Placed) else Placed(f"request {number}", value)


def _chunks(values: Iterable[Placed], size: int) -> Iterator[list[Placed]]:
    rest = iter(values)
    while chunk := list(islice(rest, size)):
        yield chunk


@dataclass(kw_only=True)
class Traffic:
    """What scoring saw: a sample of each modality's scores, and how many requests failed."""

    keep: int
    seed: int = 0
    samples: dict[Modality, Reservoir] = field(default_factory=dict)
    failed: int = 0
    first_failure: str = ""

    @property
    def scored(self) -> int:
        """Requests with a score, in the samples or not."""
        return sum(sample.seen for sample in self.samples.values())

    def add(self, modality: Modality, score: float) -> None:
        """One more score."""
        if modality not in self.samples:
            self.samples[modality] = Reservoir(self.keep, seed=f"{self.seed} {modality}")
        self.samples[modality].add(score)

    def fail(self, problem: str) -> None:
        """One more request without a score."""
        self.failed += 1
        self.first_failure = self.first_failure or problem
        if self.failed <= _NAMED:
            log.warning("left out: %s", problem)

    def check_failures(self) -> None:
        """Refuse a calibration on what is left when much is missing: it may be of one kind.

        Raises:
            CalibrationError: more than 1 % of the requests failed.
        """
        total = self.scored + self.failed
        if self.failed > MOST_FAILED * total:
            raise CalibrationError(
                f"{self.failed} of {total} requests could not be scored, more than "
                f"{MOST_FAILED:.0%}; the rest may not stand for all of them. Correct the "
                f"requests, the first of them {self.first_failure}"
            )


class Reservoir:
    """At most `keep` of the values added, every one kept with the same probability.

    Vitter (1985), algorithm R. A uniform subsample of exchangeable scores is exchangeable with
    future ones as the whole would be, so conformal thresholds of the sample hold as they are; only
    their n is that of the sample.
    """

    def __init__(self, keep: int, *, seed: int | str = 0) -> None:
        if keep < 1:
            raise ValueError(f"a sample keeps at least one value; got {keep}")
        self._keep, self._random = keep, random.Random(seed)
        self._values: list[float] = []
        self.seen = 0

    def add(self, value: float) -> None:
        """Take one more value of the stream into account."""
        self.seen += 1
        if len(self._values) < self._keep:
            self._values.append(value)
            return
        place = self._random.randrange(self.seen)
        if place < self._keep:
            self._values[place] = value

    @property
    def values(self) -> tuple[float, ...]:
        """The sample, in no order that means anything."""
        return tuple(self._values)
