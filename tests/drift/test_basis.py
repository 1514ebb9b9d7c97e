"""Signed permutations are recovered; what is none is seen to be none."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from guardrail.drift.basis import SignedPermutation, mean_features, recovered
from guardrail.fit.direction import difference_of_means

SEEDS = st.integers(0, 2**31 - 1)


def drawn(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def any_change(seed: int, width: int) -> SignedPermutation:
    generator = torch.Generator().manual_seed(seed)
    places = torch.randperm(width, generator=generator)
    signs = torch.randint(0, 2, (width,), generator=generator).double() * 2 - 1
    return SignedPermutation(places, signs)


@settings(max_examples=40, deadline=None)
@given(seed=SEEDS, width=st.integers(1, 48), features=st.integers(3, 12))
def test_any_signed_permutation_of_random_means_is_recovered(
    seed: int, width: int, features: int
) -> None:
    old, change = drawn(seed, features, width), any_change(seed, width)
    scales = torch.logspace(-3, 3, features, dtype=torch.float64)[:, None]  # layers of any size
    found = recovered((old * scales).float(), change.apply(old * scales).float())
    assert torch.equal(found.map.places, change.places)
    assert torch.equal(found.map.signs, change.signs)
    assert found.unexplained < 1e-6
    assert not found.ambiguous.any()


@settings(max_examples=20, deadline=None)
@given(seed=SEEDS)
def test_small_noise_is_borne_and_measured(seed: int) -> None:
    old, change = drawn(seed, 16, 48), any_change(seed, 48)
    noisy = change.apply(old) + 0.01 * drawn(seed + 1, 16, 48)
    found = recovered(old, noisy)
    assert torch.equal(found.map.places, change.places)
    assert found.unexplained == pytest.approx(0.01, rel=0.3)


@settings(max_examples=20, deadline=None)
@given(seed=SEEDS)
def test_large_noise_is_left_unexplained(seed: int) -> None:
    old, change = drawn(seed, 16, 48), any_change(seed, 48)
    assert recovered(old, change.apply(old) + 0.3 * drawn(seed + 1, 16, 48)).unexplained > 0.1


@settings(max_examples=20, deadline=None)
@given(seed=SEEDS, features=st.integers(6, 16))
def test_a_rotation_is_no_signed_permutation(seed: int, features: int) -> None:
    old = drawn(seed, features, 48)
    rotation, _ = torch.linalg.qr(drawn(seed + 1, 48, 48))
    found = recovered(old, old @ rotation)
    assert found.unexplained > 0.2
    assert found.ambiguous.float().mean() > 0.5


def test_unrelated_means_are_left_unexplained() -> None:
    assert recovered(drawn(0, 12, 48), drawn(1, 12, 48)).unexplained > 0.3


def test_equal_coordinates_are_ambiguous_and_others_are_not() -> None:
    old = drawn(0, 8, 12)
    old[:, 5] = -old[:, 2]
    change = any_change(3, 12)
    found = recovered(old, change.apply(old))
    ambiguous = {int(change.places[i]) for i in range(12) if found.ambiguous[i]}
    assert ambiguous == {2, 5}
    assert found.unexplained < 1e-9


def test_dead_coordinates_match_each_other() -> None:
    old = drawn(0, 8, 12)
    old[:, [1, 7]] = 0.0
    change = any_change(5, 12)
    found = recovered(old, change.apply(old))
    live = ~torch.isin(change.places, torch.tensor([1, 7]))
    assert torch.equal(found.map.places[live], change.places[live])
    assert torch.equal(found.ambiguous, ~live)


def test_the_identity_moves_nothing() -> None:
    found = recovered(drawn(0, 8, 12), drawn(0, 8, 12)).map
    assert (found.moved, found.flipped) == (0, 0)


def test_a_map_counts_what_it_does() -> None:
    change = SignedPermutation(torch.tensor([1, 0, 2]), torch.tensor([1.0, -1.0, -1.0]))
    assert (change.moved, change.flipped) == (2, 2)
    assert change.apply(torch.tensor([3.0, 5.0, 7.0])).tolist() == [5.0, -3.0, -7.0]


def test_inner_products_survive_the_map() -> None:
    a, b, change = drawn(0, 4, 20), drawn(1, 4, 20), any_change(2, 20)
    torch.testing.assert_close((change.apply(a) * change.apply(b)).sum(-1), (a * b).sum(-1))


def test_means_and_their_differences_both_tell() -> None:
    unsafe, safe = drawn(0, 9, 3, 5), drawn(1, 9, 3, 5)
    found = mean_features(difference_of_means(unsafe, safe))
    wanted = torch.cat([safe.mean(0), unsafe.mean(0) - safe.mean(0)])
    torch.testing.assert_close(found, wanted, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize(
    ("old", "new", "match"),
    [
        (torch.zeros(3, 4), torch.zeros(3, 5), "shape"),
        (torch.zeros(4), torch.zeros(4), "shape"),
        (torch.full((2, 2), torch.nan), torch.zeros(2, 2), "finite"),
    ],
)
def test_features_that_have_no_map_are_refused(
    old: torch.Tensor, new: torch.Tensor, match: str
) -> None:
    with pytest.raises(ValueError, match=match):
        recovered(old, new)
