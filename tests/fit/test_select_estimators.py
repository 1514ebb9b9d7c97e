"""Linear estimators, their scale, and what each is good for."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from sklearn.covariance import LedoitWolf

from guardrail.fit.select import (
    ESTIMATORS,
    LinearReadout,
    averaged,
    readout,
    separation,
    shrinkage_lda,
)
from guardrail.stats import auroc

LAYERS, WIDTH = 3, 12


def draw(n: int, *, seed: int, shift: float = 0.0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return shift + torch.randn(n, LAYERS, WIDTH, generator=generator)


def fitted(name: str, layers: list[int], unsafe: torch.Tensor, safe: torch.Tensor) -> LinearReadout:
    """One form of prompts, the layers averaged."""
    made = [readout(name, layer, [unsafe], [safe]) for layer in layers]
    assert all(made)
    return averaged([one for one in made if one])


@pytest.mark.parametrize("name", list(ESTIMATORS))
@pytest.mark.parametrize("layers", [[1], [0, 2]])
def test_centroids_score_zero_and_one(name: str, layers: list[int]) -> None:
    unsafe, safe = draw(30, seed=0, shift=0.5), draw(40, seed=1)
    made = fitted(name, layers, unsafe, safe)
    centroids = torch.stack([safe.double().mean(0), unsafe.double().mean(0)])
    assert made.scores(centroids).tolist() == pytest.approx([0.0, 1.0], abs=1e-9)
    assert made.scores(safe).mean() == pytest.approx(0.0, abs=1e-6)
    assert made.weight.norm(dim=-1).tolist() == pytest.approx([1.0] * len(layers), abs=1e-6)
    assert made.layers == tuple(layers)


def test_shrinkage_lda_solves_the_mean_of_the_shrunk_class_covariances() -> None:
    unsafe, safe = draw(25, seed=3, shift=0.4)[:, 0].double(), draw(60, seed=4)[:, 0].double()
    parts = [
        LedoitWolf(assume_centered=True).fit(x - x.mean(0)).covariance_
        for x in (unsafe.numpy(), safe.numpy())
    ]
    expected = np.linalg.solve(
        (parts[0] + parts[1]) / 2, unsafe.numpy().mean(0) - safe.numpy().mean(0)
    )
    np.testing.assert_allclose(shrinkage_lda([unsafe], [safe]).numpy(), expected, rtol=1e-8)


def test_the_number_of_prompts_of_a_class_does_not_weigh_its_covariance() -> None:
    unsafe, safe = (draw(400, seed=s, shift=s / 10)[:, 0].double() for s in (4, 0))
    safe *= torch.linspace(0.2, 5, WIDTH)  # another covariance than the unsafe one's
    once, thrice = (shrinkage_lda([unsafe], [part]) for part in (safe, safe.repeat(3, 1)))
    cosine = torch.nn.functional.cosine_similarity(once, thrice, dim=0)
    assert cosine > 0.998  # only the shrinkage itself depends on n


def test_lda_reads_past_correlated_noise() -> None:
    """One noisy direction lies aslant to the contrast; the difference of means reads it, too."""

    def sample(n: int, seed: int, unsafe: bool) -> torch.Tensor:
        generator = torch.Generator().manual_seed(seed)
        rows = torch.randn(n, 1, WIDTH, generator=generator)
        common = 6 * torch.randn(n, generator=generator)
        rows[:, 0, 0] += common + (3.0 if unsafe else 0.0)
        rows[:, 0, 1] += common
        return rows

    fit, held_out = ((sample(300, seed, True), sample(300, seed + 1, False)) for seed in (10, 20))
    means, lda = (
        auroc(*(made.scores(part).tolist() for part in held_out))
        for made in (fitted(name, [0], *fit) for name in ESTIMATORS)
    )
    assert means < 0.7
    assert lda > 0.85


@pytest.mark.parametrize("name", list(ESTIMATORS))
def test_a_layer_without_a_difference_has_no_readout(name: str) -> None:
    same = draw(20, seed=0)
    assert readout(name, 0, [same], [same]) is None
    other = same.clone()
    other[:, 2] += 1
    assert readout(name, 2, [other], [same]) is not None


def test_forms_weigh_the_same_however_many_prompts_they_have() -> None:
    few = [draw(12, seed=5, shift=1), draw(12, seed=6)]
    many = [draw(300, seed=7, shift=2), draw(300, seed=8)]
    for name in ESTIMATORS:
        made = readout(name, 0, [few[0], many[0]], [few[1], many[1]])
        assert made is not None
        middle = [
            (a.double().mean(0) + b.double().mean(0)) / 2 for a, b in zip(few, many, strict=True)
        ]
        unsafe, safe = middle
        assert made.scores(torch.stack([safe, unsafe])).tolist() == pytest.approx([0, 1], abs=1e-9)


def test_a_layer_that_overflows_has_no_readout() -> None:
    unsafe, safe = draw(20, seed=0, shift=1), draw(20, seed=1)
    unsafe[0, 1, 0] = math.nan
    assert readout("difference of means", 1, [unsafe], [safe]) is None


def test_separation_weighs_every_kind_of_safe_prompt_the_same() -> None:
    kinds = ["unsafe"] * 4 + ["ordinary"] * 6 + ["near"] * 2
    scores = torch.tensor([1.0, 2.0, 3.0, 4.0, *[0.0] * 6, 1.5, 9.0])
    found = separation(scores, kinds)
    expected = {"near": auroc([1, 2, 3, 4], [1.5, 9]), "ordinary": 1.0}
    assert found.by_kind == expected
    assert found.mean == pytest.approx((0.375 + 1) / 2)


@pytest.mark.parametrize("name", ["difference of means", "shrinkage LDA"])
@pytest.mark.parametrize("value", [0.0, 0.1])
def test_a_layer_that_is_the_same_for_every_prompt_has_no_readout(name: str, value: float) -> None:
    unsafe, safe = torch.full((20, 2, 8), value), torch.full((30, 2, 8), value)
    assert readout(name, 0, [unsafe], [safe]) is None
