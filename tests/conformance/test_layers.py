from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from transformers import LlamaConfig, LlamaForCausalLM

from guardrail.conformance.subject import choose_layers
from guardrail.errors import UnsupportedModelError
from guardrail.testing import tiny_model
from tests.conformance.editing_checks import early_and_late

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
    read, steer = choose_layers(of_depth(count))
    assert list(read) == sorted(set(read))
    assert read[-1] <= steer < count - 1
    if (layers := early_and_late(read, steer)) is not None:
        assert layers[0] < layers[1] < count - 1
    else:
        assert count == 2


def test_layers_that_run_for_pictures_only_are_left_out() -> None:
    read, steer = choose_layers(tiny_model("mllama")[0])
    assert 1 not in {*read, steer, *(early_and_late(read, steer) or ())}


def test_pictures_have_come_in_where_the_checks_read() -> None:
    read, steer = choose_layers(tiny_model("mllama")[0])
    assert read[-1] > 1
    assert early_and_late(read, steer) is not None


def test_a_single_layer_is_too_few(of_depth: Callable[[int], Any]) -> None:
    with pytest.raises(UnsupportedModelError, match="none before the last"):
        choose_layers(of_depth(1))
