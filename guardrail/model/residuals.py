"""The residual stream as layers hand it on."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from guardrail.errors import UnsupportedModelError


def hidden_of(output: Any) -> Tensor:
    """The residual stream in what a layer returns: itself, or the first of several things.

    Raises:
        UnsupportedModelError: it is no (rows, length, d_model); Gemma 3n has four streams at once.
    """
    hidden: Tensor = output[0] if isinstance(output, tuple) else output
    if hidden.dim() != 3:
        raise UnsupportedModelError(
            f"a layer of this model gives a residual of shape {tuple(hidden.shape)}; a guard reads "
            "one stream, of rows, positions and width: this model cannot be guarded"
        )
    return hidden


def require_length(layer: int, hidden: Tensor, length: int) -> None:
    """Make sure that the positions of `hidden` (rows, positions, d_model) are the last of `length`.

    Raises:
        UnsupportedModelError: there are more, and which token one belongs to is not known.
    """
    if hidden.shape[1] > length:
        raise UnsupportedModelError(
            f"layer {layer} of this model gives {hidden.shape[1]} positions for {length} tokens; "
            "which token a position belongs to is not known, so it cannot be guarded"
        )


def moved(hidden: Tensor, where: slice, delta: Tensor) -> Tensor:
    """`hidden` (rows, length, d_model) with each row's edit added at the positions of `where`.

    They are counted from the end; those that `hidden` lacks are left out.
    """
    result = hidden.clone()
    exact = torch.promote_types(hidden.dtype, torch.float32)  # adding zero changes no bit
    added = hidden[:, where].to(exact) + delta.to(hidden.device, exact)[:, None]
    result[:, where] = added.to(hidden.dtype)
    return result
