"""Counting what really runs in a model, with hooks that know nothing of the guard's."""

from __future__ import annotations

from collections import Counter
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from guardrail.model.decoder import decoder_layers, decoder_module

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from torch import Tensor, nn
    from transformers import PreTrainedModel


@dataclass
class Trace:
    """How often what ran. `logits` are the head's last positions, each (rows, vocab)."""

    passes: int = 0
    layers: Counter[int] = field(default_factory=Counter)
    outside: Counter[str] = field(default_factory=Counter)
    logits: list[Tensor] = field(default_factory=list)

    @property
    def heads(self) -> int:
        """Runs of the head that turns residuals into logits."""
        return len(self.logits)


@contextmanager
def traced(model: PreTrainedModel) -> Iterator[Trace]:
    """Count within the block: decoder passes, layers, the head, modules outside the decoder."""
    trace = Trace()
    untyped: Any = model
    decoder, head = decoder_module(model), untyped.get_output_embeddings()

    def passed(*_: Any) -> None:
        trace.passes += 1

    def headed(_module: Any, _args: Any, output: Any) -> None:
        trace.logits.append(output[:, -1].detach().clone())

    handles = [decoder.register_forward_pre_hook(passed)]
    for number, layer in enumerate(decoder_layers(model)):
        handles.append(layer.register_forward_hook(_counter(trace.layers, number)))
    for name, module in _outside(model, decoder, head):
        handles.append(module.register_forward_hook(_counter(trace.outside, name)))
    if head is not None:
        handles.append(head.register_forward_hook(headed))
    try:
        yield trace
    finally:
        for handle in handles:
            handle.remove()


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


def hidden_of(output: Any) -> Tensor:
    """The residual stream in a layer's output."""
    hidden: Tensor = output[0] if isinstance(output, tuple) else output
    return hidden


def _counter(counts: Counter[Any], key: Any) -> Callable[..., None]:
    def count(*_: Any) -> None:
        counts[key] += 1

    return count


def _outside(
    model: PreTrainedModel, decoder: nn.Module, head: nn.Module | None
) -> Iterator[tuple[str, nn.Module]]:
    """Modules that are neither part of the decoder nor around it: the vision side, if any."""
    inside = set(decoder.modules()) | ({head} if head is not None else set())
    for name, module in model.named_modules():
        if module not in inside and decoder not in set(module.modules()):
            yield name, module
