from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from transformers import T5Config, T5ForConditionalGeneration

from guardrail.errors import UnsupportedModelError
from guardrail.model.decoder import (
    context_length,
    decoder_layers,
    decoder_module,
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
