"""Which layers the checks read and steer, for any number of layers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from guardrail.errors import UnsupportedModelError
from guardrail.model.decoder import decoder_layers, self_attention_layers

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True, slots=True)
class Layers:
    """`read` and then `steer`, near the middle; `late_read` lies behind `early_steer`."""

    count: int
    read: tuple[int, ...]
    steer: int
    early_steer: int | None
    late_read: int | None


def choose_layers(model: PreTrainedModel) -> Layers:
    """Layers that run for every prompt, but the last: its output is not in `hidden_states`.

    Raises:
        UnsupportedModelError: the decoder has fewer than two such layers.
    """
    count = len(decoder_layers(model))
    usable = [layer for layer in self_attention_layers(model) if layer < count - 1]
    if not usable:
        raise UnsupportedModelError(
            f"a decoder of {count} layers has none before the last one to read"
        )
    middle, entry = (len(usable) - 1) // 2, _pictures_come_in(model)
    while usable[middle] < entry and middle + 1 < len(usable):
        middle += 1  # in front of it, no picture would be read
    read = tuple(usable[max(middle - 1, 0) : middle + 1])
    after = usable[middle + 1] if middle + 1 < len(usable) else None
    early, late = None, None
    if after is not None:
        early, late = usable[middle], after
    elif middle:
        early, late = usable[middle - 1], usable[middle]
    return Layers(
        count=count,
        read=read,
        steer=read[-1] if after is None else after,
        early_steer=early,
        late_read=late,
    )


def _pictures_come_in(model: PreTrainedModel) -> int:
    """The first layer of cross-attention; 0 where pictures are part of the prompt."""
    always = set(self_attention_layers(model))
    return min(set(range(len(decoder_layers(model)))) - always, default=0)
