"""4-bit weights are read in the order they were stored in, and left alone."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from guardrail.model.packed import four_bit_parts, is_four_bit, own_tensors


class Params4bit(nn.Parameter):
    """Stands for bitsandbytes' class of this name, which needs the package."""

    quant_state: Any


def weight(data: torch.Tensor, **state: Any) -> Any:
    made = Params4bit(data, requires_grad=False)
    made.quant_state = SimpleNamespace(quant_type="nf4", blocksize=64, nested=False, **state)
    return made


def slowly_packed(codes: torch.Tensor) -> torch.Tensor:
    """The CPU kernel's order, value by value: (rows, columns) of 0..15 -> (rows, columns / 2)."""
    rows, columns = codes.shape
    line = []
    for block in range(0, rows, 32):
        for column in range(0, columns, 2):
            values = [int(codes[block + row, column + k]) for row in range(32) for k in (0, 1)]
            line += [(values[32 + i] << 4) | values[i] for i in range(32)]
    return torch.tensor(line, dtype=torch.uint8).reshape(rows, columns // 2)


@pytest.mark.parametrize(("rows", "columns"), [(32, 64), (96, 128), (64, 192)])
def test_both_orders_of_a_weight_read_alike(rows: int, columns: int) -> None:
    generator = torch.Generator().manual_seed(rows)
    codes = torch.randint(0, 16, (rows, columns), generator=generator)
    scales = torch.rand(rows, columns // 64, generator=generator)
    stored = (codes[:, ::2] << 4 | codes[:, 1::2]).to(torch.uint8).reshape(-1, 1)
    shape = torch.Size((rows, columns))
    as_stored = weight(stored, shape=shape, absmax=scales.reshape(-1))
    re_ordered = weight(
        slowly_packed(codes),
        shape=shape,
        absmax=scales.bfloat16().T.contiguous(),
        packing_format_for_cpu=True,
    )
    one, other = (dict(four_bit_parts("w", w)) for w in (as_stored, re_ordered))
    assert list(one) == ["w.codes", "w.scales", "w.format"] == list(other)
    assert torch.equal(one["w.codes"], stored.reshape(rows, -1))
    for name, value in one.items():
        same = value == other[name]
        assert bool(same.all() if isinstance(same, torch.Tensor) else same), name


@pytest.mark.parametrize("change", ["code", "scale", "type"])
def test_every_part_of_a_weight_counts(change: str) -> None:
    def parts(**differing: Any) -> str:
        data = torch.zeros(32 * 32, 1, dtype=torch.uint8)
        made = weight(data, shape=torch.Size((32, 64)), absmax=torch.ones(32))
        if "code" in differing:
            made.data[5] = 1
        if "scale" in differing:
            made.quant_state.absmax[3] = 2.0
        if "type" in differing:
            made.quant_state.quant_type = "fp4"
        return str(
            [p.tolist() if isinstance(p, torch.Tensor) else p for _, p in four_bit_parts("w", made)]
        )

    assert parts() == parts()
    assert parts() != parts(**{change: True})


def test_a_four_bit_layer_is_never_asked_to_save_itself() -> None:
    class Layer(nn.Linear):
        def _save_to_state_dict(self, *_: Any) -> None:
            raise AssertionError("bitsandbytes changes the layer here")

    layer = Layer(64, 32)
    layer.weight = weight(
        torch.zeros(1024, 1, dtype=torch.uint8), shape=torch.Size((32, 64)), absmax=torch.ones(32)
    )
    found = own_tensors(layer, "x.")
    assert list(found) == ["x.weight", "x.bias"]
    assert found["x.weight"] is layer.weight


def test_other_layers_save_themselves_as_ever() -> None:
    class Layer(nn.Linear):
        def get_extra_state(self) -> int:
            return 7

    layer = Layer(4, 4)
    layer.register_buffer("kept", torch.ones(1))
    layer.register_buffer("passing", torch.ones(1), persistent=False)
    assert own_tensors(layer, "x.") == layer.state_dict(prefix="x.", keep_vars=True)
    assert not is_four_bit(layer.weight)
    assert not is_four_bit(None)
    assert not is_four_bit(Params4bit(torch.zeros(1)))  # not quantised yet
