from __future__ import annotations

import itertools

import pytest

from guardrail.monitor import Monitor
from guardrail.server.score_bins import binned
from guardrail.testing import tiny_artefact
from guardrail.types import Action, Modality


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
