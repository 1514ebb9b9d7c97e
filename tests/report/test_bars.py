from __future__ import annotations

import re
import xml.etree.ElementTree as ET

import pytest

from guardrail.report.bars import HIGH, WIDE, score_bars

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
