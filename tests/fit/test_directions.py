"""The difference of means, and when there is none.

The three held-out scores of a layer.
"""

from __future__ import annotations

import math

import pytest
import torch

from guardrail.fit.directions import (
    LayerScore,
    difference_of_means,
    direction_consistency,
    layer_scores,
    safety_margin,
)
from guardrail.stats import auroc


@pytest.fixture
def residuals() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    unsafe = torch.randn(7, 3, 5, generator=generator) + 1
    return unsafe, torch.randn(9, 3, 5, generator=generator)


def test_directions_are_unit_differences_of_the_class_means(residuals: tuple) -> None:
    unsafe, safe = residuals
    found = difference_of_means(unsafe, safe)
    for layer in range(3):
        low = sum(safe[:, layer].double()) / 9
        high = sum(unsafe[:, layer].double()) / 7
        length = math.sqrt(sum(float(x) ** 2 for x in high - low))
        torch.testing.assert_close(found.direction[layer].double(), (high - low) / length)
        torch.testing.assert_close(found.mu_safe[layer].double(), low)
        torch.testing.assert_close(found.mu_unsafe[layer].double(), high)
        assert float(found.norms[layer]) == pytest.approx(length, rel=1e-5)
    assert found.usable.tolist() == [True] * 3
    assert found.direction.dtype == torch.float32


def test_sums_are_taken_in_double_precision() -> None:
    unsafe = torch.full((10_000, 1, 1), 0.1, dtype=torch.float16)
    found = difference_of_means(unsafe, torch.zeros(1, 1, 1))
    assert float(found.mu_unsafe) == pytest.approx(float(torch.tensor(0.1).half()), rel=1e-6)


def test_a_layer_that_sees_only_the_template_is_unusable(residuals: tuple) -> None:
    unsafe, safe = residuals
    unsafe[:, 1] = safe[:, 1] = torch.arange(5.0)  # the same last tokens after every prompt
    found = difference_of_means(unsafe, safe)
    assert found.usable.tolist() == [True, False, True]
    assert not found.direction[1].any()


@pytest.mark.parametrize(("gap", "usable"), [(5e-5, False), (5e-4, True)])
def test_a_gap_must_be_clear_beside_the_safe_mean(gap: float, usable: bool) -> None:
    safe = torch.tensor([[[1.0, 0.0]]])
    assert difference_of_means(safe + torch.tensor([0.0, gap]), safe).usable.item() is usable


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("side", [0, 1])
def test_a_layer_that_overflows_is_unusable_and_the_others_are_not(
    residuals: tuple, bad: float, side: int
) -> None:
    clean = difference_of_means(*residuals)
    residuals[side][2, 0, 3] = bad
    found = difference_of_means(*residuals)
    assert found.usable.tolist() == [False, True, True]
    assert torch.equal(found.direction[1:], clean.direction[1:])
    # an artefact holds finite numbers only
    everything = (found.direction, found.mu_safe, found.mu_unsafe)
    assert all(bool(part.isfinite().all()) for part in everything)
    assert found.norms[0] == 0


def test_equal_zero_means_are_unusable() -> None:
    nothing = torch.zeros(3, 1, 4)
    assert not difference_of_means(nothing, nothing).usable.any()


SHIFTS = (0.0, 0.5, 3.0)


def draw(n: int, seed: int, *, unsafe: bool = False) -> torch.Tensor:
    """(n, 3, 8): the first layer tells the classes apart not at all, the last one well."""
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(n, len(SHIFTS), 8, generator=generator)
    rows[:, 0] = 1.0  # the template's own tokens
    if unsafe:
        rows[:, :, 0] += torch.tensor(SHIFTS)
    return rows


@pytest.fixture(scope="module")
def scored() -> tuple[list[LayerScore], torch.Tensor, torch.Tensor]:
    directions = difference_of_means(draw(60, 0, unsafe=True), draw(60, 1))
    unsafe, safe = draw(40, 2, unsafe=True), draw(50, 3)
    return layer_scores(directions, unsafe, safe, unsafe - safe[:40]), unsafe, safe


@pytest.mark.parametrize("n", [2, 3, 30])
def test_consistency_is_the_mean_cosine_of_all_pairs(n: int) -> None:
    generator = torch.Generator().manual_seed(n)
    rows = torch.randn(n, 6, generator=generator) + 0.5
    cosines = [
        float(torch.nn.functional.cosine_similarity(rows[i].double(), rows[j].double(), dim=0))
        for i in range(n)
        for j in range(n)
        if i != j
    ]
    assert direction_consistency(rows) == pytest.approx(sum(cosines) / len(cosines), abs=1e-9)


def test_consistency_is_one_for_equal_directions_of_any_length() -> None:
    lengths = torch.tensor([[1.0], [5.0], [0.1]])
    assert direction_consistency(lengths * torch.tensor([[1.0, 2.0]])) == pytest.approx(1.0)
    assert direction_consistency(torch.tensor([[1.0, 0.0], [-1.0, 0.0]])) == pytest.approx(-1.0)


def test_the_margin_lies_between_the_tails() -> None:
    unsafe, safe = torch.linspace(1, 3, 101), torch.linspace(0, 2, 101)
    assert safety_margin(unsafe, safe) == pytest.approx(1.1 - 1.9, abs=1e-6)


def test_a_layer_is_scored_by_its_projection_on_held_out_prompts(scored: tuple) -> None:
    rows, unsafe, safe = scored
    directions = difference_of_means(draw(60, 0, unsafe=True), draw(60, 1))
    for layer in (1, 2):
        unit = directions.direction[layer].double()
        zero, gap = directions.mu_safe[layer].double() @ unit, directions.norms[layer]
        high, low = (((x[:, layer].double() @ unit) - zero) / gap for x in (unsafe, safe))
        row = rows[layer]
        assert row.separability == pytest.approx(auroc(high.tolist(), low.tolist()))
        assert row.margin == pytest.approx(safety_margin(high, low), abs=1e-6)
        assert row.norm == pytest.approx(float(gap))


def test_the_combined_score_is_the_mean_of_min_max_scaled_ones(scored: tuple) -> None:
    rows = scored[0]
    assert not rows[0].usable
    assert math.isnan(rows[0].score)
    assert (rows[1].score, rows[2].score) == (0.0, 1.0)  # the last layer wins every score


def test_without_pairs_there_is_no_consistency_and_two_scores_count(scored: tuple) -> None:
    _, unsafe, safe = scored
    directions = difference_of_means(draw(60, 0, unsafe=True), draw(60, 1))
    for pairs in (None, (unsafe - safe[:40])[:1]):  # one pair has no other to agree with
        rows = layer_scores(directions, unsafe, safe, pairs)
        assert all(math.isnan(row.consistency) for row in rows)
        assert [row.score for row in rows[1:]] == [0.0, 1.0]


def test_equal_scores_are_all_full() -> None:
    one = draw(30, 4, unsafe=True)[:, 2:].repeat(1, 2, 1)
    other = draw(30, 5)[:, 2:].repeat(1, 2, 1)
    rows = layer_scores(difference_of_means(one, other), one, other, one - other)
    assert [row.score for row in rows] == [1.0, 1.0]


def test_a_model_without_a_usable_layer_is_scored_without_failing() -> None:
    same = draw(20, 6)
    rows = layer_scores(difference_of_means(same, same), same, same, None)
    assert [row.usable for row in rows] == [False] * 3


def test_a_layer_row_is_plain_and_has_no_nan(scored: tuple) -> None:
    plain = scored[0][0].to_dict()
    assert plain == {
        "layer": 0,
        "usable": False,
        "norm": 0.0,
        "consistency": None,
        "separability": None,
        "margin": None,
        "score": None,
    }
