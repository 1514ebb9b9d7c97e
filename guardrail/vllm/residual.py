"""The one operation inside the model: it takes every token's numbers, and moves steered rows.

It is opaque to torch.compile, its buffers keep their addresses and it has no branch that depends on
what a batch holds, so that it can be part of a compiled and captured graph. Numbers lie beside the
blocks of keys and values, at the same slots: what the engine's prefix cache finds again was judged
when it was computed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import nn

    from guardrail.vllm.judge import TokenNumbers

_STATE: Residuals | None = None  # one model a process


class Residuals:
    """Buffers of one worker. Nothing is kept before there are slots.

    `numbers` is (k, slots + 1, m) float32, whose last slot nobody owns; `amounts` (tokens,) float32
    how far each token of a step is moved at the steering layer.
    """

    def __init__(self, wanted: TokenNumbers, max_tokens: int, device: torch.device) -> None:
        self.layers, self.steering_layer = wanted.layers, wanted.steering_layer
        self.basis = wanted.basis.transpose(1, 2).contiguous().to(device)  # (k, d_model, m)
        self.direction = None if wanted.direction is None else wanted.direction.to(device)
        self.amounts = torch.zeros(max_tokens, device=device)
        self.numbers: Tensor | None = None
        self.slots: Callable[[], Tensor] | None = None
        self._moves = False

    def keep(self, count: int, slots: Callable[[], Tensor]) -> None:
        """From now on keep numbers at `count` slots; `slots()` are those of a step's tokens.

        A slot below 0 is of no token.
        """
        shape = (len(self.layers), count + 1, self.basis.shape[-1])
        self.numbers = torch.full(shape, torch.nan, device=self.basis.device)
        self.slots = slots

    def move(self, amounts: dict[int, float]) -> None:
        """The tokens of this step that are moved, by their place in it; all others are not."""
        if amounts or self._moves:
            made = torch.zeros(len(self.amounts))
            for place, amount in amounts.items():
                made[place] = amount
            self.amounts.copy_(made)
        self._moves = bool(amounts)

    def read(self, slots: Sequence[int]) -> Tensor:
        """The numbers at some slots, (n, k, m) on the worker's device."""
        if self.numbers is None:
            raise RuntimeError("no numbers are kept yet")
        at = torch.tensor(slots, device=self.numbers.device)
        return self.numbers.index_select(1, at).transpose(0, 1)

    def see(self, hidden: Tensor, rest: Tensor | None, layer: int) -> None:
        """A layer gave (tokens, d_model), in two summands where the model carries it so."""
        if self.numbers is None or self.slots is None:
            return
        count, at = hidden.shape[0], self.layers.index(layer)
        whole = hidden.float() if rest is None else hidden.float() + rest.float()
        slots = self.slots()[:count].long()
        nobody = self.numbers.shape[1] - 1
        places = torch.where(slots < 0, nobody, slots)
        self.numbers[at].index_copy_(0, places, whole @ self.basis[at])
        if layer == self.steering_layer and self.direction is not None:
            edit = self.amounts[:count, None] * self.direction
            hidden.add_(edit.to(hidden.dtype))


@torch.library.custom_op("guardrail::residual", mutates_args=("hidden",))
def residual(hidden: Tensor, rest: Tensor | None, layer: int) -> None:
    """Show a layer's output to the process's `Residuals`, if it has any."""
    if _STATE is not None:
        _STATE.see(hidden, rest, layer)


@residual.register_fake
def _(hidden: Tensor, rest: Tensor | None, layer: int) -> None:
    return None


def install(state: Residuals, layers: Sequence[nn.Module]) -> None:
    """Hook the layers that are read; before the model is compiled."""
    global _STATE
    _STATE = state
    for number in state.layers:
        layers[number].register_forward_hook(_hook(number))


def _hook(layer: int) -> Callable[..., Any]:
    def seen(_module: nn.Module, _args: Any, output: Any) -> Any:
        hidden, rest = output[:2] if isinstance(output, tuple) else (output, None)
        torch.ops.guardrail.residual(hidden, rest, layer)
        return output

    return seen
