from __future__ import annotations

from prometheus_client import CollectorRegistry

from guardrail.observe.scraped import Scraped, State

INFO = {"version": "1", "artefact_id": "guard-1", "model": "m", "mode": "shadow"}


def test_the_figures_are_those_of_the_moment_of_asking():
    registry, states = CollectorRegistry(auto_describe=True), []
    Scraped(lambda: states[-1], registry)
    states.append(State(info=INFO, waiting=0, running=1, places=64))
    assert registry.get_sample_value("guardrail_queue_running") == 1
    assert registry.get_sample_value("guardrail_info", INFO) == 1
    assert registry.get_sample_value("guardrail_drift_alarm", {"modality": "text"}) is None
    states.append(
        State(
            info=INFO | {"artefact_id": "guard-2"},
            waiting=3,
            running=8,
            places=64,
            thresholds={("text", "flag"): 0.9},
            drift={"text": (True, 0.4)},
            audit_dropped=2,
            sink_failures=1,
        )
    )
    assert registry.get_sample_value("guardrail_queue_waiting") == 3
    assert registry.get_sample_value("guardrail_info", INFO) is None
    labels = {"modality": "text", "action": "flag"}
    assert registry.get_sample_value("guardrail_threshold", labels) == 0.9
    assert registry.get_sample_value("guardrail_drift_alarm", {"modality": "text"}) == 1
    assert registry.get_sample_value("guardrail_drift_psi", {"modality": "text"}) == 0.4
    assert registry.get_sample_value("guardrail_audit_dropped_total") == 2
    assert registry.get_sample_value("guardrail_sink_failures_total") == 1


def test_registering_asks_for_nothing():
    def not_yet():
        raise AssertionError("the server is not up")

    Scraped(not_yet, CollectorRegistry(auto_describe=True))
