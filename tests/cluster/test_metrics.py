from __future__ import annotations

import httpx
from fastapi import FastAPI
from prometheus_client.parser import text_string_to_metric_families

from guardrail.cluster.metrics import merged, metrics_router
from guardrail.observe.metrics import Metrics
from guardrail.server.keys import Caller
from guardrail.testing import FakeGuard


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


async def test_figures_of_scores_are_for_callers_who_are_told_scores():
    metrics = Metrics()
    metrics(FakeGuard().check("hello"), {"event": "verdict"})

    async def texts():
        return {"a": metrics.exposition(None)[0].decode()}

    app = FastAPI()
    app.include_router(metrics_router(texts))
    told = {}
    for sees in (False, True):

        async def named(scope, receive, send, sees=sees):
            scope["state"] = {"caller": Caller("r", sees_scores=sees)}
            await app(scope, receive, send)

        transport = httpx.ASGITransport(named)
        async with httpx.AsyncClient(transport=transport, base_url="http://s") as client:
            told[sees] = (await client.get("/metrics")).text
    assert "guardrail_verdicts_total{" in told[False]
    assert "guardrail_score" not in told[False]
    assert "guardrail_score_bucket{" in told[True]
