from __future__ import annotations

import itertools
import json
import re
import xml.etree.ElementTree as ET

import pytest

from guardrail.monitor import Monitor
from guardrail.server import ServerSettings
from guardrail.server.observing import Observation
from guardrail.server.status import HIGH, WIDE, binned, score_bars
from guardrail.testing import tiny_artefact
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


async def test_nothing_but_styles_may_be_loaded_and_nothing_is_kept(guard_of, client_of):
    async with client_of(guard_of()) as client:
        told = await client.get("/")
    rules = told.headers["content-security-policy"]
    assert "default-src 'none'" in rules
    assert "script-src" not in rules
    assert "frame-ancestors 'none'" in rules
    assert told.headers["cache-control"] == "no-store"
    assert "<script" not in told.text
    assert not re.search(r"(src|href)=\"(https?:)?//", told.text)


@pytest.mark.parametrize(
    ("asked", "seconds"), [("", "30"), ("?refresh=0", None), ("?refresh=1", "5")]
)
async def test_it_is_renewed_unless_the_reader_stops_that(guard_of, client_of, asked, seconds):
    async with client_of(guard_of()) as client:
        text = (await client.get(f"/{asked}")).text
    found = re.search(r'http-equiv="refresh" content="(\d+)"', text)
    assert (found and found[1]) == seconds
    assert ("?refresh=30" in text) is (seconds is None)


async def test_a_names_markup_is_text(guard_of, client_of):
    settings = ServerSettings(model_name="<script>alert(1)</script>")
    async with client_of(guard_of(), settings) as client:
        text = (await client.get("/")).text
    assert "<script" not in text
    assert "&lt;script&gt;" in text


async def test_what_would_have_been_done_is_told_where_it_differs(guard_of, client_of):
    for mode, told in (("enforce", False), ("shadow", True)):
        async with client_of(guard_of(Action.FLAG, mode=mode)) as client:
            await client.post("/v1/checks", json={"input": "hello"})
            text = (await client.get("/")).text
        assert ("Would flag" in text) is told
        assert ("Shadow mode" in text) is told


async def test_what_was_judged_is_not_called_unjudged(guard_of, client_of):
    async with client_of(guard_of()) as client:
        await client.post("/v1/checks", json={"input": "hello"})
        text = (await client.get("/")).text
    assert "Judged" in text
    assert "udged yet" not in text
    assert "Scores are not held against a calibration yet" in text


async def test_no_word_of_a_request_is_on_it(guard_of, client_of):
    async with client_of(guard_of()) as client:
        await client.post("/v1/checks", json={"input": "zxqv hello"})
        pages = [(await client.get(path)).text for path in ("/", "/status.json")]
    assert not any("zxqv" in page for page in pages)


@pytest.fixture
def counts_of(llava):
    artefact = tiny_artefact(llava.model, llava.processor)

    def make(*scores):
        monitor = Monitor(artefact)
        for score in scores:
            monitor.add(Modality.TEXT, Action.PASS, score)
        return monitor.snapshot().modalities[Modality.TEXT]

    return make


def shares_of(scores, edges):
    inside = [sum(low <= s < high for s in scores) for low, high in itertools.pairwise(edges)]
    return pytest.approx([count / len(scores) for count in inside])


@pytest.mark.parametrize("width", [0.3, 1.7, 6.0, 15.0])
def test_both_are_counted_in_the_same_bins(counts_of, width):
    now = [width * (i / 40) - width / 2 + 0.003 for i in range(40)]
    before = [score + 0.1 * width for score in now]
    found = binned(counts_of(*now), before)
    assert 2 <= len(found["now"]) <= 32
    assert found["now"] == shares_of(now, found["edges"])
    assert found["calibration"] == shares_of(before, found["edges"])


def test_scores_far_out_are_in_the_outermost_bins(counts_of):
    found = binned(counts_of(-50.0, 0.0, 70.0), [0.0])
    assert len(found["now"]) <= 32
    assert (found["now"][0], found["now"][-1]) == pytest.approx((1 / 3, 1 / 3))
    assert (found["edges"][0], found["edges"][-1]) == (-10.0, 10.0)


def test_one_score_makes_a_figure_and_none_makes_none(counts_of):
    found = binned(counts_of(0.42), ())
    assert found == {"edges": [0.4, 0.45], "now": [1.0], "calibration": None}
    assert binned(counts_of(0.4).model_copy(update={"cells": ()}), (0.1,)) is None


EDGES = [0.0, 0.5, 1.0]


def drawn(*, now=(0.25, 0.75), before=(1.0, 0.0), steer=0.6, flag=0.9, title="Scores, text"):
    return score_bars(
        EDGES,
        {"now": now, "calibration": before},
        {"steer": steer, "flag": flag},
        title=title,
        counts={"now": 4, "calibration": 199 if before else 0},
    )


def words(text):
    return [node.text for node in ET.fromstring(text).iter("text")]


def test_it_is_an_image_with_a_title_and_words_for_those_who_cannot_see_it():
    root = ET.fromstring(drawn())
    assert root.attrib["role"] == "img"
    named = root.attrib["aria-labelledby"].split()
    found = {node.attrib["id"]: node.text for node in root if "id" in node.attrib}
    assert found[named[0]] == "Scores, text"
    assert found[named[1]] == (
        "Histograms of scores (now n = 4, calibration n = 199). "
        "Thresholds: steer at 0.60, flag at 0.90."
    )


def test_bars_are_as_high_as_their_shares():
    heights = [float(h) for h in re.findall(r'height="([\d.]+)" fill="var\(--accent\)"', drawn())]
    bars = heights[:-1]  # the last one is the legend's
    assert bars[1] == pytest.approx(3 * bars[0], abs=0.2)


def test_colours_are_the_pages():
    assert not re.search(r"#[0-9a-f]{3,6}", drawn())
    assert set(re.findall(r"var\(--([\w-]+)\)", drawn())) == {
        "accent", "grid", "ink", "muted", "series-2",
    }  # fmt: skip


@pytest.mark.parametrize("steer", [-0.5, 0.0, 1.0, 1.5])
def test_a_threshold_near_the_scores_is_drawn_inside(steer):
    text = drawn(steer=steer, flag=steer)
    assert {"steer", "flag"} <= set(words(text))
    places = [float(x) for x in re.findall(r'd="M([\d.]+) 42V', text)]
    assert len(places) == 2
    assert all(0 < x < WIDE for x in places)


@pytest.mark.parametrize("far", [None, 1e9, -1e9])
def test_a_threshold_far_away_does_not_shrink_the_bars(far):
    assert not {"steer", "flag"} & set(words(drawn(steer=far, flag=far)))


def test_without_a_calibration_there_is_one_histogram():
    text = drawn(before=None)
    assert "series-2" not in text
    assert "calibration" not in text


def test_a_title_is_text():
    assert "<script" not in drawn(title="<script>alert(1)</script>")


def test_nothing_is_outside_of_the_frame():
    places = re.findall(r'<text x="([\d.]+)" y="([\d.]+)"', drawn())
    assert len(places) == len(words(drawn()))
    for x, y in places:
        assert 0 < float(x) < WIDE
        assert 0 < float(y) < HIGH
