"""Metrics that are read when somebody asks: the queue, the artefact in force, drift, lost lines."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily
from prometheus_client.registry import Collector

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from prometheus_client import CollectorRegistry, Metric


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
        self._state = state
        registry.register(self)

    def describe(self) -> Iterator[Metric]:
        """The names alone; the server may not be up yet."""
        yield from _families(State(info={}, waiting=0, running=0, places=0))

    def collect(self) -> Iterator[Metric]:
        """The figures of now."""
        yield from _families(self._state())


def _families(now: State) -> Iterator[Metric]:
    yield InfoMetricFamily("guardrail", "What is in force.", value=dict(now.info))
    for name, words, value in (
        ("waiting", "Requests that wait for the model.", now.waiting),
        ("running", "Requests that the model is at work on.", now.running),
        ("places", "Requests that may wait at once.", now.places),
    ):
        yield GaugeMetricFamily(f"guardrail_queue_{name}", words, value=value)
    yield _thresholds(now)
    yield from _drift(now)
    for name, words, count in (
        ("guardrail_audit_dropped", "Audit lines that could not be written.", now.audit_dropped),
        ("guardrail_sink_failures", "Records that a sink failed on.", now.sink_failures),
    ):
        yield CounterMetricFamily(name, words, value=count)


def _thresholds(now: State) -> Metric:
    family = GaugeMetricFamily(
        "guardrail_threshold",
        "The score from which requests are steered or flagged.",
        labels=("modality", "action"),
    )
    for (modality, action), value in now.thresholds.items():
        family.add_metric((modality, action), value)
    return family


def _drift(now: State) -> Iterator[Metric]:
    alarm = GaugeMetricFamily(
        "guardrail_drift_alarm",
        "1 when scores no longer look like the calibration's; absent where none can be judged.",
        labels=("modality",),
    )
    index = GaugeMetricFamily(
        "guardrail_drift_psi",
        "Population stability index of scores against the calibration.",
        labels=("modality",),
    )
    for modality, (alarmed, psi) in now.drift.items():
        alarm.add_metric((modality,), float(alarmed))
        index.add_metric((modality,), psi)
    yield from (alarm, index)
