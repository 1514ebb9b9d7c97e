from __future__ import annotations

import asyncio
import json

import httpx
import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families

from guardrail import __version__
from guardrail.audit import AuditLog
from guardrail.server import ServerSettings, create_app
from guardrail.server.observing import Observation
from guardrail.types import Action

SECRET = "zxqv"  # part of every prompt, and of no metric


def chat(**changes):
    body = {
        "model": "guarded",
        "messages": [{"role": "user", "content": f"{SECRET} hello"}],
        "max_tokens": 3,
    }
    return body | changes


async def scraped(client):
    """Samples by name and labels, through the parser of OpenMetrics."""
    told = await client.get("/metrics", headers={"Accept": "application/openmetrics-text"})
    assert told.status_code == 200
    assert SECRET not in told.text
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(told.text)
        for sample in family.samples
    }


def at(samples, name, **labels):
    return samples.get((name, frozenset(labels.items())))


async def test_what_happened_is_counted(guard_of, client_of):
    async with client_of(guard_of(Action.FLAG)) as client:
        for _ in range(2):
            await client.post("/v1/checks", json={"input": f"{SECRET} hello"})
        await client.post("/v1/chat/completions", json=chat())
        await client.post("/v1/chat/completions", json=chat(model="no-such"))
        await client.get(f"/{SECRET}")
        found = await scraped(client)
    judged = {"action": "flag", "would_be": "flag", "modality": "text", "reason": "score"}
    assert at(found, "guardrail_verdicts_total", **judged) == 3
    assert at(found, "guardrail_score_bucket", modality="text", le="+Inf") == 3
    assert at(found, "guardrail_verdict_seconds_count") == 3
    assert at(found, "guardrail_queue_seconds_count") == 3
    assert at(found, "guardrail_answer_seconds_count") == 1
    assert at(found, "guardrail_tokens_total", kind="prompt") > 0
    assert at(found, "guardrail_requests_total", route="/v1/checks", status="200") == 2
    route = "/v1/chat/completions"
    assert at(found, "guardrail_requests_total", route=route, status="200") == 1
    assert at(found, "guardrail_requests_total", route=route, status="404") == 1
    assert at(found, "guardrail_requests_total", route="other", status="404") == 1


async def test_streams_are_timed_to_their_first_words(guard_of, client_of):
    async with client_of(guard_of()) as client:
        await client.post("/v1/chat/completions", json=chat(stream=True))
        found = await scraped(client)
    route = "/v1/chat/completions"
    assert at(found, "guardrail_http_first_byte_seconds_count", route=route) == 1
    assert at(found, "guardrail_tokens_total", kind="completion") == 3


async def test_what_is_in_force_and_the_queue_are_told(guard_of, client_of):
    guard = guard_of(Action.STEER, mode="shadow")
    settings = ServerSettings(model_name="tiny")
    async with client_of(guard, settings) as client:
        found = await scraped(client)
    info = {
        "version": __version__,
        "artefact_id": guard.artefact.artefact_id,
        "model": "tiny",
        "mode": "shadow",
    }
    assert at(found, "guardrail_info", **info) == 1
    assert at(found, "guardrail_queue_places") == guard.load.places
    assert at(found, "guardrail_queue_waiting") == at(found, "guardrail_queue_running") == 0
    assert at(found, "guardrail_threshold", modality="image", action="steer") == -1e9


async def test_drift_is_absent_until_it_can_be_judged_and_then_told(guard_of, client_of):
    observation = Observation()
    observation.drift._every_s = 0
    async with client_of(guard_of(), observation=observation) as client:
        assert at(await scraped(client), "guardrail_drift_alarm", modality="text") is None
        inputs = [{"input": f"hello {number}"} for number in range(100)]
        assert (await client.post("/v1/checks", json={"inputs": inputs})).status_code == 200
        found = await scraped(client)
    # the tiny model's scores have nothing to do with the evenly spread calibration
    assert at(found, "guardrail_drift_alarm", modality="text") == 1
    assert at(found, "guardrail_drift_psi", modality="text") > 0.2


async def test_outages_are_counted(guard_of, client_of, broken_detector):
    async with client_of(guard_of()) as client:
        assert (await client.post("/v1/chat/completions", json=chat())).status_code == 503
        found = await scraped(client)
    assert at(found, "guardrail_outages_total") == 1


async def test_audit_lines_that_are_lost_are_counted_and_cost_no_answer(guard_of, client_of):
    class Full:
        def write(self, _text):
            raise OSError(28, "No space left on device")

        def flush(self):
            pass

    log = AuditLog(Full())
    guard = guard_of(audit=log)
    async with client_of(guard, observation=Observation(audit_log=log)) as client:
        told = await client.post("/v1/checks", json={"input": "hello"})
        found = await scraped(client)
    assert told.status_code == 200
    assert at(found, "guardrail_audit_dropped_total") == 1
    assert at(found, "guardrail_verdict_seconds_count") == 1


async def test_an_audit_line_names_the_request_and_its_client(guard_of, client_of, tmp_path):
    from guardrail.server.keys import keys_from_text

    keys = keys_from_text("alice:0123456789abcdef0123456789abcdef", source="here")
    with AuditLog(tmp_path / "audit.jsonl") as log:
        guard = guard_of(audit=log)
        async with client_of(guard, ServerSettings(keys=keys)) as client:
            headers = {
                "Authorization": "Bearer 0123456789abcdef0123456789abcdef",
                "X-Request-ID": "mine-1",
            }
            told = await client.post("/v1/chat/completions", json=chat(), headers=headers)
    assert told.status_code == 200
    lines = [json.loads(line) for line in (tmp_path / "audit.jsonl").read_text().splitlines()]
    assert [line["event"] for line in lines] == ["verdict", "answer"]
    assert {line["request_id"] for line in lines} == {"mine-1"}
    assert lines[0]["client"] == "alice"
    assert "0123456789abcdef" not in (tmp_path / "audit.jsonl").read_text().replace(
        guard.artefact.artefact_id, ""
    )


async def test_metrics_need_a_key_unless_they_are_open(guard_of, client_of):
    from guardrail.server.keys import keys_from_text

    keys = keys_from_text("alice:0123456789abcdef0123456789abcdef", source="here")
    guard = guard_of()
    async with client_of(guard, ServerSettings(keys=keys)) as client:
        assert (await client.get("/metrics")).status_code == 401
    async with client_of(guard, ServerSettings(keys=keys, open_metrics=True)) as client:
        found = await scraped(client)
        assert (await client.get("/")).status_code == 401
        found = await scraped(client)
    assert at(found, "guardrail_requests_total", route="/", status="401") == 1


async def test_two_apps_on_one_guard_count_apart(guard_of, client_of):
    guard = guard_of()
    async with client_of(guard) as one, client_of(guard) as other:
        await one.post("/v1/checks", json={"input": "hello"})
        first, second = await asyncio.gather(scraped(one), scraped(other))
    assert at(first, "guardrail_verdict_seconds_count") == 1
    assert at(second, "guardrail_verdict_seconds_count") == 0


async def test_a_guard_put_in_force_later_is_counted_and_told_of(guard_of):
    app = create_app(guard_of())
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://server") as client:
        await client.post("/v1/checks", json={"input": "hello"})
        await app.state.service.replace(guard_of(Action.FLAG, mode="shadow"))
        await client.post("/v1/checks", json={"input": "hello"})
        found = await scraped(client)
    modes = {dict(labels)["mode"] for name, labels in found if name == "guardrail_info"}
    assert modes == {"shadow"}
    shadow = {"action": "pass", "would_be": "flag", "modality": "text", "reason": "score"}
    assert at(found, "guardrail_verdicts_total", **shadow) == 1
    assert at(found, "guardrail_verdict_seconds_count") == 2


async def test_an_app_made_in_place_of_another_goes_on_counting(guard_of, client_of):
    observation = Observation()
    async with client_of(guard_of(), observation=observation) as client:
        await client.post("/v1/checks", json={"input": "hello"})
    later = guard_of(mode="shadow")
    async with client_of(later, observation=observation) as client:
        await client.post("/v1/checks", json={"input": "hello"})
        found = await scraped(client)
    assert at(found, "guardrail_verdict_seconds_count") == 2
    modes = {dict(labels)["mode"] for name, labels in found if name == "guardrail_info"}
    assert modes == {"shadow"}


@pytest.mark.parametrize("accept", [None, "text/plain;version=0.0.4", "*/*", "nonsense"])
async def test_the_plain_form_is_what_others_get(guard_of, client_of, accept):
    headers = {} if accept is None else {"Accept": accept}
    async with client_of(guard_of()) as client:
        told = await client.get("/metrics", headers=headers)
    assert told.headers["content-type"].startswith("text/plain; version=0.0.4")
