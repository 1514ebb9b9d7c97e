"""New benign scores beside those of an earlier calibration."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import ks_2samp

from guardrail.fit.shift import ScoreShift, score_shift


def test_the_distance_and_medians_are_those_of_scipy_and_numpy() -> None:
    rng = np.random.default_rng(0)
    now, before = rng.normal(0.4, 1, 300).tolist(), rng.normal(0, 1, 500).tolist()
    found = score_shift(now, before)
    exact = ks_2samp(now, before)
    assert found.distance == pytest.approx(exact.statistic)
    assert found.p_value == pytest.approx(exact.pvalue, rel=0.2)
    assert found.median_now == pytest.approx(np.median(now))
    assert (found.n_now, found.n_before, found.notable) == (300, 500, True)


@pytest.mark.parametrize(
    ("distance", "p_value", "notable"),
    [(0.3, 1e-5, True), (0.3, 0.02, False), (0.09, 1e-5, False)],
)
def test_only_what_is_both_large_and_beyond_chance_is_notable(
    distance: float, p_value: float, notable: bool
) -> None:
    shift = ScoreShift(
        distance=distance, p_value=p_value, n_now=9, n_before=9, median_now=0, median_before=1
    )
    assert shift.notable is notable


def test_without_a_shift_few_are_notable_ties_included() -> None:
    rng = np.random.default_rng(2)
    found = [
        score_shift(np.round(rng.normal(size=150), 1), np.round(rng.normal(size=200), 1)).notable
        for _ in range(400)
    ]
    assert sum(found) <= 11  # of 400, at 1 %: more has a chance of 0.003


@pytest.mark.parametrize(("now", "way"), [(0.5, "higher"), (0.2, "about as high"), (0, "lower")])
def test_the_way_is_that_of_the_medians(now: float, way: str) -> None:
    shift = score_shift([now - 9, now, now + 9], [0.1, 0.2, 0.3])
    assert f"scores differently ({way})" in shift.describe(source="safe prompts")


def test_it_is_told_in_words_with_every_number() -> None:
    shift = ScoreShift(
        distance=0.31, p_value=2e-7, n_now=150, n_before=199, median_now=0.5, median_before=0.125
    )
    said = shift.describe(source="safe prompts")
    for part in ("higher", "safe prompts", "0.500", "n = 150", "0.125", "n = 199", "D = 0.310"):
        assert part in said
    assert "p = 2e-07" in said
