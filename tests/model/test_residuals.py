"""What layers hand on, and what an edit makes of it."""

from __future__ import annotations

import pytest
import torch

from guardrail.errors import UnsupportedModelError
from guardrail.model.residuals import hidden_of, moved


def test_the_residual_stream_is_the_first_of_what_a_layer_returns():
    hidden = torch.zeros(1, 1, 1)
    assert hidden_of(hidden) is hidden_of((hidden, "cache")) is hidden


def test_several_streams_at_once_are_refused():
    with pytest.raises(UnsupportedModelError, match=r"shape \(4, 1, 7, 2\).*cannot be guarded"):
        hidden_of(torch.zeros(4, 1, 7, 2))  # Gemma 3n: streams, rows, positions, width


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_an_edit_moves_its_positions_and_no_bit_of_the_others(dtype):
    hidden = torch.randn(3, 5, 4, generator=torch.Generator().manual_seed(0)).to(dtype)
    before = hidden.clone()
    delta = torch.tensor([[1.0, -2.0, 0.5, 3.0], [0.0] * 4, [1e-3] * 4])
    found = moved(hidden, slice(2, 4), delta)
    assert torch.equal(hidden, before)
    assert found.dtype is dtype
    assert torch.equal(found[:, :2], before[:, :2])
    assert torch.equal(found[:, 4:], before[:, 4:])
    assert torch.equal(found[1], before[1])
    for row in (0, 2):
        expected = (before[row, 2:4].float() + delta[row]).to(dtype)
        assert torch.equal(found[row, 2:4], expected)
