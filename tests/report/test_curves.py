"""Curves of a bounded size that say what all the scores say."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import auc

from guardrail.report.curves import (
    Scores,
    histogram,
    operating_point,
    roc_points,
    scores_by_modality,
)
from guardrail.stats import auroc


def some(n: int, *, decimals: int = 9) -> Scores:
    rng = np.random.default_rng(n)
    high, low = rng.normal(1, 0.5, n), rng.normal(0, 0.5, 2 * n)
    sides = (tuple(side.round(decimals).tolist()) for side in (high, low))
    return Scores("text", *sides, thresholds={"steer": 0.5})


@pytest.mark.parametrize(("n", "decimals"), [(3, 9), (50, 1), (4000, 9)])
def test_the_area_under_a_thinned_curve_is_the_auroc(n, decimals):
    scores = some(n, decimals=decimals)
    fpr, tpr = roc_points(scores)
    assert len(fpr) <= 300
    assert auc(fpr, tpr) == pytest.approx(auroc(scores.harmful, scores.harmless), abs=2e-3)
    assert (fpr[0], tpr[0], fpr[-1], tpr[-1]) == (0, 0, 1, 1)
    assert all(np.diff(fpr) >= 0)
    assert all(np.diff(tpr) >= 0)


def test_points_of_a_thinned_curve_are_points_of_the_whole_one():
    scores = some(3000)
    every = set(zip(*roc_points(scores, 10**6), strict=True))
    assert set(zip(*roc_points(scores, 100), strict=True)) <= every


def test_a_score_at_the_threshold_passes():
    scores = Scores("text", (0.5, 0.6), (0.5, 0.4, 0.7, 0.1), {"steer": 0.5})
    assert operating_point(scores, 0.5) == (0.25, 0.5)


def test_bins_hold_every_score_once():
    scores = some(100)
    edges, shares = histogram(scores, 20)
    assert len(edges) == 21
    assert all(sum(side) == pytest.approx(1) for side in shares.values())
    inside = sum(edges[3] <= s < edges[4] for s in scores.harmful) / 100
    assert shares["harmful"][3] == pytest.approx(inside)


def test_one_label_and_equal_scores_make_a_histogram_too():
    edges, shares = histogram(Scores("text", (0.3, 0.3), (), {}))
    assert shares.keys() == {"harmful"}
    assert edges[0] < 0.3 < edges[-1]


def test_scores_that_differ_by_rounding_alone_make_a_histogram_too():
    close = float(np.nextafter(0.3, 1))
    edges, shares = histogram(Scores("text", (0.3, close), (0.3,), {}))
    assert all(np.diff(edges) > 0)
    assert sum(shares["harmful"]) == pytest.approx(1)


def test_items_are_sorted_by_modality_and_label(report):
    made = report(5)
    text, image = scores_by_modality(made)
    assert (text.modality, image.modality) == ("text", "image")
    wanted = [
        i["score"] for i in made["items"] if (i["modality"], i["label"]) == ("image", "harmful")
    ]
    assert image.harmful == tuple(wanted)
    assert image.counts == "5 harmful, 5 harmless"


def test_a_modality_without_thresholds_has_none(report):
    made = report(2)
    made["thresholds"] = {"image": {"steer": None, "flag": 1.0}}
    text, image = scores_by_modality(made)
    assert text.thresholds == {}
    assert image.thresholds == {"flag": 1.0}
