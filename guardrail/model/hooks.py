"""Hooks that let a `PromptCall` read, and edit, the residual stream at the last prompt position.

They are registered once and stay; they do nothing unless the running context carries a call made
through the same `PromptHooks`. So two threads, or two guards on one model, never meet.
"""

from __future__ import annotations

from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from guardrail.errors import ConfigurationError
from guardrail.model.decoder import (
    decoder_layers,
    decoder_module,
    hidden_of,
    passed_cache,
    positions_in,
    self_attention_layers,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from torch.utils.hooks import RemovableHandle
    from transformers import PreTrainedModel

    from guardrail.model.prefill import AnyDetector, PromptCall

_CURRENT: ContextVar[tuple[PromptHooks, PromptCall] | None] = ContextVar(
    "guardrail_call", default=None
)


class PromptHooks:
    """Hooks on a model's decoder and on some of its layers, until `remove()`."""

    def __init__(self, model: PreTrainedModel, layers: Sequence[int]) -> None:
        stack = decoder_layers(model)
        outside = [layer for layer in layers if not 0 <= layer < len(stack)]
        if outside:
            raise ConfigurationError(f"the model has {len(stack)} layers; there is no {outside}")
        self.layers = tuple(layers)
        self._handles: list[RemovableHandle] = [
            decoder_module(model).register_forward_pre_hook(self._enter, with_kwargs=True)
        ]
        for layer in self.layers:
            before, after = self._before(layer), self._after(layer)
            self._handles.append(stack[layer].register_forward_pre_hook(before, with_kwargs=True))
            self._handles.append(stack[layer].register_forward_hook(after))

    def remove(self) -> None:
        """Take the hooks off the model; safe to call twice."""
        while self._handles:
            self._handles.pop().remove()

    @contextmanager
    def active(self, call: PromptCall) -> Iterator[PromptCall]:
        """Within this block, in this context only, forward passes of the model serve `call`."""
        token = _CURRENT.set((self, call))
        try:
            yield call
        finally:
            _CURRENT.reset(token)

    def _call(self) -> PromptCall | None:
        current = _CURRENT.get()
        return current[1] if current is not None and current[0] is self else None

    def _enter(
        self,
        _module: nn.Module,
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any] | None = None,
    ) -> None:
        # A compiled graph must not depend on the context; the missing decision fails closed.
        if torch.compiler.is_compiling():
            return
        call = self._call()
        # torch gives no keywords to a hook that is taken off by another thread meanwhile
        if call is None or call.finished or kwargs is None:
            return
        tokens = kwargs.get("inputs_embeds")
        if tokens is None:
            tokens = kwargs.get("input_ids", args[0] if args else None)
        cache = passed_cache((*args, *kwargs.values()))
        past = 0 if cache is None else positions_in(cache)
        mask = kwargs.get("attention_mask")
        whole = isinstance(mask, torch.Tensor) and mask.dim() == 2
        call.enter(past, 0 if tokens is None else tokens.shape[1], mask if whole else None)

    def _before(self, layer: int) -> Callable[..., None]:
        def hook(
            module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any] | None = None
        ) -> None:
            if torch.compiler.is_compiling():
                return
            call = self._call()
            if call is not None and kwargs is not None and call.concerns(layer):
                call.before(layer, module, args, kwargs)

        return hook

    def _after(self, layer: int) -> Callable[[nn.Module, tuple[Any, ...], Any], Any]:
        def hook(_module: nn.Module, _args: tuple[Any, ...], output: Any) -> Any:
            if torch.compiler.is_compiling():
                return None
            call = self._call()
            if call is None or not call.concerns(layer):
                return None
            edited = call.see(layer, hidden_of(output))
            if edited is None or not isinstance(output, tuple):
                return edited
            return (edited, *output[1:])

        return hook


@contextmanager
def prompt_hooks(model: PreTrainedModel, layers: Sequence[int]) -> Iterator[PromptHooks]:
    """Hooks for the length of a block."""
    hooks = PromptHooks(model, layers)
    try:
        yield hooks
    finally:
        hooks.remove()


def check_layers(detector: AnyDetector, model: PreTrainedModel) -> tuple[int, ...]:
    """The layers a detector needs hooks on; refuses those that this model does not always run.

    Where the edit lies before the last readout, all layers between them run again for a steered
    row, and need hooks too.
    """
    layers, steering, reads = detector.layers, detector.steering_layer, detector.reads
    if not layers or list(layers) != sorted(set(layers)):
        raise ConfigurationError(f"readout layers must ascend; got {layers}")
    named = sorted({*layers, *reads, *(() if steering is None else (steering,))})
    count = len(decoder_layers(model))
    if named[0] < 0 or named[-1] >= count:
        raise ConfigurationError(f"layers {named} do not fit a model with {count} layers")
    skipped = sorted(set(named) - set(self_attention_layers(model)))
    if skipped:
        raise ConfigurationError(
            f"layers {skipped} of this model are cross-attention layers, which do not run for a "
            "prompt without a picture; use an artefact that reads and steers at other layers"
        )
    between = range(reads[-1] if steering is None else steering, reads[-1] + 1)
    return tuple(sorted({*named, *between}))
