"""Prometheus metrics of one server, in a registry of their own.

Labels have few values: routes are templates, never paths, clients are names of keys, and nothing
a client sends is a label. Some are read when somebody asks: the queue, the artefact in force,
drift, lost lines.
"""

from __future__ import annotations

import threading
from bisect import bisect_left
from dataclasses import dataclass, field
from itertools import accumulate
from typing import TYPE_CHECKING, Any

from prometheus_client import CollectorRegistry, Counter, Histogram, ProcessCollector
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
)
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from prometheus_client import Metric

    from guardrail.types import Verdict


# From these a client could tell its own request's score, or whom else the server knows.
PRIVATE = frozenset(
    {
        "guardrail_score",
        "guardrail_readings",
        "guardrail_threshold",
        "guardrail_drift_psi",
        "guardrail_near_duplicates",
    }
)
SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0)

_LABELS = ("action", "would_be", "modality", "reason")

SCORE_BUCKETS = (
    *(-1.0, -0.5, -0.25, 0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.1),
    *(1.25, 1.5, 2.0, 3.0),
)
"""Upper bounds in text gaps: 0 is the text-safe centroid, 1 the text-unsafe one; thresholds of most
artefacts lie between, where the buckets are narrow. The same for all, so that servers add up."""


class Verdicts:
    """Counts of verdicts and outages, in any registry: nothing that a score could be told from."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._verdicts = Counter(
            "guardrail_verdicts_total",
            "Verdicts: what was done, and what the thresholds asked for.",
            _LABELS,
            registry=registry,
        )
        self._outages = Counter(
            "guardrail_outages_total", "Requests that the detector failed on.", registry=registry
        )

    def __call__(self, told: Mapping[str, Any]) -> None:
        """Count what `Verdict.told` gives."""
        self._verdicts.labels(*(told[name] for name in _LABELS)).inc()
        if told["reason"] == "detector_failed":
            self.outage()

    def outage(self) -> None:
        """Count a request of which no verdict came."""
        self._outages.inc()


class Metrics:
    """Counts and times; the sink for a guard's `audit` is the object itself."""

    def __init__(self, among: CollectorRegistry | None = None) -> None:
        """Count; `among` is a registry of others, which tells these as well, until `close`."""
        self.own = CollectorRegistry(auto_describe=True)
        self.registry = among or self.own
        if among is None:
            ProcessCollector(registry=self.own)
        self._verdicts = Verdicts(self.own)
        self._readings = self._counter(
            "guardrail_readings_total",
            "Verdicts with a score: what the thresholds asked for, by the reading it is from.",
            ("reading", "would_be"),
        )
        self._scores = ScoreHistogram()
        self.own.register(self._scores)
        self._queue = self._seconds(
            "guardrail_queue_seconds", "From queueing to the model's start."
        )
        self._verdict = self._seconds(
            "guardrail_verdict_seconds", "From the model's start to the verdict."
        )
        self._answer = self._seconds("guardrail_answer_seconds", "From asking to the answer's end.")
        self._tokens = self._counter(
            "guardrail_tokens_total", "Tokens read and written for answers.", ("kind",)
        )
        self._watched = self._counter(
            "guardrail_watched_answers_total",
            "Answers judged themselves: what was done, and what their threshold asked for.",
            ("action", "would_be"),
        )
        self._near = self._counter(
            "guardrail_near_duplicates_total",
            "Requests nearly the same as one of the client's last ones.",
            ("client",),
        )
        self._requests = self._counter(
            "guardrail_requests_total", "HTTP requests answered.", ("route", "status")
        )
        self._http = self._seconds(
            "guardrail_http_request_seconds", "From a request's head to its answer's end.", "route"
        )
        self._first = self._seconds(
            "guardrail_http_first_byte_seconds",
            "From a request's head to the first bytes of a streamed answer's body.",
            "route",
        )

        if among is not None:
            among.register(self.own)

    def close(self) -> None:
        """Leave the registry of others."""
        if self.registry is not self.own:
            self.registry.unregister(self.own)
            self.registry = self.own

    def __call__(self, verdict: Verdict | None, facts: Mapping[str, object]) -> None:
        """Count one record of a guard; see `guardrail.guard.Guard` for its events."""
        match facts.get("event"):
            case "verdict" if verdict is not None:
                self._judged(verdict, facts)
            case "outage":
                self._verdicts.outage()
            case "watched" if verdict is not None:
                self._watched.labels(str(verdict.action), str(verdict.would_be)).inc()
                if verdict.reason == "detector_failed":
                    self._verdicts.outage()
            case "answer":
                _observe(self._answer, facts.get("total_s"))
                for kind in ("prompt", "completion"):
                    count = facts.get(f"{kind}_tokens")
                    if isinstance(count, int):
                        self._tokens.labels(kind).inc(count)

    def _judged(self, verdict: Verdict, facts: Mapping[str, object]) -> None:
        modality = str(verdict.modality)
        asked = str(verdict.would_be)
        self._verdicts(verdict.told(scores=False))
        if verdict.score is not None:
            self._scores.observe(modality, verdict.score)
            reading = "other" if verdict.where is None else verdict.where.reading
            self._readings.labels(reading, asked).inc()
        _observe(self._queue, facts.get("queue_s"))
        _observe(self._verdict, facts.get("verdict_s"))

    def near_duplicate(self, client: str) -> None:
        """Count a request that is nearly one of the client's last; the client is a key's name."""
        self._near.labels(client).inc()

    def answered(
        self, route: str, status: int, seconds: float, first_s: float | None = None
    ) -> None:
        """Count one HTTP request; `first_s` is the time to a stream's first bytes."""
        self._requests.labels(route, str(status)).inc()
        self._http.labels(route).observe(seconds)
        if first_s is not None:
            self._first.labels(route).observe(first_s)

    def exposition(self, accept: str | None, *, private: bool = True) -> tuple[bytes, str]:
        """The metrics as text and its media type: OpenMetrics where asked for, or Prometheus'.

        Without `private` the families of that name are left out.
        """
        encode, media_type = choose_encoder(accept or "")
        return encode(self.registry if private else _Public(self.registry)), media_type

    def _counter(self, name: str, words: str, labels: tuple[str, ...] = ()) -> Counter:
        return Counter(name, words, labels, registry=self.own)

    def _seconds(self, name: str, words: str, *labels: str) -> Histogram:
        return Histogram(name, words, labels, buckets=SECONDS, registry=self.own)


class _Public(CollectorRegistry):
    """What of a registry is for everybody."""

    def __init__(self, whole: CollectorRegistry) -> None:
        super().__init__()
        self._whole = whole

    def collect(self) -> Iterator[Metric]:
        """The families."""
        return (family for family in self._whole.collect() if family.name not in PRIVATE)


def _observe(histogram: Histogram, seconds: object) -> None:
    if isinstance(seconds, int | float):
        histogram.observe(seconds)


class ScoreHistogram(Collector):
    """`guardrail_score` by modality; safe between threads.

    A sum of scores can fall, so it is no counter, and OpenMetrics has neither `_sum` nor `_count`
    then: the count is the bucket `+Inf`. The library's own histogram would write a lone count.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counts: dict[str, list[int]] = {}

    def observe(self, modality: str, score: float) -> None:
        """Count one finite score."""
        place = bisect_left(SCORE_BUCKETS, score)
        with self._lock:
            row = self._counts.setdefault(modality, [0] * (len(SCORE_BUCKETS) + 1))
            row[place] += 1

    def collect(self) -> Iterator[HistogramMetricFamily]:
        """The counts so far, cumulative."""
        family = HistogramMetricFamily(
            "guardrail_score", "Scores of judged requests, in text gaps.", labels=("modality",)
        )
        with self._lock:
            rows = {modality: list(accumulate(row)) for modality, row in self._counts.items()}
        bounds = [*map(str, SCORE_BUCKETS), "+Inf"]
        for modality, row in rows.items():
            family.add_metric((modality,), list(zip(bounds, row, strict=True)), None)
        yield family


@dataclass(frozen=True, slots=True, kw_only=True)
class State:
    """A server at one moment.

    `thresholds` are by modality and action. `drift` is by modality: whether there is an alarm, and
    the population stability index; modalities that cannot be judged are left out.
    """

    info: Mapping[str, str]
    waiting: int
    running: int
    places: int
    thresholds: Mapping[tuple[str, str], float] = field(default_factory=dict)
    drift: Mapping[str, tuple[bool, float]] = field(default_factory=dict)
    audit_dropped: int = 0
    sink_failures: int = 0


class Scraped(Collector):
    """Asks for the server's state at each scrape."""

    def __init__(self, state: Callable[[], State], registry: CollectorRegistry) -> None:
        self.state = state
        registry.register(self)

    def describe(self) -> Iterator[Metric]:
        """The names alone; the server may not be up yet."""
        yield from _families(State(info={}, waiting=0, running=0, places=0))

    def collect(self) -> Iterator[Metric]:
        """The figures of now."""
        yield from _families(self.state())


def _families(now: State) -> Iterator[Metric]:
    yield InfoMetricFamily("guardrail", "What is in force.", value=dict(now.info))
    for name, words, value in (
        ("waiting", "Requests that wait for the model.", now.waiting),
        ("running", "Requests that the model is at work on.", now.running),
        ("places", "Requests that may wait at once.", now.places),
    ):
        yield GaugeMetricFamily(f"guardrail_queue_{name}", words, value=value)
    yield _gauge(
        "guardrail_threshold",
        "The score from which requests are steered or flagged.",
        ("modality", "action"),
        now.thresholds,
    )
    yield _gauge(
        "guardrail_drift_alarm",
        "1 when scores no longer look like the calibration's; absent where none can be judged.",
        ("modality",),
        {(modality,): float(alarm) for modality, (alarm, _) in now.drift.items()},
    )
    yield _gauge(
        "guardrail_drift_psi",
        "Population stability index of scores against the calibration.",
        ("modality",),
        {(modality,): psi for modality, (_, psi) in now.drift.items()},
    )
    for name, words, count in (
        ("guardrail_audit_dropped", "Audit lines that could not be written.", now.audit_dropped),
        ("guardrail_sink_failures", "Records that a sink failed on.", now.sink_failures),
    ):
        yield CounterMetricFamily(name, words, value=count)


def _gauge(
    name: str, words: str, labels: Sequence[str], values: Mapping[Any, float]
) -> GaugeMetricFamily:
    family = GaugeMetricFamily(name, words, labels=labels)
    for labelled, value in values.items():
        family.add_metric(labelled, value)
    return family
