"""A network as a list of steps: what an ONNX file says, run with torch.

A step is `[operation, inputs, output, settings]`; inputs name the outputs of earlier steps, tensors
of the network, or `x`, what goes in. The steps are JSON and the tensors safetensors, so no network
needs code of its own here, and none brings any along.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Step = Sequence[Any]


def _padded(x: Tensor, pads: Sequence[int]) -> tuple[Tensor, list[int]]:
    """Uneven borders are added here, even ones by the convolution: (top, left, bottom, right)."""
    top, left, bottom, right = pads
    if (top, left) == (bottom, right):
        return x, [top, left]
    return F.pad(x, (left, right, top, bottom)), [0, 0]


def _convolve(x: Tensor, weight: Tensor, bias: Tensor | None = None, **how: Any) -> Tensor:
    x, padding = _padded(x, how["pads"])
    return F.conv2d(x, weight, bias, how["strides"], padding, how["dilations"], how["group"])


def _convolve_up(x: Tensor, weight: Tensor, bias: Tensor | None = None, **how: Any) -> Tensor:
    return F.conv_transpose2d(x, weight, bias, how["strides"])


def _average(x: Tensor, **how: Any) -> Tensor:
    return F.avg_pool2d(x, how["kernel_shape"], how["strides"])


def _larger(x: Tensor, _region: Any, scales: Tensor, **_: Any) -> Tensor:
    return F.interpolate(x, scale_factor=scales[2:].tolist(), mode="nearest")


def _reshape(x: Tensor, shape: Tensor, **_: Any) -> Tensor:
    sizes = [x.shape[i] if n == 0 else n for i, n in enumerate(shape.long().tolist())]
    return x.reshape(sizes)


def _slice(x: Tensor, *bounds: Tensor, **_: Any) -> Tensor:
    # Loaded in half precision, what is kept in float32 takes its whole numbers along.
    starts, ends, axes = (bound.long().tolist() for bound in bounds[:3])
    for start, end, axis in zip(starts, ends, axes, strict=True):
        x = x[(slice(None),) * axis + (slice(start, end),)]
    return x


OPERATIONS: dict[str, Callable[..., Tensor]] = {
    "Add": lambda a, b: a + b,
    "AveragePool": _average,
    "Cast": lambda x, **_: x,  # only sizes are cast
    "Clip": lambda x, low, high: x.clamp(float(low), float(high)),
    "Concat": lambda *parts, axis: torch.cat(parts, axis),
    "Conv": _convolve,
    "ConvTranspose": _convolve_up,
    "Div": lambda a, b: a / b,
    "GlobalAveragePool": lambda x: x.mean((2, 3), keepdim=True),
    "HardSigmoid": lambda x, alpha, beta: (alpha * x + beta).clamp(0, 1),
    "HardSwish": F.hardswish,
    "MatMul": torch.matmul,
    "Mul": lambda a, b: a * b,
    "Pow": torch.pow,
    "ReduceMean": lambda x, axes: x.mean(axes, keepdim=True),
    "Relu": F.relu,
    "Relu6": F.relu6,
    "Reshape": _reshape,
    "Resize": _larger,
    "Shape": lambda x: torch.tensor(x.shape, device=x.device),
    "Sigmoid": torch.sigmoid,
    "Slice": _slice,
    "Softmax": lambda x, axis: x.softmax(axis),
    "Sqrt": torch.sqrt,
    "Squeeze": lambda x, axes: x.squeeze(axes),
    "Sub": lambda a, b: a - b,
    "Transpose": lambda x, perm: x.permute(perm),
}


class StepNetwork(nn.Module):
    """Runs steps; `tensors` maps the names of its tensors to (shape, dtype), filled on loading."""

    def __init__(self, steps: Sequence[Step], tensors: dict[str, tuple[list[int], str]]) -> None:
        super().__init__()
        self.steps = steps
        for name, (shape, dtype) in tensors.items():
            self.register_buffer(name, torch.zeros(shape, dtype=getattr(torch, dtype)))
        last = {name: i for i, step in enumerate(steps) for name in step[1]}
        self.done_with = [
            [name for name in step[1] if last[name] == i] for i, step in enumerate(steps)
        ]

    def forward(self, x: Tensor) -> Tensor:
        """The last step's output."""
        values: dict[str, Any] = dict(self.named_buffers()) | {"x": x, "": None}
        found = x
        for (operation, inputs, output, settings), over in zip(
            self.steps, self.done_with, strict=True
        ):
            found = OPERATIONS[operation](*(values[name] for name in inputs), **settings)
            for name in over:
                values.pop(name, None)
            values[output] = found
        return found
