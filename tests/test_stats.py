"""Rates, AUROC and thresholds, against scipy and scikit-learn."""

from __future__ import annotations

import math
import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import beta, norm
from sklearn.metrics import average_precision_score, roc_auc_score, roc_curve

from guardrail.stats import (
    Rate,
    auroc,
    auroc_interval,
    average_precision,
    average_precision_interval,
    conformal_threshold,
    tpr_at_fpr,
    tpr_at_fpr_interval,
)

TIED = st.lists(st.integers(0, 6).map(float), min_size=1, max_size=30)


@pytest.mark.parametrize(("hits", "n"), [(0, 10), (3, 60), (30, 60), (10, 10), (0, 1)])
def test_the_interval_is_that_of_clopper_and_pearson(hits: int, n: int) -> None:
    low = beta.ppf(0.025, hits, n - hits + 1) if hits else 0.0
    high = beta.ppf(0.975, hits + 1, n - hits) if hits < n else 1.0
    assert Rate(hits, n).interval() == pytest.approx((low, high), abs=1e-9)


def test_less_confidence_is_a_narrower_interval() -> None:
    wide, narrow = (Rate(3, 60).interval(c) for c in (0.95, 0.8))
    assert wide[0] < narrow[0] < narrow[1] < wide[1]


def test_a_rate_prints_its_count_and_interval() -> None:
    assert str(Rate(hits=3, n=60)) == "0.050 (3/60, 95% CI 0.010 to 0.139)"
    plain = Rate(1, 4).to_dict()
    assert (plain["rate"], plain["hits"], plain["n"]) == (0.25, 1, 4)
    assert (plain["low"], plain["high"]) == Rate(1, 4).interval()


@pytest.mark.parametrize(("hits", "n"), [(0, 0), (-1, 5), (6, 5)])
def test_counts_that_are_no_share_are_refused(hits: int, n: int) -> None:
    with pytest.raises(ValueError, match="a rate needs"):
        Rate(hits, n)


def test_a_rate_counts_flags() -> None:
    assert Rate.of([True, False, True, False]) == Rate(2, 4)


@given(unsafe=TIED, safe=TIED)
def test_auroc_is_that_of_scikit_learn(unsafe: list[float], safe: list[float]) -> None:
    labels = [1] * len(unsafe) + [0] * len(safe)
    assert auroc(unsafe, safe) == pytest.approx(roc_auc_score(labels, [*unsafe, *safe]))


def test_auroc_knows_its_ends_and_its_infinities() -> None:
    assert auroc([2, 3], [0, 1]) == 1.0
    assert auroc([0, 1], [2, 3]) == 0.0
    assert auroc([1, 1], [1]) == 0.5
    assert auroc([math.inf], [1.0, -math.inf]) == 1.0


@pytest.mark.parametrize(
    "bad", [([], [1.0]), ([1.0], []), ([math.nan], [1.0]), ([1.0], [math.nan])]
)
def test_auroc_of_nothing_or_nan_is_refused(bad: tuple[list[float], list[float]]) -> None:
    with pytest.raises(ValueError, match="AUROC"):
        auroc(*bad)


@given(unsafe=TIED, safe=TIED)
def test_intervals_hold_the_estimate_and_stay_on_the_scale(
    unsafe: list[float], safe: list[float]
) -> None:
    for value, (low, high) in (
        (auroc(unsafe, safe), auroc_interval(unsafe, safe)),
        (average_precision(unsafe, safe), average_precision_interval(unsafe, safe)),
        (tpr_at_fpr(unsafe, safe, 0.1).value, tpr_at_fpr_interval(unsafe, safe, 0.1)),
    ):
        assert 0 <= low <= value + 1e-12
        assert value - 1e-12 <= high <= 1


def test_perfect_separation_of_few_inputs_is_no_certainty() -> None:
    few, many = (auroc_interval([1.0] * n, [0.0] * n) for n in (10, 1000))
    assert 0.6 < few[0] < 0.9
    assert 0.99 < many[0] < 1
    assert few[1] == many[1] == 1
    assert auroc_interval([0.0] * 10, [1.0] * 10) == pytest.approx((0.0, 1 - few[0]), abs=1e-6)


def delong_variance(unsafe: np.ndarray, safe: np.ndarray) -> float:
    """As written in the paper, over all pairs."""
    wins = (unsafe[:, None] > safe) + 0.5 * (unsafe[:, None] == safe)
    return float(wins.mean(1).var(ddof=1) / len(unsafe) + wins.mean(0).var(ddof=1) / len(safe))


def test_with_many_inputs_the_interval_is_delongs() -> None:
    rng = np.random.default_rng(4)
    unsafe, safe = rng.normal(1, 2, 900).round(1), rng.normal(0, 1, 700).round(1)
    low, high = auroc_interval(unsafe.tolist(), safe.tolist())
    reach = 1.96 * math.sqrt(delong_variance(unsafe, safe))
    assert (high - low) / 2 == pytest.approx(reach, rel=0.02)


SHAPES = [
    # shift and spread of unsafe scores, n unsafe, n safe
    (0.5, 1.0, 30, 30),
    (1.5, 2.0, 20, 100),
    (2.5, 1.0, 75, 75),
    (3.5, 1.0, 50, 200),
    (3.5, 0.4, 100, 20),
]
DRAWS = 400
# Three standard errors below 0.95 in so many draws; conservative intervals are allowed.
ENOUGH = 0.95 - 3 * math.sqrt(0.95 * 0.05 / DRAWS)


def drawn_scores(rng: np.random.Generator, shape: tuple[float, float, int, int]):
    shift, spread, m, n = shape
    return rng.normal(shift, spread, m).tolist(), rng.normal(0, 1, n).tolist()


@pytest.mark.parametrize("shape", SHAPES)
def test_the_auroc_interval_covers_the_truth(shape: tuple[float, float, int, int]) -> None:
    rng = np.random.default_rng(11)
    truth = norm.cdf(shape[0] / math.hypot(shape[1], 1))
    spans = (auroc_interval(*drawn_scores(rng, shape)) for _ in range(DRAWS))
    assert np.mean([low <= truth <= high for low, high in spans]) >= ENOUGH


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("fpr", [0.01, 0.05, 0.1])
def test_the_tpr_interval_covers_the_truth_at_the_true_fpr(
    shape: tuple[float, float, int, int], fpr: float
) -> None:
    rng = np.random.default_rng(12)
    truth = norm.sf((norm.ppf(1 - fpr) - shape[0]) / shape[1])
    spans = (tpr_at_fpr_interval(*drawn_scores(rng, shape), fpr) for _ in range(DRAWS))
    assert np.mean([low <= truth <= high for low, high in spans]) >= ENOUGH


@pytest.mark.parametrize("shape", SHAPES)
def test_the_average_precision_interval_covers_the_truth(
    shape: tuple[float, float, int, int],
) -> None:
    rng = np.random.default_rng(13)
    truth = average_precision(*drawn_scores(rng, (*shape[:2], 200 * shape[2], 200 * shape[3])))
    spans = (average_precision_interval(*drawn_scores(rng, shape)) for _ in range(DRAWS // 4))
    assert np.mean([low <= truth <= high for low, high in spans]) >= ENOUGH


@given(unsafe=TIED, safe=TIED)
def test_average_precision_is_that_of_scikit_learn(unsafe: list[float], safe: list[float]) -> None:
    labels = [1] * len(unsafe) + [0] * len(safe)
    found = average_precision(unsafe, safe)
    assert found == pytest.approx(average_precision_score(labels, [*unsafe, *safe]))


@pytest.mark.parametrize(("n", "rate"), [(99, 0.05), (60, 0.05), (99, 0.01), (19, 0.05), (40, 0.3)])
def test_fresh_benign_inputs_exceed_the_threshold_at_most_at_the_rate(n: int, rate: float) -> None:
    """Of uniform scores the share beyond a threshold t is exactly 1 - t."""
    rng = np.random.default_rng(7)
    beyond = [1 - conformal_threshold(rng.random(n).tolist(), rate) for _ in range(3000)]
    mean, error = float(np.mean(beyond)), float(np.std(beyond)) / math.sqrt(3000)
    assert mean <= rate + 4 * error
    assert mean >= rate - 1 / (n + 1) - 4 * error  # and no stricter than n allows


def test_ties_never_push_the_share_beyond_the_rate() -> None:
    rng = random.Random(3)
    for _ in range(200):
        scores = [float(rng.randrange(4)) for _ in range(50)]
        threshold = conformal_threshold(scores, 0.1)
        assert sum(s > threshold for s in scores) <= 0.1 * (len(scores) + 1)


@pytest.mark.parametrize(("rate", "needed"), [(0.01, 99), (0.05, 19), (0.1, 9), (0.5, 1)])
def test_too_few_scores_cannot_support_a_rate(rate: float, needed: int) -> None:
    scores = [float(i) for i in range(needed)]
    assert conformal_threshold(scores, rate) == max(scores)
    with pytest.raises(ValueError, match=f"need {needed}$"):
        conformal_threshold(scores[:-1], rate)


@pytest.mark.parametrize("rate", [0.0, 1.0, -0.1, 5.0])
def test_a_rate_that_is_no_share_is_refused(rate: float) -> None:
    with pytest.raises(ValueError, match="between 0 and 1"):
        conformal_threshold([1.0, 2.0], rate)


@given(unsafe=TIED, safe=TIED, fpr=st.sampled_from([0.0, 0.01, 0.05, 0.1, 0.3, 0.5, 1.0]))
def test_tpr_at_fpr_is_the_best_point_of_the_roc_curve(
    unsafe: list[float], safe: list[float], fpr: float
) -> None:
    labels = [1] * len(unsafe) + [0] * len(safe)
    false, true, _ = roc_curve(labels, [*unsafe, *safe], drop_intermediate=False)
    found = tpr_at_fpr(unsafe, safe, fpr)
    assert found.value == pytest.approx(max(true[false <= fpr + 1e-9]))
    assert found.n == len(unsafe)


def test_rounding_takes_no_false_positive_away() -> None:
    safe = [float(i) for i in range(100)]
    assert 0.29 * 100 < 29  # as floats multiply
    assert tpr_at_fpr([70.5], safe, 0.29) == Rate(1, 1)
    assert tpr_at_fpr([70.0], safe, 0.29) == Rate(0, 1)
