from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from transformers import LlamaConfig, LlamaForCausalLM

from guardrail.conformance.layers import choose_layers
from guardrail.errors import UnsupportedModelError
from guardrail.testing import tiny_model

if TYPE_CHECKING:
    from collections.abc import Callable


@pytest.fixture
def of_depth() -> Callable[[int], Any]:
    def make(count: int) -> Any:
        config = LlamaConfig(
            vocab_size=8,
            hidden_size=8,
            intermediate_size=8,
            num_hidden_layers=count,
            num_attention_heads=2,
        )
        return LlamaForCausalLM(config)

    return make


@pytest.mark.parametrize("count", [2, 3, 4, 7, 12])
def test_layers_are_chosen_at_any_depth_and_never_the_last(
    count: int, of_depth: Callable[[int], Any]
) -> None:
    chosen = choose_layers(of_depth(count))
    assert chosen.count == count
    assert list(chosen.read) == sorted(set(chosen.read))
    assert chosen.read[-1] <= chosen.steer < count - 1
    if chosen.early_steer is not None and chosen.late_read is not None:
        assert chosen.early_steer < chosen.late_read < count - 1
    else:
        assert count == 2


def test_layers_that_run_for_pictures_only_are_left_out() -> None:
    chosen = choose_layers(tiny_model("mllama")[0])
    assert 1 not in {*chosen.read, chosen.steer, chosen.early_steer, chosen.late_read}


def test_pictures_have_come_in_where_the_checks_read() -> None:
    chosen = choose_layers(tiny_model("mllama")[0])
    assert chosen.read[-1] > 1
    assert chosen.early_steer is not None
    assert chosen.late_read is not None


def test_a_single_layer_is_too_few(of_depth: Callable[[int], Any]) -> None:
    with pytest.raises(UnsupportedModelError, match="none before the last"):
        choose_layers(of_depth(1))
