"""A snapshot beside the calibration."""

from __future__ import annotations

import json

import numpy as np
import pytest
from scipy.stats import betabinom, binom, chi2, entropy

from guardrail.errors import ConfigurationError
from guardrail.monitor import Monitor, compare
from guardrail.monitor.comparing import (
    exceedance_p_value,
    index_by_chance,
    population_stability_index,
)
from guardrail.monitor.monitor import bin_edges
from guardrail.types import Action, Modality


def _counted(artefact, **scores):
    monitor = Monitor(artefact)
    for name, found in scores.items():
        for score in np.asarray(found).tolist():
            monitor.add(Modality(name), Action.PASS, score)
    return monitor.snapshot()


def test_like_traffic_raises_no_alarm(artefact):
    rng = np.random.default_rng(1)
    found = compare(
        _counted(artefact, text=rng.normal(0, 0.5, 500), image=rng.normal(0.2, 0.5, 300)), artefact
    )
    assert not found.alarm
    assert found.meaning == ""
    assert [row.finding for row in found.modalities] == ["no alarm", "no alarm"]
    assert found.tests == 6
    image, text = found.modalities
    assert (text.n, text.reference_n, text.reference_source) == (500, 999, "safe prompts")
    assert text.median == pytest.approx(0, abs=0.1)
    steer, flag = text.exceedances
    assert (steer.action, steer.target, flag.target, steer.n) == ("steer", 0.05, 0.01, 500)
    assert steer.low < steer.rate < steer.high
    assert image.reference is Modality.IMAGE


@pytest.mark.parametrize("shift", [0.5, -0.5])
def test_a_shift_of_half_a_standard_deviation_is_found_in_500_inputs(artefact_with, shift):
    rng, alarms, draws = np.random.default_rng(2), 0, 60
    for _ in range(draws):
        artefact = artefact_with(text=rng.normal(size=1000))
        snapshot = _counted(artefact, text=rng.normal(shift, 1, 500))
        alarms += compare(snapshot, artefact).alarm
    assert alarms >= 0.75 * draws  # simulated: 0.99 upwards, 0.86 downwards


def test_false_alarms_are_rarer_than_stated(artefact_with):
    rng, alarms, draws = np.random.default_rng(3), 0, 150
    for _ in range(draws):
        artefact = artefact_with(text=rng.normal(size=300), image=rng.normal(size=200))
        snapshot = _counted(artefact, text=rng.normal(size=400), image=rng.normal(size=400))
        alarms += compare(snapshot, artefact, alpha=0.1).alarm
    assert alarms <= 25  # of 150 at 10 %: more has a chance of 0.4 %


def test_a_shift_says_what_it_is_and_what_it_may_mean(artefact):
    rng = np.random.default_rng(4)
    found = compare(_counted(artefact, text=rng.normal(0.5, 0.5, 500)), artefact)
    (text,) = found.modalities
    assert (found.alarm, text.finding) == (True, "alarm")
    index, steer, flag = text.reasons
    assert "population stability index" in index
    assert "steer threshold, whose target is 5.0%" in steer
    assert "flag threshold" in flag
    assert "guardrail calibrate" in found.meaning
    assert "attacks" in found.meaning


def test_a_few_attacks_show_in_the_flagged_share_alone(artefact):
    rng = np.random.default_rng(5)
    scores = np.concatenate([rng.normal(0, 0.5, 470), rng.normal(3, 0.1, 30)])
    (text,) = compare(_counted(artefact, text=scores), artefact).modalities
    assert text.psi < 0.2
    assert text.finding == "alarm"
    assert any("flag threshold" in reason for reason in text.reasons)


def test_a_large_index_that_few_inputs_explain_is_no_alarm(artefact_with):
    rng = np.random.default_rng(8)
    seen = []
    for _ in range(40):
        artefact = artefact_with(text=rng.normal(size=99))
        snapshot = _counted(artefact, text=rng.normal(size=100))
        (row,) = compare(snapshot, artefact, least=50).modalities
        seen.append((row.psi > 0.2, row.finding))
    assert any(large for large, _ in seen)
    assert sum(finding == "alarm" for _, finding in seen) <= 3


def test_a_large_limit_leaves_the_index_out_of_it(artefact):
    low = _counted(artefact, text=np.random.default_rng(6).normal(-0.6, 0.5, 500))
    assert compare(low, artefact).alarm
    assert not compare(low, artefact, psi_limit=50).alarm


def test_too_few_inputs_are_not_judged(artefact):
    found = compare(_counted(artefact, text=[9.0] * 99), artefact)
    (text,) = found.modalities
    assert (text.finding, text.n, text.psi, text.exceedances) == ("too few", 99, None, ())
    assert not found.alarm
    assert compare(_counted(artefact, text=[9.0] * 100), artefact).alarm
    assert compare(_counted(artefact, text=[9.0] * 99), artefact, least=99).alarm


def test_no_traffic_and_no_calibration_are_no_alarm(artefact):
    assert compare(Monitor(artefact).snapshot(), artefact).modalities == ()
    bare = artefact.revised(calibration={})
    (row,) = compare(_counted(bare, text=[0.0] * 200), bare).modalities
    assert (row.finding, row.reference) == ("no calibration", None)


def test_pictures_without_a_calibration_are_held_to_that_of_texts(artefact_with):
    rng = np.random.default_rng(7)
    artefact = artefact_with(text=rng.normal(size=300))
    (row,) = compare(_counted(artefact, image=rng.normal(size=200)), artefact).modalities
    assert (row.modality, row.reference, row.finding) == ("image", "text", "no alarm")


def test_scores_that_all_tie_can_be_compared(artefact_with):
    artefact = artefact_with(text=[0.0] * 150)
    found = compare(_counted(artefact, text=[0.0] * 150), artefact)
    assert not found.alarm
    assert compare(_counted(artefact, text=[1.0] * 150), artefact).alarm


def test_outages_are_told_and_are_no_finding(artefact):
    monitor = Monitor(artefact)
    for _ in range(200):
        monitor.add(Modality.TEXT, Action.FLAG, None)
        monitor.record(None)
    found = compare(monitor.snapshot(), artefact)
    (text,) = found.modalities
    assert (found.alarm, found.outages, text.outages, text.finding) == (False, 200, 200, "too few")


def test_it_is_plain_data(artefact):
    snapshot = _counted(artefact, text=np.random.default_rng(8).normal(0.5, 0.5, 200))
    document = json.loads(json.dumps(compare(snapshot, artefact).to_dict(), allow_nan=False))
    assert document["modalities"][0]["exceedances"][1]["action"] == "flag"


def test_what_cannot_be_compared_is_refused(artefact, artefact_with):
    snapshot = _counted(artefact, text=[0.0] * 200)
    with pytest.raises(ConfigurationError, match="the guard ran with"):
        compare(snapshot, artefact_with(text=range(99)))
    for bad in ({"psi_limit": 0}, {"alpha": 1}, {"least": 0}):
        with pytest.raises(ConfigurationError, match="must be positive"):
            compare(snapshot, artefact, **bad)
    text = snapshot.modalities[Modality.TEXT]
    moved = text.model_copy(update={"edges": tuple(edge + 1 for edge in text.edges)})
    edited = snapshot.model_copy(update={"modalities": {Modality.TEXT: moved}})
    with pytest.raises(ConfigurationError, match="edited"):
        compare(edited, artefact)


def test_videos_are_compared_with_videos_and_with_nothing_else(artefact_with):
    """The highest of several windows lies higher than single pictures, without any shift."""
    rng = np.random.default_rng(8)
    windows = rng.normal(0, 0.5, (500, 10)).max(axis=1)
    pictures = {name: rng.normal(0, 0.5, 500) for name in ("text", "image")}
    borrowed = artefact_with(**pictures)
    (row,) = compare(_counted(borrowed, video=windows), borrowed).modalities
    assert (row.modality, row.finding, row.n) == ("video", "no calibration", 500)
    own = artefact_with(**pictures, video=rng.normal(0, 0.5, (500, 10)).max(axis=1))
    (row,) = compare(_counted(own, video=windows), own).modalities
    assert (row.finding, row.reference) == ("no alarm", "video")
    (row,) = compare(_counted(own, video=windows + 1), own).modalities
    assert row.finding == "alarm"


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
def test_samples_in_other_bins_have_no_index(now, before):
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
