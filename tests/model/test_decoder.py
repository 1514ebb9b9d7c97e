"""What layers hand on, and what an edit makes of it."""

from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING

import pytest
import torch
from transformers import DynamicCache, T5Config, T5ForConditionalGeneration

from guardrail.errors import UnsupportedModelError
from guardrail.model.decoder import (
    cache_argument,
    context_length,
    decoder_layers,
    decoder_module,
    hidden_of,
    moved,
    passed_cache,
    positions_in,
    self_attention_layers,
)
from guardrail.testing import tiny_model

if TYPE_CHECKING:
    from torch import nn


def test_the_text_decoders_layers_are_found_in_every_family(tiny):
    layers = decoder_layers(tiny.model)
    assert len(layers) == 4
    assert not any(layer in layers for layer in _vision_layers(tiny.model))


def test_the_decoder_module_is_the_one_that_runs_the_layers(tiny):
    owner = decoder_module(tiny.model)
    assert decoder_layers(tiny.model) in list(owner.children())


def test_all_layers_count_where_none_is_cross_attention(tiny):
    assert self_attention_layers(tiny.model) == (0, 1, 2, 3)


def test_cross_attention_layers_are_left_out():
    model, _ = tiny_model("llama")
    model.config.cross_attention_layers = [1]
    assert self_attention_layers(model) == (0, 2, 3)


def test_the_context_length_is_the_text_configs(tiny):
    assert context_length(tiny.model) == 2048


def test_an_encoder_decoder_is_refused():
    config = T5Config(vocab_size=8, d_model=8, d_ff=8, num_layers=1, num_heads=1, d_kv=8)
    with pytest.raises(UnsupportedModelError, match="encoder-decoder"):
        decoder_layers(T5ForConditionalGeneration(config))


def test_a_decoder_without_a_list_of_its_layers_is_refused():
    model, _ = tiny_model("llama")
    model.config.num_hidden_layers = 5
    with pytest.raises(UnsupportedModelError, match="no list of 5 layers"):
        decoder_layers(model)


def test_a_model_without_a_decoder_is_refused():
    model, _ = tiny_model("llama")
    model.get_decoder = lambda: None
    with pytest.raises(UnsupportedModelError, match="no text decoder"):
        decoder_layers(model)


def _vision_layers(model: nn.Module) -> list[nn.Module]:
    return [m for name, m in model.named_modules() if "vision" in name or "visual" in name]


def test_the_cache_is_found_under_any_name():
    cache = DynamicCache()
    assert passed_cache([None, "text", 3, cache]) is cache
    assert passed_cache([None, "text"]) is None


def test_a_cache_that_counts_no_positions_is_refused():
    class Recurrent:
        def get_seq_length(self):
            raise ValueError("only on Attention layers")

    assert positions_in(DynamicCache()) == 0
    with pytest.raises(UnsupportedModelError, match=r"counts no positions.*Attention layers"):
        positions_in(Recurrent())


@pytest.mark.parametrize(
    ("forward", "name"),
    [
        (lambda input_ids, past_key_values=None: None, "past_key_values"),
        (lambda input_ids, cache=None: None, "cache"),
    ],
)
def test_the_arguments_name_is_read_off_the_model(forward, name):
    assert cache_argument(SimpleNamespace(forward=forward)) == name


def test_the_name_fits_the_installed_library(llama):
    assert cache_argument(llama.model) in ("cache", "past_key_values")
    output = llama.model(input_ids=llama.model.dummy_inputs["input_ids"], use_cache=True)
    assert passed_cache([getattr(output, cache_argument(llama.model))]) is not None


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
