from __future__ import annotations

import itertools
import math
import re
import subprocess
import sys
import threading

import pytest
from prometheus_client import CollectorRegistry
from prometheus_client.openmetrics import parser as openmetrics
from prometheus_client.parser import text_string_to_metric_families

from guardrail.observe.metrics import SCORE_BUCKETS, Metrics, ScoreHistogram, Scraped, State
from guardrail.types import Action, Modality, Where

JUDGED = {"event": "verdict", "request_id": "r-1", "queue_s": 0.002, "verdict_s": 0.03}


@pytest.fixture
def metrics():
    return Metrics()


def value(metrics, name, **labels):
    return metrics.registry.get_sample_value(name, labels)


def test_a_verdict_is_counted_scored_and_timed(metrics, verdict_of):
    shadow = verdict_of(
        action=Action.PASS, would_be=Action.STEER, score=0.61, modality=Modality.IMAGE
    )
    metrics(shadow, JUDGED)
    labels = {"action": "pass", "would_be": "steer", "modality": "image", "reason": "score"}
    assert value(metrics, "guardrail_verdicts_total", **labels) == 1
    assert value(metrics, "guardrail_score_bucket", modality="image", le="0.6") == 0
    assert value(metrics, "guardrail_score_bucket", modality="image", le="0.7") == 1
    assert value(metrics, "guardrail_queue_seconds_sum") == 0.002
    assert value(metrics, "guardrail_verdict_seconds_sum") == 0.03
    assert value(metrics, "guardrail_outages_total") == 0


def test_outages_count_once_each_and_have_no_score(metrics, outage_of):
    metrics(outage_of(), JUDGED)
    metrics(None, {"event": "outage", "request_id": "r-2"})
    assert value(metrics, "guardrail_outages_total") == 2
    assert value(metrics, "guardrail_score_bucket", modality="text", le="+Inf") is None
    labels = {"action": "flag", "would_be": "flag", "modality": "text"}
    assert value(metrics, "guardrail_verdicts_total", **labels, reason="detector_failed") == 1


def test_scores_are_counted_by_their_reading_and_no_words(metrics, verdict_of, outage_of):
    where = Where(reading="window", message=0, role="user", words="pick a lock")
    metrics(verdict_of(action=Action.FLAG, where=where), JUDGED)
    metrics(verdict_of(), JUDGED)  # of a long video, say
    metrics(outage_of(), JUDGED)
    counted = {
        (labels["reading"], labels["would_be"]): n
        for family in metrics.registry.collect()
        for name, labels, n, *_ in family.samples
        if name == "guardrail_readings_total"
    }
    assert counted == {("window", "flag"): 1, ("other", "pass"): 1}
    assert b"lock" not in metrics.exposition(None)[0]


def test_an_answer_adds_its_time_and_tokens_and_no_verdict(metrics, verdict_of):
    facts = {"event": "answer", "total_s": 1.5, "prompt_tokens": 20, "completion_tokens": 7}
    metrics(verdict_of(), facts)
    assert value(metrics, "guardrail_answer_seconds_sum") == 1.5
    assert value(metrics, "guardrail_tokens_total", kind="prompt") == 20
    assert value(metrics, "guardrail_tokens_total", kind="completion") == 7
    assert b"guardrail_verdicts_total{" not in metrics.exposition(None)[0]


def test_events_of_others_are_let_go(metrics, verdict_of):
    metrics(verdict_of(), {"event": "call", "done": "pass"})
    metrics(None, {"event": "mismatch_allowed", "fields": {}})
    assert value(metrics, "guardrail_outages_total") == 0
    assert b"guardrail_verdicts_total{" not in metrics.exposition(None)[0]


def filled(metrics, verdict_of):
    metrics(verdict_of(), JUDGED)
    metrics(verdict_of(), {"event": "answer", "total_s": 1.0, "prompt_tokens": 3})
    metrics(verdict_of(), {"event": "watched"})
    metrics.answered("/v1/checks", 200, 0.1)
    metrics.answered("/v1/chat/completions", 200, 0.4, 0.2)
    metrics.near_duplicate("web")


@pytest.mark.parametrize(
    ("accept", "media_type", "parse"),
    [
        (None, "text/plain", text_string_to_metric_families),
        ("*/*", "text/plain", text_string_to_metric_families),
        (
            "application/openmetrics-text;version=1.0.0,text/plain;q=0.5",
            "application/openmetrics-text",
            openmetrics.text_string_to_metric_families,
        ),
    ],
)
def test_both_text_forms_can_be_read(metrics, verdict_of, accept, media_type, parse):
    filled(metrics, verdict_of)
    text, told = metrics.exposition(accept)
    assert told.startswith(media_type)
    families = {family.name: family for family in parse(text.decode())}
    assert families["guardrail_verdicts"].type == "counter"
    first = families["guardrail_http_first_byte_seconds"].samples
    assert {s.labels["route"] for s in first} == {"/v1/chat/completions"}


def test_names_follow_the_conventions(metrics, verdict_of):
    filled(metrics, verdict_of)
    text = metrics.exposition(None)[0].decode()
    families = [
        family
        for family in text_string_to_metric_families(text)
        if family.name.startswith("guardrail_") and not family.name.endswith("_created")
    ]
    assert families
    for family in families:
        assert re.fullmatch(r"[a-z][a-z_]*[a-z]", family.name)
        assert family.documentation.endswith(".")
        counts = any(sample.name.endswith("_total") for sample in family.samples)
        assert counts == (family.type == "counter")
        if "second" in family.name:
            assert family.name.endswith("_seconds")


def test_score_buckets_are_narrow_where_thresholds_lie():
    assert list(SCORE_BUCKETS) == sorted(set(SCORE_BUCKETS))
    between = [b for b in SCORE_BUCKETS if 0 <= b <= 1]
    assert len(between) == 11
    assert max(b - a for a, b in itertools.pairwise(between)) == pytest.approx(0.1)
    assert math.isfinite(max(SCORE_BUCKETS))


def test_two_servers_share_no_count(metrics, verdict_of):
    other = Metrics()
    metrics(verdict_of(), JUDGED)
    assert b"guardrail_verdicts_total{" not in other.exposition(None)[0]


def registered():
    registry, scores = CollectorRegistry(), ScoreHistogram()
    registry.register(scores)

    def at(le, modality="text"):
        return registry.get_sample_value("guardrail_score_bucket", {"modality": modality, "le": le})

    return scores, at, registry


def test_a_score_on_a_bound_is_in_its_bucket_and_those_above():
    scores, at, _ = registered()
    for score in (0.5, 0.51, -7.0, 99.0):
        scores.observe("text", score)
    assert (at("-1.0"), at("0.4"), at("0.5"), at("0.6"), at("3.0"), at("+Inf")) == (
        1,
        1,
        2,
        3,
        3,
        4,
    )


def test_modalities_are_apart_and_the_unseen_ones_absent():
    scores, at, registry = registered()
    scores.observe("image", 0.1)
    assert at("+Inf", "image") == 1
    assert at("+Inf") is None
    names = {sample.name for family in registry.collect() for sample in family.samples}
    assert names == {"guardrail_score_bucket"}  # scores below zero have no sum that only grows


def test_threads_lose_no_score():
    scores, at, _ = registered()
    threads = [
        threading.Thread(target=lambda: [scores.observe("text", b) for b in SCORE_BUCKETS * 50])
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert at("+Inf") == 200 * len(SCORE_BUCKETS)


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


def test_metrics_and_the_audit_log_need_no_opentelemetry():
    code = (
        "import sys\nsys.modules['opentelemetry'] = None\n"
        "import guardrail.audit, guardrail.observe.metrics\n"
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
