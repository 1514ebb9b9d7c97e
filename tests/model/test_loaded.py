"""Where a model's inputs belong, and in what dtype."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from guardrail.model.load import wrap_model
from guardrail.testing import tiny_model


def test_pictures_are_never_given_in_8_bit_floats() -> None:
    model, processor = tiny_model("llava")
    loaded = wrap_model(model.bfloat16(), processor)
    first: Any = next(m for m in model.modules() if isinstance(m, nn.Conv2d))
    first.weight = nn.Parameter(first.weight.to(torch.float8_e4m3fn), requires_grad=False)
    embedding = next(iter(model.parameters()))
    embedding.data = embedding.data.to(torch.float8_e4m3fn)
    assert loaded.dtype is torch.bfloat16


def test_a_model_of_integers_takes_pictures_in_torchs_default() -> None:
    model, processor = tiny_model("llama")
    for parameter in model.parameters():
        parameter.requires_grad_(False)
        parameter.data = parameter.data.to(torch.int8)
    assert wrap_model(model, processor).dtype is torch.get_default_dtype()


@pytest.mark.parametrize("several", [False, True])
def test_offloaded_embeddings_belong_where_their_hook_says(several: bool) -> None:
    from accelerate.hooks import AlignDevicesHook, ModelHook, SequentialHook, add_hook_to_module

    model, processor = tiny_model("llama")
    hook: Any = AlignDevicesHook(execution_device="cpu")
    embeddings: Any = model.get_input_embeddings()
    add_hook_to_module(embeddings, SequentialHook(ModelHook(), hook) if several else hook)
    embeddings.weight = nn.Parameter(embeddings.weight.to("meta"))
    assert wrap_model(model, processor).device == torch.device("cpu")
