"""bitsandbytes' 4-bit weights as they were stored, in whatever order its kernels keep them.

On CPUs with AVX512-BF16 a layer's first forward pass in eval mode re-orders its weight in place and
rounds the scales to bfloat16. `state_dict` puts the order of the weight back, but not that of the
scales, so that the layer computes something else from then on (bitsandbytes 0.50). Code that only
*looks* at a model must therefore stay away from `state_dict`; here the order is undone on a copy,
and the scales are rounded either way, so that a model is the same before and after its first pass.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from collections.abc import Iterator

_ROWS = 32  # output rows that bitsandbytes' CPU kernel keeps together


def own_tensors(module: nn.Module, prefix: str) -> dict[str, Any]:
    """A module's own part of the state dict, values included; nothing in the module changes."""
    found: dict[str, Any] = {}
    kind: Any = nn.Module if is_four_bit(getattr(module, "weight", None)) else type(module)
    kind._save_to_state_dict(module, found, prefix, True)
    return found


def is_four_bit(value: object) -> bool:
    """Whether `value` is a weight that bitsandbytes has quantised to 4 bits."""
    return type(value).__name__ == "Params4bit" and getattr(value, "quant_state", None) is not None


def four_bit_parts(name: str, weight: Any) -> Iterator[tuple[str, object]]:
    """The codes (two to a byte), the scales (bfloat16), and how to read them."""
    state = weight.quant_state
    rows, columns = state.shape
    codes, scales = weight.data.view(torch.uint8), state.absmax
    if getattr(state, "packing_format_for_cpu", False):
        codes, scales = _in_order(codes, rows, columns), scales.T
    elif state.nested:
        from bitsandbytes.functional import dequantize_blockwise

        scales = dequantize_blockwise(scales, state.state2) + state.offset
    yield f"{name}.codes", codes.reshape(rows, columns // 2)
    yield f"{name}.scales", scales.float().bfloat16().reshape(rows, -1)
    yield f"{name}.format", json.dumps([state.quant_type, state.blocksize, rows, columns])


def _in_order(packed: Tensor, rows: int, columns: int) -> Tensor:
    """Undo the CPU kernel's order: (rows, columns / 2) -> the same bytes as they were stored.

    A block of 32 rows lies column pair by column pair; of each pair the first 16 rows are in the
    low halves of 32 bytes and the others in the high halves.
    """
    halves = packed.reshape(-1, _ROWS)
    values = torch.cat([halves & 0xF, halves >> 4], dim=1)
    pairs = values.reshape(rows // _ROWS, columns // 2, _ROWS, 2).transpose(1, 2)
    return (pairs[..., 0] << 4) | pairs[..., 1]
