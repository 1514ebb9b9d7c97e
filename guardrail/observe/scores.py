"""The histogram of scores, some of which are below zero."""

from __future__ import annotations

import threading
from bisect import bisect_left
from itertools import accumulate
from typing import TYPE_CHECKING

from prometheus_client.core import HistogramMetricFamily
from prometheus_client.registry import Collector

if TYPE_CHECKING:
    from collections.abc import Iterator

SCORE_BUCKETS = (
    *(-1.0, -0.5, -0.25, 0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.1),
    *(1.25, 1.5, 2.0, 3.0),
)
"""Upper bounds in text gaps: 0 is the text-safe centroid, 1 the text-unsafe one; thresholds of most
artefacts lie between, where the buckets are narrow. The same for all, so that servers add up."""


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
