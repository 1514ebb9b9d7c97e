"""Reading the residual stream at every prompt position, in the pass that reads the last one.

What is read at a position is boiled down at once, layer by layer, so a long prompt does not hold
the residuals of all of its positions.
"""

from __future__ import annotations

import inspect
import threading
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from guardrail.errors import UnsupportedModelError
from guardrail.model.decoder import decoder_layers, decoder_module
from guardrail.model.generate import run_until_read
from guardrail.model.hooks import check_layers, prompt_hooks
from guardrail.model.prefill import PromptCall

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from transformers import PreTrainedModel

    from guardrail.model.encode import Encoded
    from guardrail.model.load import LoadedModel
    from guardrail.model.prefill import AnyDetector, Ruling
    from guardrail.policy import Policy

    Reduce = Callable[[int, Tensor], Tensor]


@dataclass(frozen=True, slots=True)
class PositionsRead:
    """One pass over a batch.

    `values` is what was read, (rows, positions, k, ...) on the CPU, for k layers. `attended` is
    (rows, positions) bool: False where the model hides a position from attention, as it does with
    padding and as some models do with picture slots they have no use for.
    """

    values: Tensor
    attended: Tensor
    rulings: list[Ruling]


@dataclass(kw_only=True)
class PositionsCall(PromptCall):
    """A call that reads `reduce(layer, hidden)` of every position besides what any call does.

    `reduce` gets (rows, length, d_model) where the layer runs and gives (rows, length, ...).
    """

    reduce: Reduce
    seen: dict[int, list[Tensor]] = field(default_factory=dict)

    def see(self, layer: int, hidden: Tensor) -> Tensor | None:
        """Read all positions before the call's own reading, which may leave the pass."""
        if layer in self.layers and not self.decided:
            self.seen.setdefault(layer, []).append(self.reduce(layer, hidden.detach()).cpu())
        return super().see(layer, hidden)

    def values(self) -> Tensor:
        """All positions, (rows, positions, k, ...); several passes over the prompt are joined."""
        self.recorded()  # a layer that never ran, or a pass that never ended, is named there
        read = torch.stack([torch.cat(self.seen[i], dim=1) for i in self.layers], dim=2)
        if read.shape[1] != self.prompt_len:
            raise UnsupportedModelError(
                f"the model ran {read.shape[1]} positions for a prompt of {self.prompt_len} "
                "tokens; which token a position belongs to is not known"
            )
        return read


def position_residuals(
    loaded: LoadedModel, encoded: Encoded, layers: Sequence[int] | None = None
) -> Tensor:
    """Residuals at every prompt position: (rows, positions, k, d_model), float32 on the CPU.

    `layers` ascend; None reads all of them. Padding is on the left and is read like the rest.
    `[:, -1]` is what `last_residuals` gives.

    Raises:
        UnsupportedModelError: the model does not run one position per token of the prompt.
    """
    chosen = tuple(range(len(decoder_layers(loaded.model)))) if layers is None else tuple(layers)
    call = PositionsCall(
        prompt_len=encoded.prompt_len,
        kinds=encoded.kinds,
        layers=chosen,
        leave_after_readout=True,
        reduce=lambda _layer, hidden: hidden.float(),
    )
    with prompt_hooks(loaded.model, chosen) as hooks, hooks.active(call):
        run_until_read(loaded, _whole(loaded.model, encoded))
    return call.values()


def check_positions(
    loaded: LoadedModel,
    encoded: Encoded,
    detector: AnyDetector,
    reduce: Reduce,
    *,
    policy: Policy | None = None,
) -> PositionsRead:
    """Judge a batch as `check_rows` does, and read every position in the same pass.

    Args:
        loaded: the model; nobody else may be using it.
        encoded: the batch.
        detector: its readout layers are the ones read.
        reduce: called with a layer and its output (rows, length, d_model), on the layer's device;
            gives (rows, length, ...).
        policy: as in `check_rows`.

    Raises:
        UnsupportedModelError: the model does not run one position per token of the prompt.
    """
    layers = check_layers(detector, loaded.model)
    call = PositionsCall(
        prompt_len=encoded.prompt_len,
        kinds=encoded.kinds,
        layers=detector.layers,
        detector=detector,
        policy=policy,
        leave_after_readout=True,
        reduce=reduce,
    )
    with prompt_hooks(loaded.model, layers) as hooks, _attention_masks(loaded.model) as masks:
        with hooks.active(call):
            run_until_read(loaded, _whole(loaded.model, encoded))
    call.settle()
    values = call.values()
    rulings = [call.ruling(number) for number in range(len(encoded.kinds))]
    return PositionsRead(values, _attended(masks, values), rulings)


def _whole(model: PreTrainedModel, encoded: Encoded) -> Encoded:
    """A batch all of whose positions run in every layer.

    Some models run their last layers on the positions alone whose logits are asked for: generation
    asks for one, and 0 means all. The pass ends before any logit is computed.
    """
    if "logits_to_keep" not in inspect.signature(model.forward).parameters:
        return encoded
    return replace(encoded, inputs={**encoded.inputs, "logits_to_keep": 0})


@contextmanager
def _attention_masks(model: PreTrainedModel) -> Iterator[list[Tensor]]:
    """The masks the decoder is given by this thread within the block, as far as they are 2-d."""
    masks: list[Tensor] = []
    owner = threading.get_ident()

    def note(_module: nn.Module, _args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        mask = kwargs.get("attention_mask")
        if isinstance(mask, Tensor) and mask.dim() == 2 and threading.get_ident() == owner:
            masks.append(mask.detach().bool().cpu())

    handle = decoder_module(model).register_forward_pre_hook(note, with_kwargs=True)
    try:
        yield masks
    finally:
        handle.remove()


def _attended(masks: Sequence[Tensor], values: Tensor) -> Tensor:
    """The mask over the whole prompt; everything counts where the decoder was given none."""
    shape = values.shape[:2]
    whole = [mask for mask in masks if mask.shape == shape]
    return whole[-1] if whole else torch.ones(shape, dtype=torch.bool)
