"""The residual stream as layers hand it on."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def hidden_of(output: Any) -> Tensor:
    """The residual stream in what a layer returns: itself, or the first of several things."""
    hidden: Tensor = output[0] if isinstance(output, tuple) else output
    return hidden


def moved(hidden: Tensor, where: slice, delta: Tensor) -> Tensor:
    """`hidden` (rows, length, d_model) with each row's edit added at the positions of `where`."""
    result = hidden.clone()
    exact = torch.promote_types(hidden.dtype, torch.float32)  # adding zero changes no bit
    added = hidden[:, where].to(exact) + delta.to(hidden.device, exact)[:, None]
    result[:, where] = added.to(hidden.dtype)
    return result
