from __future__ import annotations

import itertools
import math
import re

import pytest
from prometheus_client.openmetrics import parser as openmetrics
from prometheus_client.parser import text_string_to_metric_families

from guardrail.observe.metrics import Metrics
from guardrail.observe.scores import SCORE_BUCKETS
from guardrail.types import Action, Modality

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
