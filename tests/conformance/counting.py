"""Counting what really runs in a model, with hooks that know nothing of the guard's."""

from __future__ import annotations

from collections import Counter
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from guardrail.conformance.reference import Trace, hidden_of, traced
from guardrail.model.decoder import decoder_layers, decoder_module

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from torch import Tensor, nn
    from transformers import PreTrainedModel


@dataclass
class Counts:
    """How often what ran; `trace` has the passes of the decoder and what the head gave."""

    trace: Trace
    layers: Counter[int] = field(default_factory=Counter)
    outside: Counter[str] = field(default_factory=Counter)

    @property
    def passes(self) -> int:
        return self.trace.passes

    @property
    def heads(self) -> int:
        return len(self.trace.logits)


@contextmanager
def counted(model: PreTrainedModel) -> Iterator[Counts]:
    """Count within the block: decoder passes, layers, the head, modules outside the decoder."""
    with ExitStack() as hooks:
        counts = Counts(hooks.enter_context(traced(model)))
        for number, layer in enumerate(decoder_layers(model)):
            count = _counter(counts.layers, number)
            hooks.callback(layer.register_forward_hook(count).remove)
        for name, module in _outside(model):
            count = _counter(counts.outside, name)
            hooks.callback(module.register_forward_hook(count).remove)
        yield counts


@contextmanager
def seen_at(layer: nn.Module) -> Iterator[list[Tensor]]:
    """What the layer gives, each pass in turn: (rows, length, d_model).

    A hook sees what hooks registered before it made of the output, so the place where the block
    begins decides whether an edit is in it.
    """
    outputs: list[Tensor] = []

    def note(_module: Any, _args: Any, output: Any) -> None:
        outputs.append(hidden_of(output).detach().clone())

    handle = layer.register_forward_hook(note)
    try:
        yield outputs
    finally:
        handle.remove()


def _counter(counts: Counter[Any], key: Any) -> Callable[..., None]:
    def count(*_: Any) -> None:
        counts[key] += 1

    return count


def _outside(model: PreTrainedModel) -> Iterator[tuple[str, nn.Module]]:
    """Modules that are neither part of the decoder nor around it: the vision side, if any."""
    decoder, head = decoder_module(model), model.get_output_embeddings()
    inside = set(decoder.modules()) | ({head} if head is not None else set())
    for name, module in model.named_modules():
        if module not in inside and decoder not in set(module.modules()):
            yield name, module
