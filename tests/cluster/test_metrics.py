from __future__ import annotations

from prometheus_client.parser import text_string_to_metric_families

from guardrail.cluster.metrics import merged
from guardrail.observe.metrics import Metrics


def test_figures_of_all_replicas_are_there_by_replica():
    texts = {}
    for name, count in (("a", 1), ("b", 2)):
        metrics = Metrics()
        for _ in range(count):
            metrics.answered("/v1/checks", 200, 0.1)
        texts[name] = metrics.exposition(None)[0].decode()

    families = {f.name: f for f in text_string_to_metric_families(merged(texts).decode())}

    found = families["guardrail_requests"]
    assert found.type == "counter"
    totals = {s.labels["replica"]: s.value for s in found.samples if s.name.endswith("_total")}
    assert totals == {"a": 1.0, "b": 2.0}
    buckets = families["guardrail_http_request_seconds"]
    assert buckets.type == "histogram"
    assert {s.labels["replica"] for s in buckets.samples} == {"a", "b"}
