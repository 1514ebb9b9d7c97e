"""Networks as steps and tensors: from the ONNX files of PP-OCRv4, from EfficientNet-Lite's weights.

What can be is folded: batch normalisation, scales and shifts go into the convolution before them.
"""

import math
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

CONVOLUTIONS = ("Conv", "ConvTranspose")


@dataclass
class Network:
    """Steps as `step_network` runs them, and their tensors."""

    steps: list[tuple[str, list[str], str, dict[str, Any]]]
    tensors: dict[str, Tensor]
    characters: list[str] = field(default_factory=list)

    def parts(self) -> dict[str, tuple[list[int], str]]:
        """Shape and type of every tensor."""
        return {
            name: (list(value.shape), str(value.dtype).removeprefix("torch."))
            for name, value in self.tensors.items()
        }


def from_onnx(path: Path) -> Network:
    """The network in an ONNX file."""
    import onnx

    model = onnx.load(path)
    tensors: dict[str, Tensor] = {}
    steps = []
    for node in model.graph.node:
        settings = {a.name: _plain(onnx.helper.get_attribute_value(a)) for a in node.attribute}
        if node.op_type == "Constant":
            array = onnx.numpy_helper.to_array(node.attribute[0].t)
            tensors[node.output[0]] = torch.tensor(array)
        else:
            steps.append((node.op_type, list(node.input), node.output[0], settings))
    notes = {prop.key: prop.value for prop in model.metadata_props}
    characters = notes.get("character", "").split("\n")
    return _named(Network(_folded(steps, tensors), tensors, characters))


def _plain(value: Any) -> Any:
    """What JSON can hold."""
    if isinstance(value, bytes):
        return value.decode()
    return list(value) if hasattr(value, "__iter__") and not isinstance(value, str) else value


def _folded(steps: list[Any], tensors: dict[str, Tensor]) -> list[Any]:
    """The steps with every scale and shift in the convolution before it, and hard swish as one."""
    uses = Counter(name for _, inputs, _, _ in steps for name in inputs)
    out: list[Any] = []
    renamed: dict[str, str] = {}
    for operation, inputs, output, settings in steps:
        inputs = [renamed.get(name, name) for name in inputs]
        before = out[-1] if out else None
        values = [tensors[name] for name in inputs if name in tensors]
        if (
            before is not None
            and before[0] in CONVOLUTIONS
            and before[2] in inputs
            and uses[before[2]] == 1
            and len(values) == len(inputs) - 1
            and _of_channels(operation, values)
        ):
            scale, shift = _scale_and_shift(operation, values, settings)
            _fold(before, scale, shift, tensors)
            uses[before[2]] = uses[output]
            renamed[output] = before[2]
            continue
        if operation in CONVOLUTIONS:
            settings = {k: v for k, v in settings.items() if k != "kernel_shape"}
        if operation == "Resize":
            settings = {}
        out.append([operation, inputs, output, settings])
        if _hard_swish(out[-4:], tensors, uses):
            out[-4:] = [["HardSwish", out[-4][1][:1], output, {}]]
    return out


def _of_channels(operation: str, values: list[Tensor]) -> bool:
    """Is this a scale or a shift by one number, or by one a channel?"""
    if operation in ("Mul", "Add"):
        return values[0].numel() == 1 or values[0].shape[-3:-2] == (values[0].numel(),)
    return operation == "BatchNormalization"


def _hard_swish(steps: list[Any], tensors: dict[str, Tensor], uses: Counter[str]) -> bool:
    """Are these steps x * clip(x + 3, 0, 6) / 6, and their inner results used nowhere else?"""
    if [step[0] for step in steps] != ["Add", "Clip", "Mul", "Div"]:
        return False
    (x, three), (_, low, high), _, (_, six) = (step[1] for step in steps)
    added, gate, product = (step[2] for step in steps[:3])
    wanted = [[x, three], [added, low, high], [x, gate], [product, six]]
    numbers = [tensors[name] for name in (three, low, high, six) if name in tensors]
    return (
        [step[1] for step in steps] == wanted
        and [n for number in numbers for n in number.flatten().tolist()] == [3, 0, 6, 6]
        and all(uses[name] == 1 for name in (added, gate, product))
    )


def _scale_and_shift(
    operation: str, values: list[Tensor], settings: dict[str, Any]
) -> tuple[Tensor, Tensor]:
    if operation == "Mul":
        return values[0].flatten(), torch.zeros(1)
    if operation == "Add":
        return torch.ones(1), values[0].flatten()
    gain, bias, mean, variance = values
    scale = gain / (variance + settings["epsilon"]).sqrt()
    return scale, bias - mean * scale


def _fold(step: list[Any], scale: Tensor, shift: Tensor, tensors: dict[str, Tensor]) -> None:
    """Put `x * scale + shift` after a convolution into its weight and bias.

    They become its own: another convolution may have the same weight.
    """
    weight = tensors[step[1][1]].double()
    channels = 0 if step[0] == "Conv" else 1
    shape = [1] * weight.dim()
    shape[channels] = -1
    size = weight.shape[channels]
    bias = tensors[step[1][2]].double() if len(step[1]) > 2 else torch.zeros(size).double()
    own = [step[2] + ".weight", step[2] + ".bias"]
    tensors[own[0]] = (weight * scale.double().view(shape)).float()
    tensors[own[1]] = (bias * scale.double() + shift.double()).float()
    step[1] = [step[1][0], *own]


def _named(network: Network) -> Network:
    """Short names, and only the tensors that a step uses."""
    names: dict[str, str] = {"x": "x", "": ""}
    tensors = {}
    steps = []
    for operation, inputs, output, settings in network.steps:
        for name in inputs:
            if name not in names:
                names[name] = f"t{len(tensors)}"
                tensors[names[name]] = network.tensors[name].contiguous()
        names[output] = f"s{len(steps)}"
        steps.append((operation, [names[n] for n in inputs], names[output], settings))
    return Network(steps, tensors, network.characters)


# What one stage of EfficientNet repeats: times, stride (Tan and Le 2019, arXiv 1905.11946, table 1;
# depth 1.2 for Lite2, whose first and last stage stay as they are).
STAGES = ((1, 1), (3, 2), (3, 2), (4, 2), (4, 1), (5, 2), (1, 1))
NORM, EPSILON = ("weight", "bias", "running_mean", "running_var"), 1e-3  # batch normalisation


def efficientnet_lite(weights: dict[str, Tensor], size: int) -> Network:
    """The feature extractor of EfficientNet-Lite, (n, 3, size, size) -> (n, 1280, s, s)."""
    blocks = {int(found[1]) for key in weights if (found := re.match(r"_blocks\.(\d+)\.", key))}
    if len(blocks) != (wanted := len(list(_strides()))):
        raise ValueError(f"EfficientNet-Lite2 has {wanted} blocks; got {len(blocks)}")
    tensors: dict[str, Tensor] = {}
    steps: list[Any] = []

    def convolve(source: str, name: str, norm: str, stride: int, side: int) -> str:
        weight = weights[f"{name}.weight"]
        whole = max((math.ceil(side / stride) - 1) * stride + weight.shape[2] - side, 0)
        pads = [whole // 2, whole // 2, whole - whole // 2, whole - whole // 2]
        values = [weights[f"{norm}.{key}"] for key in NORM]
        tensors[name] = weight
        groups = weight.shape[0] if weight.shape[1] == 1 else 1
        step = ["Conv", [source, name], name + ".out", _how(stride, pads, groups)]
        _fold(step, *_scale_and_shift("BatchNormalization", values, {"epsilon": EPSILON}), tensors)
        steps.append(step)
        return str(step[2])

    def bounded(source: str) -> str:
        steps.append(["Relu6", [source], source + ".relu", {}])
        return source + ".relu"

    at = bounded(convolve("x", "_conv_stem", "_bn0", 2, size))
    side = math.ceil(size / 2)
    for block, stride in enumerate(_strides()):
        start, prefix = at, f"_blocks.{block}"
        if f"{prefix}._expand_conv.weight" in weights:
            at = bounded(convolve(at, f"{prefix}._expand_conv", f"{prefix}._bn0", 1, side))
        at = bounded(convolve(at, f"{prefix}._depthwise_conv", f"{prefix}._bn1", stride, side))
        side = math.ceil(side / stride)
        at = convolve(at, f"{prefix}._project_conv", f"{prefix}._bn2", 1, side)
        inner = weights[f"{prefix}._project_conv.weight"].shape[0]
        outer = weights[f"{prefix}._expand_conv.weight"].shape[1] if block else None
        if stride == 1 and inner == outer:
            steps.append(["Add", [at, start], at + ".sum", {}])
            at += ".sum"
    bounded(convolve(at, "_conv_head", "_bn1", 1, side))
    return _named(Network(steps, tensors))


def _strides() -> Iterator[int]:
    for times, stride in STAGES:
        yield from [stride] + [1] * (times - 1)


def _how(stride: int, pads: list[int], groups: int) -> dict[str, Any]:
    return {"strides": [stride] * 2, "pads": pads, "dilations": [1, 1], "group": groups}
