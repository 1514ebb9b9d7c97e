from __future__ import annotations

import json

from guardrail.server import ServerSettings
from guardrail.server.observing import Observation
from guardrail.types import Action, Modality


async def test_it_tells_what_is_in_force(guard_of, client_of):
    guard = guard_of(mode="shadow", on_flag="annotate", fail="open")
    async with client_of(guard, ServerSettings(model_name="tiny")) as client:
        told = (await client.get("/status.json")).json()
    assert told["model"] == "tiny"
    assert told["artefact_id"] == guard.artefact.artefact_id
    assert told["policy"] == {
        "mode": "shadow",
        "actions": ["flag", "steer"],
        "on_flag": "annotate",
        "fail": "open",
    }
    assert told["queue"] == {"waiting": 0, "running": 0, "places": guard.load.places}
    assert told["drift"]["state"] == "not judged"
    assert told["modalities"] == []


async def test_recent_verdicts_are_counted_by_window(guard_of, client_of, picture_url):
    observation = Observation()
    now = [1e6]
    observation.recent._clock = lambda: now[0]
    content = [{"type": "image_url", "image_url": {"url": picture_url}}]
    async with client_of(guard_of(Action.FLAG), observation=observation) as client:
        await client.post("/v1/checks", json={"input": "hello"})
        now[0] += 1000
        message = {"role": "user", "content": content}
        await client.post("/v1/checks", json={"messages": [message]})
        told = (await client.get("/status.json")).json()
    counts = {row["name"]: (row["n"], row["actions"]["flag"]) for row in told["windows"]}
    assert counts == {"last 5 minutes": (1, 1), "last hour": (2, 2), "since the start": (2, 2)}
    assert {row["modality"]: row["n"] for row in told["modalities"]} == {"text": 1, "image": 1}


async def test_scores_stand_beside_the_calibration_they_are_held_to(
    guard_of, client_of, picture_url
):
    content = [{"type": "image_url", "image_url": {"url": picture_url}}]
    async with client_of(guard_of()) as client:
        await client.post("/v1/checks", json={"messages": [{"role": "user", "content": content}]})
        told = (await client.get("/status.json")).json()
    (row,) = told["modalities"]
    assert row["modality"] == Modality.IMAGE
    assert row["calibration"] == {"modality": "text", "n": 199}
    assert sum(row["histogram"]["now"]) == 1
    assert abs(sum(row["histogram"]["calibration"]) - 1) < 1e-9


async def test_an_alarm_is_told_with_its_reasons(guard_of, client_of):
    observation = Observation()
    async with client_of(guard_of(), observation=observation) as client:
        inputs = [{"input": f"hello {number}"} for number in range(100)]
        await client.post("/v1/checks", json={"inputs": inputs})
        told = (await client.get("/status.json")).json()
    assert told["drift"]["state"] == "alarm"
    assert "thresholds" in told["drift"]["meaning"]
    assert "population stability index" in told["modalities"][0]["reasons"][0]


async def test_infinite_thresholds_are_still_json(llava, client_of):
    from guardrail.guard import Guard
    from guardrail.policy import Policy, Thresholds
    from guardrail.testing import tiny_artefact

    never = Thresholds(steer=float("inf"), flag=float("inf"))
    policy = Policy(thresholds=dict.fromkeys(Modality, never))
    artefact = tiny_artefact(llava.model, llava.processor)
    with Guard((llava.model, llava.processor), artefact, policy=policy) as guard:
        async with client_of(guard) as client:
            await client.post("/v1/checks", json={"input": "hello"})
            text = (await client.get("/status.json")).text
            page = await client.get("/")
            metrics = await client.get("/metrics")
    assert json.loads(text)["modalities"][0]["thresholds"] == {"steer": None, "flag": None}
    assert page.status_code == metrics.status_code == 200
    assert 'guardrail_threshold{action="flag",modality="text"} +Inf' in metrics.text
