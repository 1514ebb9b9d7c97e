"""Which estimator reads best, over which layers."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch

from guardrail.errors import NoUsableDirectionError
from guardrail.fit.select import (
    MARGIN,
    Candidate,
    LinearReadout,
    Separation,
    best_of_each,
    choose,
    compare,
    readout_layers,
)
from tests.fit.residuals import form_of, with_last

if TYPE_CHECKING:
    from guardrail.fit.readings import FormResiduals

DOM, LDA = "difference of means", "shrinkage LDA"
WIDTH = 8


def candidate(auroc: float, *layers: int, estimator: str = DOM) -> Candidate:
    made = LinearReadout(estimator, layers or (1,), torch.ones(1, 1), torch.ones(1), torch.ones(1))
    return Candidate(made, {"plain": Separation({"near": auroc})})


def form(*, seed: int, shift: tuple[float, ...], slant: float = 0.0) -> FormResiduals:
    """Residuals of layers with the given gaps; `slant` adds noise that hides the contrast."""
    generator = torch.Generator().manual_seed(seed)
    splits = ["fit"] * 120 + ["select"] * 80
    kinds = ["unsafe", "near", "ordinary", "unsafe"] * 50
    rows = torch.randn(200, len(shift), WIDTH, generator=generator)
    common = slant * torch.randn(200, len(shift), generator=generator)
    rows[..., 0] += common
    rows[..., 1] += common
    rows[[k == "unsafe" for k in kinds], :, 0] += torch.tensor(shift)
    return form_of(rows, splits, kinds)


def test_the_layer_with_the_gap_reads_best() -> None:
    found = compare({"plain": form(seed=1, shift=(0.0, 3.0, 0.3))}, [0, 1, 2])
    assert found == sorted(found, key=lambda c: -c.auroc)
    chosen = choose(found)
    assert chosen.readout.layers == (1,)
    assert chosen.readout.estimator == DOM
    assert chosen.auroc > 0.95


def test_all_estimators_and_averages_of_their_best_layers_are_tried() -> None:
    found = compare({"plain": form(seed=1, shift=(1.0, 3.0, 0.5))}, [0, 1, 2])
    tried = {(c.readout.estimator, c.readout.layers) for c in found}
    assert len(found) == len(tried) == 2 * (3 + 2)
    assert {(DOM, (0, 1)), (DOM, (0, 1, 2)), (LDA, (0, 1, 2))} <= tried


def test_averages_are_over_the_best_layers_wherever_those_lie() -> None:
    found = compare({"plain": form(seed=1, shift=(0.0, 1.0, 3.0))}, [0, 1, 2])
    pairs = {(c.readout.estimator, c.readout.layers) for c in found if len(c.readout.layers) == 2}
    assert pairs == {(DOM, (1, 2)), (LDA, (1, 2))}


def test_noise_common_to_both_classes_asks_for_the_better_estimator() -> None:
    found = compare({"plain": form(seed=2, shift=(3.0,), slant=6.0)}, [0])
    assert choose(found).readout.estimator == LDA


def test_a_readout_must_hold_in_every_form() -> None:
    forms = {
        "plain": form(seed=3, shift=(6.0, 3.0)),
        "carried": form(seed=4, shift=(0.0, 3.0)),
    }
    chosen = choose(compare(forms, [0, 1]))
    assert chosen.readout.layers == (1,)
    assert set(chosen.separations) == {"plain", "carried"}
    assert chosen.auroc == pytest.approx(sum(s.mean for s in chosen.separations.values()) / 2)


def test_nothing_of_the_selection_split_is_fitted_on() -> None:
    plain = form(seed=5, shift=(2.0,))
    other = plain.residuals.clone()
    other[120:] = 0.0
    changed = with_last(plain, other)
    weights = [
        {c.readout.estimator: c.readout.weight for c in compare({"plain": f}, [0])}
        for f in (plain, changed)
    ]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in (DOM, LDA))


@pytest.mark.parametrize(
    ("better", "wins"),
    [
        (candidate(0.9 + MARGIN / 2, 1, 2), True),  # of one estimator the better one
        (candidate(0.9, 1, 2), False),  # no better, and more layers
        (candidate(0.9 + MARGIN / 2, 2, estimator=LDA), False),
        (candidate(0.9 + 2 * MARGIN, 2, estimator=LDA), True),
        (candidate(0.9 + MARGIN / 2, 2), True),
    ],
)
def test_a_more_elaborate_estimator_must_be_clearly_better(better: Candidate, wins: bool) -> None:
    plain = candidate(0.9, 1)
    assert choose([better, plain]) is (better if wins else plain)


@pytest.mark.parametrize("candidates", [[], [candidate(0.799)], [candidate(0.5), candidate(0.3)]])
def test_no_usable_direction_is_an_outcome_with_its_figures(candidates: list) -> None:
    best = max((c.auroc for c in candidates), default=0.0)
    with pytest.raises(NoUsableDirectionError, match=f"{best:.3f}, 0.80 is needed"):
        choose(candidates)


def test_just_enough_is_enough() -> None:
    assert choose([candidate(0.8)]).auroc == 0.8


def test_the_record_keeps_the_best_of_each_estimator() -> None:
    rows = [
        candidate(0.81, 1),
        candidate(0.9, 2),
        candidate(0.85, 1, 2),
        candidate(0.95, 3, estimator=LDA),
        candidate(0.94, 1, estimator=LDA),
    ]
    kept = [(c.readout.estimator, c.readout.layers) for c in best_of_each(rows)]
    assert kept == [(DOM, (2,)), (DOM, (1, 2)), (LDA, (3,))]
    assert rows[1].to_dict() == {
        "estimator": DOM,
        "layers": [2],
        "auroc": 0.9,
        "auroc_by_form": {"plain": {"near": 0.9}},
    }


@pytest.mark.parametrize(
    ("count", "usable", "expected"),
    [
        (10, range(10), [3, 4, 5, 6]),
        (4, range(1, 4), [1, 2]),
        (10, [4, 9], [4]),
        (10, [0, 9], [0, 9]),  # nothing in the middle
        (10, [], []),
    ],
)
def test_readouts_are_sought_in_the_middle(count: int, usable: list, expected: list) -> None:
    assert readout_layers(count, list(usable)) == expected
