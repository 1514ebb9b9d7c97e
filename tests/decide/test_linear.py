"""The score: a re-centred projection in units of the text gap.

How far a row may be moved.
"""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from guardrail.decide.linear import (
    UNMOVED,
    Readout,
    bounded_strength,
    projections,
    recentred,
    refusal_scores,
)

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


def scores(residuals: torch.Tensor, fitted: dict[str, torch.Tensor]) -> list:
    kept = {name: fitted[name] for name in ("weight", "zero", "gap")}
    return refusal_scores(residuals, **kept).tolist()


def test_the_safe_centroid_scores_zero_and_the_unsafe_one_scores_one(fitted: dict) -> None:
    rows = torch.stack([fitted["safe"], fitted["unsafe"], (fitted["safe"] + fitted["unsafe"]) / 2])
    assert scores(rows, fitted) == pytest.approx([0.0, 1.0, 0.5], abs=1e-12)


def test_the_score_is_the_mean_over_layers_of_the_slow_formula(fitted: dict) -> None:
    generator = torch.Generator().manual_seed(1)
    residuals = torch.randn(ROWS, LAYERS, WIDTH, generator=generator)
    slow = []
    for row in range(ROWS):
        parts = []
        for layer in range(LAYERS):
            h, w = residuals[row, layer].tolist(), fitted["weight"][layer].tolist()
            read = sum(h[i] * w[i] for i in range(WIDTH))
            parts.append((read - float(fitted["zero"][layer])) / float(fitted["gap"][layer]))
        slow.append(sum(parts) / LAYERS)
    assert scores(residuals, fitted) == pytest.approx(slow, abs=1e-9)


NUMBER = st.floats(-20, 20)
POSITIVE = st.floats(0, 20)


@given(text=NUMBER, intercept=NUMBER, slope=st.floats(0.1, 2))
def test_what_a_picture_does_to_a_score_is_taken_back(
    text: float, intercept: float, slope: float
) -> None:
    beside = torch.tensor([intercept + slope * text, text], dtype=torch.float64)
    found = recentred(beside, [(intercept, slope), UNMOVED])
    assert found.tolist() == pytest.approx([text, text], abs=1e-9)


def test_each_row_is_recentred_by_its_own_kind(fitted: dict) -> None:
    recentring = {"text": UNMOVED, "image": (0.5, 0.8), "video": (-1.0, 2.0)}
    readout = Readout((0, 1, 2), fitted["weight"], fitted["zero"], fitted["gap"], recentring)
    rows = torch.stack([fitted["unsafe"]] * 3)
    found = readout.scores(rows, ["video", "text", "image"]).tolist()
    assert found == pytest.approx([(1 + 1) / 2, 1.0, (1 - 0.5) / 0.8])


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


def move(
    score: float, local: float, *, gate: float = 0.5, region_max: float = 100.0, **limits: float
) -> float:
    bounds = {"gain": 2.0, "a_max": 3.0} | limits
    score, local, gate, region = torch.tensor(
        [[score], [local], [gate], [region_max]], dtype=torch.float64
    )
    return float(bounded_strength(score, local, gate=gate, region_max=region, **bounds))


@pytest.mark.parametrize("score", [-5.0, 0.0, 0.5])
def test_the_gate_is_closed_up_to_its_threshold(score: float) -> None:
    assert move(score, 0.0) == 0.0


def test_the_move_grows_with_the_score_above_the_gate_up_to_its_cap() -> None:
    moves = [move(score, 0.0) for score in (0.75, 1.0, 2.0, 9.0)]
    assert moves == pytest.approx([0.5, 1.0, 3.0, 3.0])


def test_a_move_ends_at_the_edge_of_the_region() -> None:
    assert move(9.0, 1.2, region_max=2.0) == pytest.approx(0.8)


def test_a_row_beyond_the_region_is_left_where_it_is() -> None:
    assert move(9.0, 2.5, region_max=2.0) == 0.0


def test_rows_have_gates_and_regions_of_their_own() -> None:
    gate = torch.tensor([0.0, 2.0, 0.0])
    all_of_1, region = torch.ones(3), torch.tensor([9.0, 9.0, 1.5])
    found = bounded_strength(all_of_1, all_of_1, gate=gate, gain=1.0, a_max=9.0, region_max=region)
    assert found.tolist() == [1.0, 0.0, 0.5]
    assert found.dtype == torch.float64


@given(score=NUMBER, local=NUMBER, gate=NUMBER, gain=POSITIVE, a_max=POSITIVE, region_max=NUMBER)
def test_no_move_is_negative_too_long_or_out_of_the_region(
    score: float, local: float, gate: float, gain: float, a_max: float, region_max: float
) -> None:
    found = move(score, local, gate=gate, gain=gain, a_max=a_max, region_max=region_max)
    assert 0.0 <= found <= a_max
    assert local + found <= max(region_max, local) + 1e-9
