"""The score: a re-centred projection in units of the text gap."""

from __future__ import annotations

import math

import pytest
import torch

from guardrail.decide.projection import projections, refusal_scores

ROWS, LAYERS, WIDTH = 5, 3, 8


@pytest.fixture
def fitted() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    safe, unsafe = torch.randn(2, LAYERS, WIDTH, generator=generator, dtype=torch.float64)
    weight = torch.nn.functional.normalize(unsafe - safe, dim=-1)
    zero = (safe * weight).sum(-1)
    return {
        "safe": safe,
        "unsafe": unsafe,
        "weight": weight,
        "zero": zero,
        "gap": (unsafe * weight).sum(-1) - zero,
    }


def scores(residuals: torch.Tensor, fitted: dict[str, torch.Tensor], offset: object = 0.0) -> list:
    added = torch.as_tensor(offset, dtype=torch.float64).expand(len(residuals), LAYERS)
    kept = {name: fitted[name] for name in ("weight", "zero", "gap")}
    return refusal_scores(residuals, offset=added, **kept).tolist()


def test_the_safe_centroid_scores_zero_and_the_unsafe_one_scores_one(fitted: dict) -> None:
    rows = torch.stack([fitted["safe"], fitted["unsafe"], (fitted["safe"] + fitted["unsafe"]) / 2])
    assert scores(rows, fitted) == pytest.approx([0.0, 1.0, 0.5], abs=1e-12)


def test_the_score_is_the_mean_over_layers_of_the_slow_formula(fitted: dict) -> None:
    generator = torch.Generator().manual_seed(1)
    residuals = torch.randn(ROWS, LAYERS, WIDTH, generator=generator)
    offset = torch.randn(ROWS, LAYERS, generator=generator)
    slow = []
    for row in range(ROWS):
        parts = []
        for layer in range(LAYERS):
            h, w = residuals[row, layer].tolist(), fitted["weight"][layer].tolist()
            read = sum(h[i] * w[i] for i in range(WIDTH)) - float(offset[row, layer])
            parts.append((read - float(fitted["zero"][layer])) / float(fitted["gap"][layer]))
        slow.append(sum(parts) / LAYERS)
    assert scores(residuals, fitted, offset) == pytest.approx(slow, abs=1e-9)


def test_an_offset_is_what_its_vector_adds_to_the_residual(fitted: dict) -> None:
    generator = torch.Generator().manual_seed(2)
    text = torch.randn(ROWS, LAYERS, WIDTH, generator=generator, dtype=torch.float64)
    added = torch.randn(LAYERS, WIDTH, generator=generator, dtype=torch.float64)
    projected = (added * fitted["weight"]).sum(-1)
    assert scores(text + added, fitted, projected) == pytest.approx(scores(text, fitted), abs=1e-9)


def test_sums_are_wider_than_the_residuals() -> None:
    residual = torch.tensor([[[1e8, 1.0, -1e8]]])
    read = projections(residual, torch.ones(1, 3))
    assert read.dtype == torch.float64
    assert read.item() == 1.0


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_residuals_are_read_without_more_loss(
    fitted: dict, dtype: torch.dtype
) -> None:
    half = torch.stack([fitted["unsafe"]]).to(dtype)
    assert scores(half, fitted) == scores(half.double(), fitted)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_row_that_is_not_finite_spoils_its_own_score_only(fitted: dict, bad: float) -> None:
    rows = torch.stack([fitted["safe"], fitted["unsafe"]])
    rows[0, 1, 2] = bad
    first, second = scores(rows, fitted)
    assert not math.isfinite(first)
    assert second == pytest.approx(1.0)
