"""The slow reference on models that not even plain hooks see whole."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from guardrail.conformance import reference
from guardrail.testing import tiny_model
from tests.conformance.slow import steered_tokens


@pytest.fixture(scope="module")
def trimmed() -> Any:
    """A Gemma 4 whose last two layers run for the last position alone."""
    small, _ = tiny_model("gemma4")
    small.config.get_text_config().num_kv_shared_layers = 2
    torch.manual_seed(0)
    return type(small)(small.config).eval()


def test_an_edit_is_made_where_layers_run_for_the_last_position_alone(trimmed):
    inputs = {"input_ids": torch.arange(5, 14)[None], "attention_mask": torch.ones(1, 9).long()}
    rows = 5 * torch.randn(1, 32, generator=torch.Generator().manual_seed(0))
    nothing = torch.zeros(1, 32)
    moved, unmoved = (reference.steered_logits(trimmed, inputs, 3, r) for r in (rows, nothing))
    assert (moved - unmoved).abs().max() > 0.1
    first = moved.argmax(-1).tolist()
    assert steered_tokens(trimmed, inputs, 3, rows, 3)[0][:1] == first
    assert steered_tokens(trimmed, inputs, 3, nothing, 3)[0][:1] == unmoved.argmax(-1).tolist()
