from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import cache_utils

from guardrail.model.caches import LayerState

LAYERS = {
    "dynamic": lambda: cache_utils.DynamicLayer(),
    "window": lambda: cache_utils.DynamicSlidingWindowLayer(sliding_window=4),
    "static": lambda: cache_utils.StaticLayer(max_cache_len=16),
    "static window": lambda: cache_utils.StaticSlidingWindowLayer(
        max_cache_len=16, sliding_window=4
    ),
    "states": lambda: cache_utils.LinearAttentionLayer(),
    "states and keys": lambda: cache_utils.LinearAttentionAndFullAttentionLayer(),
}


def feed(layer: Any, length: int, seed: int) -> list[torch.Tensor]:
    """Positions as a model brings them; what later layers of the model get to see."""
    generator = torch.Generator().manual_seed(seed)
    keys, values, states = (torch.randn(2, 2, length, 3, generator=generator) for _ in range(3))
    seen: list[torch.Tensor] = []
    if hasattr(layer, "update_conv_state"):
        kernel = states.flatten(1, 2).transpose(1, 2)
        seen.append(layer.update_conv_state(kernel, conv_kernel_size=3).clone())
        seen.append(layer.update_recurrent_state(states.sum(2)).clone())
    if hasattr(layer, "update"):
        seen += [tensor.clone() for tensor in layer.update(keys, values)]
    return seen


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("before", [0, 3, 6], ids=lambda n: f"after {n}")
@pytest.mark.parametrize("reused", [False, True], ids=["fresh", "reused"])
def test_what_is_put_back_goes_on_as_if_nothing_had_come_between(name, before, reused):
    layer, other = LAYERS[name](), LAYERS[name]()
    for one in (layer, other):
        if reused:
            feed(one, 5, 9)
            one.reset()
        if before:
            feed(one, before, 1)
    state = LayerState(layer, empty=before == 0)
    for seed in (2, 3):
        feed(layer, 5, seed)
        state.put_back()
    for length, seed in ((5, 4), (1, 5), (1, 6)):
        assert all(map(torch.equal, feed(layer, length, seed), feed(other, length, seed)))


@pytest.mark.parametrize("name", ["static", "static window"])
def test_tensors_that_a_compiled_graph_knows_stay_where_they_are(name):
    layer = LAYERS[name]()
    feed(layer, 3, 1)
    state, before = LayerState(layer, empty=False), (layer.keys, layer.values)
    feed(layer, 5, 2)
    state.put_back()
    assert (layer.keys, layer.values)[0] is before[0]
    assert layer.values is before[1]


@pytest.mark.parametrize("name", ["dynamic", "window", "static", "static window", "states"])
def test_remembering_a_layer_before_a_prompt_copies_no_keys(name):
    layer = LAYERS[name]()
    feed(layer, 5, 1)
    layer.reset()
    copied: list[int] = []

    class Counting(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, _types: Any, args: Any = (), kwargs: Any = None):
            out = func(*args, **(kwargs or {}))
            if func is torch.ops.aten.clone.default:
                copied.append(out.numel())
            return out

    with Counting():
        LayerState(layer, empty=True)
    assert sum(copied) <= 1  # a counter
