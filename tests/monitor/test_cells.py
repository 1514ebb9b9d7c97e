"""Quantiles from a grid."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from guardrail.monitor.cells import LAST, WIDTH, cell_of, quantile


def _of(scores, share):
    cells = sorted(Counter(cell_of(score) for score in scores).items())
    return quantile(cells, share, lowest=min(scores), highest=max(scores))


@pytest.mark.parametrize("spread", [0.01, 0.3, 3.0])
@pytest.mark.parametrize("n", [1, 2, 7, 1000])
def test_every_quantile_is_within_half_a_cell_of_numpys(spread, n):
    scores = np.random.default_rng(n).normal(0.4, spread, n).clip(-9.99, 9.99).tolist()
    for share in (0.0, 0.01, 0.25, 0.5, 0.9, 0.99, 1.0):
        exact = np.quantile(scores, share, method="inverted_cdf")
        assert abs(_of(scores, share) - exact) <= WIDTH / 2 + 1e-12


def test_of_scores_beyond_the_grid_the_ends_are_known():
    scores = [-1e300, -50.0, 0.0, 0.5, 1e300]
    assert _of(scores, 0.0) == -1e300
    assert _of(scores, 1.0) == 1e300
    assert _of(scores, 0.5) == pytest.approx(0.0, abs=WIDTH / 2)


def test_a_lone_score_is_its_own_quantile():
    assert _of([0.123], 0.5) == 0.123


@pytest.mark.parametrize("score", [-1e308, -10.0, -0.001, 0.0, 9.999, 10.0, 1e308])
def test_every_score_has_a_cell(score):
    assert -LAST <= cell_of(score) < LAST


def test_there_is_no_quantile_of_nothing():
    with pytest.raises(ValueError, match="without scores"):
        quantile([], 0.5, lowest=0, highest=0)
