"""The difference of means, and when there is none."""

from __future__ import annotations

import math

import pytest
import torch

from guardrail.fit.direction import difference_of_means


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
