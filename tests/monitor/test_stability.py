"""What chance explains of a difference between scores and their calibration."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import betabinom, binom, chi2, entropy

from guardrail.monitor.reference import bin_edges
from guardrail.monitor.stability import (
    exceedance_p_value,
    index_by_chance,
    population_stability_index,
)


def _binned(scores, edges):
    places = np.searchsorted(edges, scores, side="left")
    return np.bincount(places, minlength=len(edges) + 1).tolist()


def test_the_index_is_the_symmetrised_divergence_of_the_smoothed_shares():
    now, before = [3, 0, 10, 40], [20, 15, 30, 0]
    p, q = np.array(now) + 0.5, np.array(before) + 0.5
    expected = entropy(p, q) + entropy(q, p)
    assert population_stability_index(now, before) == pytest.approx(expected)
    assert population_stability_index(before, now) == pytest.approx(expected)


def test_the_index_of_equal_shares_is_zero():
    assert population_stability_index([10, 20], [10, 20]) == 0
    assert population_stability_index([7], [3]) == 0


@pytest.mark.parametrize(("now", "before"), [([1], [1, 2]), ([0, 0], [1, 1]), ([1], [0])])
def test_what_cannot_be_compared_is_refused(now, before):
    with pytest.raises(ValueError, match="same bins"):
        population_stability_index(now, before)


@pytest.mark.parametrize(("n", "m"), [(100, 199), (500, 199), (2000, 1000)])
def test_without_a_shift_the_index_exceeds_its_bound_as_often_as_stated(n, m):
    rng, alpha, draws, hits = np.random.default_rng(n), 0.05, 600, 0
    for _ in range(draws):
        before = np.sort(rng.normal(size=m))
        edges = bin_edges(tuple(before.tolist()), 10)
        now, old = _binned(rng.normal(size=n), edges), _binned(before, edges)
        hits += population_stability_index(now, old) > index_by_chance(n, m, 10, alpha)
    assert hits <= binom.isf(1e-4, draws, alpha)
    assert hits >= binom.ppf(1e-4, draws, 0.6 * alpha)  # and it is not blind


def test_the_bound_is_a_quantile_of_chi_square_with_one_degree_less_than_bins():
    expected = (1 / 500 + 1 / 200) * chi2.ppf(0.99, 4)
    assert index_by_chance(500, 200, 5, 0.01) == pytest.approx(expected)


def test_one_bin_shows_nothing():
    assert index_by_chance(100, 100, 1, 0.01) == 0


@pytest.mark.parametrize(("n", "m", "target"), [(500, 199, 0.05), (40, 1000, 0.01), (9, 99, 0.3)])
def test_the_p_value_is_that_of_the_beta_binomial(n, m, target):
    place = int(np.ceil((m + 1) * (1 - target) - 1e-9))
    for hits in range(min(n, 60)):
        expected = betabinom.sf(hits - 1, n, m + 1 - place, place)
        found = exceedance_p_value(hits, n, target=target, n_before=m)
        assert found == pytest.approx(expected, rel=1e-6, abs=1e-12)


def test_of_any_number_of_inputs_it_is_known_at_once():
    exact = exceedance_p_value(51 * 10**6, 10**9, target=0.05, n_before=999)
    limit = exceedance_p_value(51 * 10**6 + 1, 10**9 + 1, target=0.05, n_before=999)
    assert limit == pytest.approx(exact, rel=1e-4)
    assert 0 < exceedance_p_value(2**49, 2**53, target=0.05, n_before=199) < 0.5


def test_with_too_few_old_scores_it_is_the_binomial_test():
    found = exceedance_p_value(3, 100, target=0.01, n_before=50)
    assert found == pytest.approx(binom.sf(2, 100, 0.01))


def _false_alarms(n, m, target, *, ties):
    rng, alpha, draws = np.random.default_rng(7), 0.05, 1000
    exact = naive = 0
    for _ in range(draws):
        before, now = (np.round(rng.normal(size=k), 1 if ties else 12) for k in (m, n))
        place = int(np.ceil((m + 1) * (1 - target) - 1e-9))
        hits = int((now > np.sort(before)[place - 1]).sum())
        exact += exceedance_p_value(hits, n, target=target, n_before=m) < alpha
        naive += binom.sf(hits - 1, n, target) < alpha
    return exact / draws, naive / draws


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("target", [0.05, 0.01])
def test_false_alarms_are_as_rare_as_stated_where_a_binomial_test_has_many(target, ties):
    exact, naive = _false_alarms(5000, 199, target, ties=ties)
    assert exact < 0.05 + 3 * np.sqrt(0.05 * 0.95 / 1000)
    if not ties:
        assert naive > 0.2
