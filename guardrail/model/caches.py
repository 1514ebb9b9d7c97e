"""What the layers of a key-value cache hold, to be put back for a second run."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from transformers import cache_utils

# Layers of a cache that put a new tensor in the old one's place, and so never change one.
_REPLACING = (cache_utils.DynamicLayer, cache_utils.DynamicSlidingWindowLayer)
# Layers that write into their tensors, but over all that counts when the first positions come in.
_OVERWRITING = tuple(
    getattr(cache_utils, name)
    for name in ("StaticLayer", "StaticSlidingWindowLayer", "LinearAttentionLayer")
    if hasattr(cache_utils, name)
)


class LayerState:
    """What one layer of a cache holds at a moment, so that it can be put back.

    Tensors are copied only where later passes write into them, so that remembering the state before
    a prompt costs next to nothing.
    """

    def __init__(self, layer: Any, *, empty: bool) -> None:
        """Remember `layer`; `empty` says that it has seen no position yet."""
        self._layer = layer
        self._replaces = type(layer) in _REPLACING
        self._written = not (self._replaces or (empty and type(layer) in _OVERWRITING))
        self._values = {name: self._kept(value) for name, value in vars(layer).items()}

    def put_back(self) -> None:
        """Give the layer back what it held, in the tensors that held it."""
        current = vars(self._layer)
        for name in set(current) - set(self._values):
            del current[name]
        for name, kept in self._values.items():
            current[name] = _restored(kept)

    def _kept(self, value: Any) -> Any:
        if isinstance(value, Tensor):
            counts = value.dim() == 0 and not self._replaces  # a counter, advanced in place
            return _Kept(value, value.clone() if self._written or counts else None)
        if isinstance(value, dict):
            return {key: self._kept(item) for key, item in value.items()}
        return list(value) if isinstance(value, list) else value


class _Kept:
    """A tensor and, where it may be written into, a copy of what stood in it."""

    def __init__(self, tensor: Tensor, copy: Tensor | None) -> None:
        self.tensor, self.copy = tensor, copy


def _restored(kept: Any) -> Any:
    if isinstance(kept, _Kept):
        return kept.tensor if kept.copy is None else kept.tensor.copy_(kept.copy)
    if isinstance(kept, dict):
        return {key: _restored(item) for key, item in kept.items()}
    return list(kept) if isinstance(kept, list) else kept
