"""One digest over all of a model's weights, read by sampling.

Weights are edited by whole matrices (fine-tuning, merging), by rows and columns (a token, a
neuron, a residual channel) or by rank-one updates, which touch nearly everything. So of every
matrix one value is read from each row and one from each column, at places drawn from the tensor's
name, and small tensors are read whole. What can *not* be seen is a change confined to values that
are not read, or smaller than the grid below.

Casting a model must not make it another one, so values are compared on bfloat16's grid: clamped to
float16's range, rounded to bfloat16, tiny ones flushed to zero. float32, bfloat16 and float16
copies of the same bfloat16 or float16 checkpoint agree, and so do float32 and bfloat16 copies of a
float32 checkpoint. A float32 checkpoint cast to float16 is rounded twice and may count as another
model. Integers and 8-bit floats (quantised weights) are compared bit for bit.
"""

from __future__ import annotations

import hashlib
import json
import sys
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from guardrail.errors import UnsupportedModelError
from guardrail.model.packed import four_bit_parts, is_four_bit, own_tensors

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from transformers import PreTrainedModel

WHOLE = 4096
"""Tensors of up to this many values are read whole."""
VECTOR = 65_536
"""At most this many values of a long vector are read, evenly spread."""

_LARGEST = 65_504.0  # float16's
_SMALLEST = 2.0**-16  # below this float16 has fewer bits than bfloat16
_FLOATS = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


def weights_digest(model: PreTrainedModel) -> str:
    """SHA-256 over name, shape and sampled values of every entry of the state dict.

    Tied weights count once; adapters inside the layers count, with their scale and whether they
    are switched on; weights that accelerate keeps on the CPU or on disk are read from there.

    Raises:
        UnsupportedModelError: weights that are not there (`meta`) or spread over processes.
    """
    total = hashlib.sha256()
    for name, value in _entries(model):
        if isinstance(value, Tensor):
            kind = "float" if value.dtype in _FLOATS else str(value.dtype)
            total.update(f"{name}|{tuple(value.shape)}|{kind}|".encode())
            total.update(_values(name, value))
        else:  # a module's extra state
            total.update(f"{name}|{json.dumps(value, sort_keys=True, default=repr)}".encode())
    total.update(json.dumps(_adapters(model), sort_keys=True).encode())
    return total.hexdigest()


def _entries(model: PreTrainedModel) -> Iterator[tuple[str, object]]:
    """Every parameter and buffer of the state dict once, unpacked, from wherever it lies."""
    stored = _stored(model)
    tied: Mapping[str, str] = getattr(model, "all_tied_weights_keys", None) or {}
    seen: set[int] = set()
    for name, value in stored.items():
        if id(value) in seen or _is_copy(model, stored, name, tied.get(name)):
            continue
        seen.add(id(value))
        if is_four_bit(value):
            yield from four_bit_parts(name, value)
        elif isinstance(value, Tensor):
            yield from _plain(name, _at_hand(model, name, value).detach())
        else:
            yield name, value


def _stored(model: nn.Module) -> dict[str, Any]:
    """As `model.state_dict(keep_vars=True)`, which would change 4-bit weights that have run."""
    found: dict[str, Any] = {}
    for path, module in model.named_modules(remove_duplicate=False):
        found |= own_tensors(module, f"{path}." if path else "")
    return found


def _is_copy(model: nn.Module, stored: Mapping[str, Any], name: str, source: str | None) -> bool:
    """Whether a tied weight still equals its source: offloading makes two tensors of them."""
    if source is None or not all(isinstance(stored.get(n), Tensor) for n in (name, source)):
        return False
    one, other = (_at_hand(model, n, stored[n]).detach() for n in (name, source))
    if one.shape != other.shape or one.dtype != other.dtype:
        return False
    return _values(source, one) == _values(source, other)


def _plain(name: str, value: Tensor) -> Iterator[tuple[str, Tensor]]:
    """The ordinary tensors inside a packed one (a quantised tensor subclass)."""
    if type(value).__name__ == "DTensor":
        raise UnsupportedModelError(
            f"{name} is spread over several processes (tensor parallelism); load the model with "
            "device_map instead"
        )
    if not hasattr(value, "__tensor_flatten__"):
        yield name, value
        return
    parts, _ = value.__tensor_flatten__()
    for part in parts:
        yield from _plain(f"{name}.{part}", getattr(value, part))


def _at_hand(model: nn.Module, name: str, value: Tensor) -> Tensor:
    """`value`, or what accelerate will put in its place when it is offloaded."""
    if value.device.type != "meta":
        return value
    owner, _, leaf = name.rpartition(".")
    hook = getattr(model.get_submodule(owner), "_hf_hook", None)
    for each in getattr(hook, "hooks", (hook,)):
        kept: Any = getattr(each, "weights_map", None)
        if kept is not None and leaf in kept:
            found: Tensor = kept[leaf]
            return found
    raise UnsupportedModelError(
        f"{name} has no values (it is on the `meta` device and not offloaded by accelerate); "
        "load the model's weights before guarding it"
    )


def _values(name: str, tensor: Tensor) -> bytes:
    """The sampled values of one tensor, on a grid that survives casting."""
    places = _places(name, tensor).to(tensor.device)
    if tensor.is_floating_point() and tensor.dtype not in _FLOATS:
        tensor = tensor.view(torch.uint8)
    taken = tensor[torch.unravel_index(places, tensor.shape)] if tensor.dim() else tensor
    if tensor.dtype in _FLOATS:
        taken = taken.float().clamp(-_LARGEST, _LARGEST).bfloat16()
        taken = torch.where(taken.abs() < _SMALLEST, torch.zeros_like(taken), taken)
        taken = taken.view(torch.int16)
    return taken.cpu().contiguous().numpy().tobytes()


def _places(name: str, tensor: Tensor) -> Tensor:
    """Flat indices to read, drawn from the name: all, or one in every row and every column."""
    count = tensor.numel()
    if count <= WHOLE:
        return torch.arange(count)
    seed = hashlib.sha256(name.encode()).digest()
    a, b, c, d = (int.from_bytes(seed[i : i + 4], "little") % (1 << 20) for i in (0, 4, 8, 12))
    columns = tensor.shape[-1]
    rows = count // columns
    if min(rows, columns) == 1:  # a long vector, or a packed matrix laid out as one
        step = -(-count // VECTOR)
        return torch.arange(a % step, count, step)
    row, column = torch.arange(rows), torch.arange(columns)
    one_per_row = row * columns + (row * (2 * a + 1) + b) % columns
    one_per_column = ((column * (2 * c + 1) + d) % rows) * columns + column
    return torch.cat([one_per_row, one_per_column])


def _adapters(model: nn.Module) -> list[object]:
    """Which adapters act, and how strongly: their matrices alone do not tell."""
    if "peft" not in sys.modules:
        return []
    from peft.tuners.tuners_utils import BaseTunerLayer

    return [
        [
            name,
            sorted(module.active_adapters),
            bool(module.disable_adapters),
            sorted(module.merged_adapters),
            {str(k): float(v) for k, v in getattr(module, "scaling", {}).items()},
        ]
        for name, module in model.named_modules()
        if isinstance(module, BaseTunerLayer)
    ]
