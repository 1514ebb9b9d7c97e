"""The tiny VLM's networks: what becomes of ONNX graphs and of EfficientNet-Lite's weights."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageDraw

from tests.tiny_vlm import module

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

onnx = pytest.importorskip("onnx")
networks, step_network = module("networks"), module("step_network")

CHANNELS = 4
EPSILON = 1e-3


class Graph:
    """An ONNX graph that is written down one node after the other, as PP-OCRv4's files are."""

    def __init__(self, seed: int = 0) -> None:
        self.rng = np.random.default_rng(seed)
        self.nodes: list[Any] = []

    def __call__(self, operation: str, *inputs: Any, **settings: Any) -> str:
        """One more node, whose output is returned; inputs that are no names become constants."""
        names = [one if isinstance(one, str) else self.constant(one) for one in inputs]
        output = f"{operation}.{len(self.nodes)}"
        self.nodes.append(onnx.helper.make_node(operation, names, [output], **settings))
        return output

    def constant(self, value: Any) -> str:
        array = np.asarray(value)
        array = array.astype(np.int64 if array.dtype.kind == "i" else np.float32)
        return self("Constant", value=onnx.numpy_helper.from_array(array))

    def normal(self, *shape: int) -> np.ndarray:
        return self.rng.normal(size=shape)

    def convolution(self, x: str, weight: Any = None, **settings: Any) -> str:
        """One that keeps the channels, and the size unless its settings say otherwise."""
        groups = settings.get("group", 1)
        if weight is None:
            weight = self.normal(CHANNELS, CHANNELS // groups, 3, 3)
        how = {"strides": [1, 1], "pads": [1] * 4, "dilations": [1, 1], "group": 1} | settings
        return self("Conv", x, weight, kernel_shape=[3, 3], **how)

    def norm(self, x: str) -> str:
        gain, bias, mean = (self.normal(CHANNELS) for _ in range(3))
        variance = self.rng.uniform(0.5, 2, CHANNELS)
        return self("BatchNormalization", x, gain, bias, mean, variance, epsilon=EPSILON)

    def per_channel(self) -> np.ndarray:
        return self.normal(1, CHANNELS, 1, 1)

    def hard_swish(self, x: str, numbers: tuple[float, ...] = (3, 0, 6, 6)) -> str:
        shift, low, high, divisor = map(float, numbers)
        gate = self("Clip", self("Add", x, shift), low, high)
        return self("Div", self("Mul", x, gate), divisor)

    def model(self) -> Any:
        """What the nodes make of `x`: the last one's output."""
        values = [onnx.helper.make_empty_tensor_value_info(name) for name in ("x", self.last)]
        graph = onnx.helper.make_graph(self.nodes, "graph", values[:1], values[1:])
        opset = onnx.helper.make_opsetid("", 12)
        return onnx.helper.make_model(graph, opset_imports=[opset], ir_version=7)

    @property
    def last(self) -> str:
        return self.nodes[-1].output[0]


def reference(model: Any, x: np.ndarray) -> np.ndarray:
    """What ONNX says comes out."""
    from onnx.reference import ReferenceEvaluator
    from onnx.reference.op_run import OpRun

    class BatchNormalization(OpRun):
        """onnx's own takes the batch's mean where a node of opset 9 to 13 names a momentum."""

        op_domain = ""

        def _run(self, x: Any, *values: Any, epsilon: float, **_: Any) -> tuple[Any]:
            gain, bias, mean, variance = (value[:, None, None] for value in values)
            return (gain * (x - mean) / np.sqrt(variance + epsilon) + bias,)

    with np.errstate(over="ignore"):  # its sigmoid
        return ReferenceEvaluator(model, new_ops=[BatchNormalization]).run(None, {"x": x})[0]


def read(model: Any, folder: Path) -> Any:
    """The network of a model that is saved first."""
    path = folder / "model.onnx"
    onnx.save(model, path)
    return networks.from_onnx(path)


def run(network: Any, x: np.ndarray | Tensor) -> Tensor:
    """A network's output as the assembled model computes it: steps and tensors through files."""
    made = step_network.StepNetwork(json.loads(json.dumps(network.steps)), network.parts())
    made.load_state_dict(network.tensors)
    return made(torch.as_tensor(x))


def run_cast(network: Any, x: np.ndarray) -> Tensor:
    """The same where transformers cast everything to float32, as it does when it loads bfloat16."""
    made = step_network.StepNetwork(network.steps, network.parts())
    made.load_state_dict(network.tensors)
    for name, tensor in list(made.named_buffers()):
        setattr(made, name, tensor.float())
    return made(torch.as_tensor(x))


def operations(network: Any) -> list[str]:
    return [operation for operation, *_ in network.steps]


def checked(graph: Graph, folder: Path, shape: tuple[int, ...] = (2, CHANNELS, 6, 8)) -> Any:
    """The graph's network, which computes what the graph does."""
    model, x = graph.model(), graph.normal(*shape).astype(np.float32)
    network = read(model, folder)
    wanted = torch.tensor(reference(model, x))
    torch.testing.assert_close(run(network, x), wanted, atol=2e-4, rtol=2e-4)
    torch.testing.assert_close(run_cast(network, x), wanted, atol=2e-4, rtol=2e-4)
    return network


@pytest.fixture
def graph() -> Graph:
    return Graph()


# ---- operations


def sizes(graph: Graph, start: int, end: int) -> str:
    return graph("Slice", graph("Shape", "x"), [start], [end], [0])


SINGLE: dict[str, Callable[[Graph], str]] = {
    "Add": lambda g: g("Add", "x", "x"),
    "AveragePool": lambda g: g("AveragePool", "x", kernel_shape=[3, 2], strides=[3, 2]),
    "Cast": lambda g: g("Reshape", "x", g("Cast", g("Shape", "x"), to=onnx.TensorProto.INT64)),
    "Clip": lambda g: g("Clip", "x", -0.5, 0.7),
    "Concat": lambda g: g("Concat", "x", g("Relu", "x"), axis=1),
    "Conv": lambda g: g.convolution("x"),
    "ConvTranspose": lambda g: g(
        "ConvTranspose", "x", g.normal(CHANNELS, 3, 2, 2), strides=[2, 2], kernel_shape=[2, 2]
    ),
    "Div": lambda g: g("Div", "x", 3.0),
    "GlobalAveragePool": lambda g: g("GlobalAveragePool", "x"),
    "HardSigmoid": lambda g: g("HardSigmoid", "x", alpha=0.3, beta=0.4),
    "MatMul": lambda g: g("MatMul", "x", g.normal(8, 5)),
    "Mul": lambda g: g("Mul", "x", "x"),
    "Pow": lambda g: g("Pow", "x", 2.0),
    "ReduceMean": lambda g: g("ReduceMean", "x", axes=[-1]),
    "Relu": lambda g: g("Relu", "x"),
    "Reshape": lambda g: g("Reshape", "x", [0, 2, -1, 8]),
    "Resize": lambda g: g(
        "Resize",
        "x",
        [],
        [1.0, 1.0, 2.0, 4.0],
        mode="nearest",
        coordinate_transformation_mode="asymmetric",
        nearest_mode="floor",
    ),
    "Shape": lambda g: g("Reshape", "x", g("Concat", sizes(g, 0, 2), [-1], axis=0)),
    "Sigmoid": lambda g: g("Sigmoid", "x"),
    "Slice": lambda g: g("Slice", "x", [1, -3], [3, 2**31], [1, 3]),
    "Softmax": lambda g: g("Softmax", "x", axis=3),
    "Sqrt": lambda g: g("Sqrt", g("Mul", "x", "x")),
    "Squeeze": lambda g: g("Squeeze", g("GlobalAveragePool", "x"), axes=[2]),
    "Sub": lambda g: g("Sub", "x", g("Relu", "x")),
    "Transpose": lambda g: g("Transpose", "x", perm=[0, 2, 3, 1]),
}


@pytest.mark.parametrize("operation", SINGLE)
def test_an_operation_does_what_onnx_says(operation, graph, tmp_path):
    SINGLE[operation](graph)
    assert operation in operations(checked(graph, tmp_path))


def test_there_is_a_graph_for_every_operation_that_onnx_has():
    ours = {"HardSwish", "Relu6"}  # of what is folded, and of EfficientNet-Lite
    assert set(SINGLE) == set(step_network.OPERATIONS) - ours


@pytest.mark.parametrize(
    "settings",
    [
        {"pads": [0, 1, 2, 0]},
        {"pads": [0, 1, 0, 1]},
        {"strides": [2, 1]},
        {"dilations": [2, 2], "pads": [2] * 4},
        {"group": CHANNELS},
    ],
    ids=str,
)
def test_a_convolution_keeps_to_its_settings(settings, graph, tmp_path):
    graph.convolution("x", **settings)
    checked(graph, tmp_path)


def test_sizes_stay_on_the_device_of_what_they_measure():
    """Next to a network's own tensors: a list of sizes is made of both."""
    assert step_network.OPERATIONS["Shape"](torch.zeros(2, 3, device="meta")).device.type == "meta"


def test_an_output_is_dropped_after_its_last_use_and_not_before(graph, tmp_path):
    early = graph("Relu", "x")
    middle = graph("Sigmoid", early)
    graph("Concat", graph("Add", middle, early), early, "x", axis=1)
    checked(graph, tmp_path)


# ---- folding


def scaled(graph: Graph, x: str) -> dict[str, Callable[[], str]]:
    """What a convolution before it can take in."""
    return {
        "norm": lambda: graph.norm(x),
        "scalar times": lambda: graph("Mul", x, 1.7),
        "channels times": lambda: graph("Mul", graph.per_channel(), x),
        "scalar plus": lambda: graph("Add", 0.3, x),
        "channels plus": lambda: graph("Add", x, graph.per_channel()),
    }


@pytest.mark.parametrize("kind", list(scaled(Graph(), "")))
@pytest.mark.parametrize("groups", [1, CHANNELS])
def test_a_scale_or_shift_goes_into_the_convolution_before_it(kind, groups, graph, tmp_path):
    scaled(graph, graph.convolution("x", group=groups))[kind]()
    assert operations(checked(graph, tmp_path)) == ["Conv"]


def test_all_that_follows_a_convolution_goes_into_it(graph, tmp_path):
    at = graph.convolution("x")
    for kind in ("norm", "scalar times", "channels plus", "scalar plus", "channels times"):
        at = scaled(graph, at)[kind]()
    network = checked(graph, tmp_path)
    assert operations(network) == ["Conv"]
    assert len(network.tensors) == 2  # weight and bias; nothing of what was folded is kept


def test_a_bias_of_the_convolution_is_scaled_with_it(graph, tmp_path):
    weight, bias = graph.normal(CHANNELS, CHANNELS, 1, 1), graph.normal(CHANNELS)
    how = {"strides": [1, 1], "pads": [0] * 4, "dilations": [1, 1], "group": 1}
    graph.norm(graph("Conv", "x", weight, bias, kernel_shape=[1, 1], **how))
    assert operations(checked(graph, tmp_path)) == ["Conv"]


def test_shift_and_norm_go_into_a_transposed_convolution(graph, tmp_path):
    weight = graph.normal(3, CHANNELS, 2, 2)  # channels: those of the input come first
    up = graph("ConvTranspose", "x", weight, strides=[2, 2], kernel_shape=[2, 2])
    graph.norm(graph("Add", up, graph.per_channel()))
    assert operations(checked(graph, tmp_path, (2, 3, 4, 5))) == ["ConvTranspose"]


@pytest.mark.parametrize("kind", ["scalar times", "channels times", "scalar plus", "channels plus"])
def test_what_is_used_twice_is_not_changed_for_one_use(kind, graph, tmp_path):
    at = graph.convolution("x")
    graph("Sub", scaled(graph, at)[kind](), graph("Relu", at))
    assert len(operations(checked(graph, tmp_path))) == 4


def test_what_is_used_twice_after_folding_is_folded_no_further(graph, tmp_path):
    at = graph.norm(graph.convolution("x"))
    graph("Concat", graph("Mul", at, 2.0), at, axis=1)
    assert operations(checked(graph, tmp_path)) == ["Conv", "Mul", "Concat"]


def test_what_differs_along_a_row_is_no_scale_of_channels(graph, tmp_path):
    """Even where a row is as long as there are channels."""
    graph("Mul", graph.convolution("x"), graph.normal(CHANNELS))
    assert operations(checked(graph, tmp_path, (2, CHANNELS, 3, CHANNELS))) == ["Conv", "Mul"]


def test_two_convolutions_of_one_weight_are_folded_apart(graph, tmp_path):
    weight = graph.constant(graph.normal(CHANNELS, CHANNELS, 3, 3))
    first = graph("Mul", graph.convolution("x", weight), 2.0)
    graph("Add", graph.convolution(first, weight), 5.0)
    assert operations(checked(graph, tmp_path)) == ["Conv", "Conv"]


def test_hard_swish_becomes_one_step(graph, tmp_path):
    graph.hard_swish(graph.norm(graph.convolution("x")))
    assert operations(checked(graph, tmp_path)) == ["Conv", "HardSwish"]


@pytest.mark.parametrize("numbers", [(2, 0, 6, 6), (3, 1, 6, 6), (3, 0, 5, 6), (3, 0, 6, 5)])
def test_other_numbers_are_no_hard_swish(numbers, graph, tmp_path):
    graph.hard_swish("x", numbers)
    assert "HardSwish" not in operations(checked(graph, tmp_path))


def test_a_hard_swish_of_which_a_part_is_used_elsewhere_stays(graph, tmp_path):
    gate = graph("Clip", graph("Add", "x", 3.0), 0.0, 6.0)
    graph("Sub", graph("Div", graph("Mul", "x", gate), 6.0), gate)
    checked(graph, tmp_path)


@given(st.data())
def test_folding_changes_no_network(data):
    """Of convolutions, scales, shifts, gates and shortcuts in any order."""
    graph = Graph(data.draw(st.integers(0, 999)))
    made = ["x"]
    for _ in range(data.draw(st.integers(1, 10))):
        at = data.draw(st.sampled_from([made[-1]] * 3 + made))
        kinds = scaled(graph, at) | {
            "convolution": lambda at=at: graph.convolution(at, graph.normal(4, 4, 3, 3) / 6),
            "norm": lambda at=at: graph.norm(graph.convolution(at, graph.normal(4, 4, 3, 3) / 6)),
            "relu": lambda at=at: graph("Relu", at),
            "hard swish": lambda at=at: graph.hard_swish(at),
            "shortcut": lambda at=at: graph("Add", at, made[0]),
        }
        made.append(kinds[data.draw(st.sampled_from(sorted(kinds)))]())
    with TemporaryDirectory() as folder:
        checked(graph, Path(folder), (1, CHANNELS, 3, 4))


# ---- the files themselves


@pytest.mark.parametrize("part", ["detector", "recogniser"])
def test_what_is_read_from_pp_ocr_computes_what_its_file_does(part):
    assemble = module("assemble")
    try:
        path = assemble.packaged(*assemble.PARTS[part])
    except FileNotFoundError as exc:
        pytest.skip(str(exc))
    image = Image.new("L", (64, 64), 255)
    ImageDraw.Draw(image).text((4, 14), "cat", font_size=36, fill=0)
    height = 48 if part == "recogniser" else 64
    flat = np.asarray(image.crop((0, 8, 64, 8 + height)), np.float32) / 127.5 - 1
    x = np.stack([flat] * 3)[None]
    network, wanted = networks.from_onnx(path), torch.tensor(reference(onnx.load(path), x))
    torch.testing.assert_close(run(network, x), wanted, atol=1e-4, rtol=1e-3)
    assert wanted.max() > 0.9  # it sees something
    assert not {"BatchNormalization", "Clip"} & set(operations(network))
    assert len(network.characters) == (6623 if part == "recogniser" else 1)


# ---- EfficientNet-Lite

BLOCKS = [  # kernel, stride, widens; Tan and Le 2019, table 1, at Lite2's depth
    *[(3, 1)],
    *[(3, 2), (3, 1), (3, 1)],
    *[(5, 2), (5, 1), (5, 1)],
    *[(3, 2), (3, 1), (3, 1), (3, 1)],
    *[(5, 1)] * 4,
    *[(5, 2), (5, 1), (5, 1), (5, 1), (5, 1)],
    *[(3, 1)],
]
WIDTHS = [3, *[2] * 1, *[4] * 3, *[3] * 3, *[5] * 4, *[6] * 4, *[7] * 5, 4]  # stem first


def efficientnet_weights(seed: int) -> dict[str, Tensor]:
    """Random weights with the names of EfficientNet-Lite2 and few channels."""
    generator = torch.Generator().manual_seed(seed)
    weights = {}

    def add(name: str, norm: str, *shape: int) -> None:
        fan = shape[1] * shape[2] * shape[3]
        weights[f"{name}.weight"] = torch.randn(shape, generator=generator) * (2 / fan) ** 0.5
        for key in ("weight", "running_var"):
            weights[f"{norm}.{key}"] = torch.rand(shape[0], generator=generator) + 0.5
        for key in ("bias", "running_mean"):
            weights[f"{norm}.{key}"] = torch.randn(shape[0], generator=generator) / 3

    add("_conv_stem", "_bn0", WIDTHS[0], 3, 3, 3)
    for i, ((kernel, _), (before, after)) in enumerate(zip(BLOCKS, pairwise(WIDTHS), strict=True)):
        prefix, inner = f"_blocks.{i}", before if i == 0 else 2 * before
        if i:
            add(f"{prefix}._expand_conv", f"{prefix}._bn0", inner, before, 1, 1)
        add(f"{prefix}._depthwise_conv", f"{prefix}._bn1", inner, 1, kernel, kernel)
        add(f"{prefix}._project_conv", f"{prefix}._bn2", after, inner, 1, 1)
    add("_conv_head", "_bn1", 9, WIDTHS[-1], 1, 1)
    return weights


def efficientnet(weights: dict[str, Tensor], x: Tensor) -> Tensor:
    """EfficientNet-Lite2 as TensorFlow has it: nothing folded, borders as its SAME says."""

    def layer(name: str, norm: str, x: Tensor, stride: int = 1, bound: bool = True) -> Tensor:
        weight = weights[f"{name}.weight"]
        kernel = weight.shape[2]
        last = (x.shape[2] - 1) // stride * stride  # where the last window starts
        missing = max(last + kernel - x.shape[2], 0)
        x = F.pad(x, [missing // 2, (missing + 1) // 2] * 2)
        x = F.conv2d(x, weight, stride=stride, groups=x.shape[1] // weight.shape[1])
        mean, variance = (weights[f"{norm}.running_{key}"] for key in ("mean", "var"))
        gain, bias = (weights[f"{norm}.{key}"] for key in ("weight", "bias"))
        x = F.batch_norm(x, mean, variance, gain, bias, eps=EPSILON)
        return x.clamp(0, 6) if bound else x

    x = layer("_conv_stem", "_bn0", x, 2)
    for i, (_, stride) in enumerate(BLOCKS):
        prefix, start = f"_blocks.{i}", x
        if i:
            x = layer(f"{prefix}._expand_conv", f"{prefix}._bn0", x)
        x = layer(f"{prefix}._depthwise_conv", f"{prefix}._bn1", x, stride)
        x = layer(f"{prefix}._project_conv", f"{prefix}._bn2", x, bound=False)
        x = x + start if stride == 1 and x.shape == start.shape else x
    return layer("_conv_head", "_bn1", x)


@pytest.mark.parametrize("size", [260, 97, 64])
def test_efficientnet_is_what_its_weights_say(size):
    for seed in range(2):
        weights = efficientnet_weights(seed)
        x = torch.randn(1, 3, size, size, generator=torch.Generator().manual_seed(seed))
        found = run(networks.efficientnet_lite(weights, size), x)
        torch.testing.assert_close(found, efficientnet(weights, x), atol=1e-4, rtol=1e-4)
        assert found.std() > 0.1  # something goes through


@pytest.mark.parametrize("change", ["fewer", "more"])
def test_weights_of_another_efficientnet_are_refused(change):
    weights = efficientnet_weights(0)
    if change == "fewer":
        weights = {name: w for name, w in weights.items() if not name.startswith("_blocks.20.")}
    else:
        weights["_blocks.21._project_conv.weight"] = torch.zeros(1)
    with pytest.raises(ValueError, match=r"has 21 blocks; got 2\d"):
        networks.efficientnet_lite(weights, 64)
