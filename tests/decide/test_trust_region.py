"""How far a row may be moved."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from guardrail.decide.trust_region import bounded_strength

NUMBER = st.floats(-20, 20)
POSITIVE = st.floats(0, 20)


def move(score: float, local: float, *, gate: float = 0.5, **limits: float) -> float:
    bounds = {"gain": 2.0, "a_max": 3.0, "region_max": 100.0} | limits
    one = torch.tensor([score]), torch.tensor([local])
    return float(bounded_strength(*one, gate=torch.tensor([gate]), **bounds))


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


def test_rows_have_gates_of_their_own() -> None:
    gate = torch.tensor([0.0, 2.0])
    both = torch.tensor([1.0, 1.0])
    found = bounded_strength(both, both, gate=gate, gain=1.0, a_max=9.0, region_max=9.0)
    assert found.tolist() == [1.0, 0.0]
    assert found.dtype == torch.float64


@given(score=NUMBER, local=NUMBER, gate=NUMBER, gain=POSITIVE, a_max=POSITIVE, region_max=NUMBER)
def test_no_move_is_negative_too_long_or_out_of_the_region(
    score: float, local: float, gate: float, gain: float, a_max: float, region_max: float
) -> None:
    found = move(score, local, gate=gate, gain=gain, a_max=a_max, region_max=region_max)
    assert 0.0 <= found <= a_max
    edge = max(region_max, torch.tensor(local).item())
    assert torch.tensor(local).item() + found <= edge + 1e-9
