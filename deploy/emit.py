"""Write BlockSpecs as an ONNX graph: the one emitter for what is timed and for what ships.

With constant-filled weights (ConstantOfShape nodes, which runtimes fold when they load the file) the graphs are tiny and
a device can time every block of a space; with folded trained weights the same graph is the file that ships.
Opset 17, IR 8: read by ONNX Runtime from 1.12 on.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
from numpy.typing import DTypeLike, NDArray
from onnx import TensorProto, helper, numpy_helper

from ofa.block_spec import BlockSpec
from ofa.errors import OfaError
from ofa.slots import se_channels

OPSET, IR_VERSION = 17, 8
Weights = Mapping[str, NDArray[np.float32]]
Scales = Mapping[str, tuple[float, int]]  # of activations by tensor name: step, and the integer that stands for zero

CLIPPING = ("Relu", "Clip")
SIGNED, UNSIGNED = (1 / 64, 128), (1 / 64, 0)  # of activations of order one; up to 4 < 6, so that ReLU6 needs no Clip


class Graph:
    """An ONNX graph under construction. `weights` None fills every tensor with a constant instead."""

    def __init__(self, weights: Weights | None) -> None:
        self.weights = weights
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: dict[str, onnx.TensorProto] = {}

    def node(self, op: str, inputs: list[str], name: str, **attributes: Any) -> str:
        """Append a node and return the name of its output."""
        self.nodes.append(helper.make_node(op, inputs, [name], name=name, **attributes))
        return name

    def values(self, name: str, shape: tuple[int, ...], fan_in: int) -> NDArray[np.float32]:
        """Return a weight tensor, or the single value that fills it and keeps activations of order one."""
        if self.weights is None:
            return np.full([1] * len(shape), 1.0 / fan_in, np.float32)
        tensor = self.weights[name]
        assert tensor.shape == shape, f"{name}: {tensor.shape} is not {shape}"
        return np.ascontiguousarray(tensor, dtype=np.float32)

    def tensor(self, name: str, values: NDArray[np.generic], shape: tuple[int, ...]) -> str:
        """Store a tensor of `shape` whose `values` are all of it or, without weights, the one that fills it."""
        if self.weights is not None:
            return self.constant(name, values)
        value = numpy_helper.from_array(values.reshape(1), "value")
        return self.node("ConstantOfShape", [self.constant(f"{name}.shape", np.array(shape, np.int64))], name, value=value)

    def constant(self, name: str, value: NDArray[np.generic]) -> str:
        self.initializers[name] = numpy_helper.from_array(value, name)
        return name

    def activation(self, act: str, x: str, name: str) -> str:
        if act == "none":
            return x
        if act == "relu6":
            bounds = [self.constant(f"const.{v}", np.array(v, np.float32)) for v in (0.0, 6.0)]
            return self.node("Clip", [x, *bounds], name)
        if act == "swish":
            return self.node("Mul", [x, self.node("Sigmoid", [x], f"{name}.sigmoid")], name)
        return self.node({"relu": "Relu", "h_swish": "HardSwish"}[act], [x], name)

    def conv(
        self,
        x: str,
        name: str,
        in_channels: int,
        out_channels: int,
        kernel_size: int = 1,
        stride: int = 1,
        *,
        groups: int = 1,
        act: str = "none",
        bias: bool = True,
    ) -> str:
        """Convolution with "same" padding, then the activation."""
        square, pads = [kernel_size] * 2, [kernel_size // 2] * 4
        window = {"kernel_shape": square, "strides": [stride] * 2, "pads": pads, "group": groups}
        out = self.layer("Conv", x, name, (out_channels, in_channels // groups, *square), bias=bias, **window)
        return self.activation(act, out, f"{name}.act")

    def layer(self, op: str, x: str, name: str, shape: tuple[int, ...], *, bias: bool, **attributes: Any) -> str:
        """Append a Conv or Gemm with its weights; `shape` is that of the weight tensor, output channels first."""
        fan_in = math.prod(shape[1:])
        inputs = [x, self.tensor(f"{name}.weight", self.values(f"{name}.weight", shape, fan_in), shape)]
        if bias:
            inputs.append(self.tensor(f"{name}.bias", self.values(f"{name}.bias", shape[:1], fan_in), shape[:1]))
        return self.node(op, inputs, f"{name}.{op.lower()}", **attributes)


class QuantizedGraph(Graph):
    """The same operators in static int8: what one takes passes a pair that quantises and dequantises it (QDQ).

    Activations are asymmetric uint8, weights symmetric int8 with a scale for each output channel, biases int32. ONNX Runtime
    fuses an operator with the pairs around it (QLinearConv, QGemm, QLinearAdd, ...). Before a clipping activation stands none:
    the zero point of its output clips as it does. HardSwish and HardSigmoid have no integer kernel there and run in float.
    """

    def __init__(self, weights: Weights | None, scales: Scales | None) -> None:
        super().__init__(weights)
        self.scales = defaultdict(lambda: SIGNED) if scales is None else dict(scales)
        self.pairs: dict[str, str] = {}  # tensor -> what comes out of its pair

    def node(self, op: str, inputs: list[str], name: str, **attributes: Any) -> str:
        if op in ("MaxPool", "Flatten"):  # move integers as they are
            self.scales[name] = self.scales[inputs[0]]
        elif op in CLIPPING and self.weights is None:
            self.scales[name] = UNSIGNED
        logits = op == "Identity" and inputs[0].endswith(".gemm")  # stay float: rounded ones would tie
        if op not in CLIPPING and op != "ConstantOfShape" and not logits:
            inputs = [self.pair(x) for x in inputs]
        return super().node(op, inputs, name, **attributes)

    def pair(self, x: str) -> str:
        """Return what comes out of a tensor's pair."""
        if x not in self.pairs:
            scale, zero_point = self.scales[x]
            grid = [
                self.constant(f"{x}.scale", np.array(scale, np.float32)),
                self.constant(f"{x}.zero_point", np.array(zero_point, np.uint8)),
            ]
            quantised = super().node("QuantizeLinear", [x, *grid], f"{x}.quantised")
            self.pairs[x] = super().node("DequantizeLinear", [quantised, *grid], f"{x}.dequantised")
        return self.pairs[x]

    def layer(self, op: str, x: str, name: str, shape: tuple[int, ...], *, bias: bool, **attributes: Any) -> str:
        fan_in, (x_scale, _) = math.prod(shape[1:]), self.scales[x]
        weight = self.values(f"{name}.weight", shape, fan_in)
        shift = self.values(f"{name}.bias", shape[:1], fan_in) if bias else np.zeros(1, np.float32)
        largest = np.abs(weight).max(axis=tuple(range(1, weight.ndim)), initial=1e-30)
        # the bias of a channel whose weights have all but vanished must still fit into int32
        scale = np.maximum(largest / 127, np.abs(shift) / (x_scale * 2**30)).astype(np.float32)  # (out_channels,)
        inputs = [self.pair(x), self.integers(f"{name}.weight", weight, scale, np.int8, shape)]
        if bias:
            inputs.append(self.integers(f"{name}.bias", shift, x_scale * scale, np.int32, shape[:1]))
        return super().node(op, inputs, f"{name}.{op.lower()}", **attributes)

    def integers(
        self, name: str, values: NDArray[np.float32], scale: NDArray[np.float32], dtype: DTypeLike, shape: tuple[int, ...]
    ) -> str:
        """Store weights as integers and return what dequantises them; `scale` has one value for each output channel."""
        steps = np.rint(values / scale.reshape(-1, *[1] * (values.ndim - 1))).astype(dtype)
        stored = [
            self.tensor(f"{name}.quantised", steps, shape),
            self.tensor(f"{name}.scale", scale, shape[:1]),
            self.tensor(f"{name}.zero_point", np.zeros(scale.shape, dtype), shape[:1]),  # optional, but QGemm wants it
        ]
        return super().node("DequantizeLinear", stored, name, axis=0)


def _conv(g: Graph, x: str, name: str, spec: BlockSpec) -> str:
    out = g.conv(x, name, spec.in_channels, spec.out_channels, spec.kernel_size, spec.stride, act=spec.act)
    return _add_shortcut(g, x, out, name, spec)


def _mbconv(g: Graph, x: str, name: str, spec: BlockSpec) -> str:
    hidden = spec.hidden_channels
    out = x if hidden == spec.in_channels else g.conv(x, f"{name}.expand", spec.in_channels, hidden, act=spec.act)
    out = g.conv(out, f"{name}.depthwise", hidden, hidden, spec.kernel_size, spec.stride, groups=hidden, act=spec.act)
    if spec.se:
        mean = g.node("GlobalAveragePool", [out], f"{name}.se.mean")
        squeezed = g.conv(mean, f"{name}.se.reduce", hidden, se_channels(hidden), act="relu")
        gate = g.conv(squeezed, f"{name}.se.expand", se_channels(hidden), hidden)
        gate = g.node("HardSigmoid", [gate], f"{name}.se.gate", alpha=1 / 6, beta=0.5)
        out = g.node("Mul", [out, gate], f"{name}.se")
    out = g.conv(out, f"{name}.project", hidden, spec.out_channels)
    return _add_shortcut(g, x, out, name, spec)


def _bottleneck(g: Graph, x: str, name: str, spec: BlockSpec) -> str:
    hidden = spec.hidden_channels
    out = g.conv(x, f"{name}.reduce", spec.in_channels, hidden, act=spec.act)
    out = g.conv(out, f"{name}.spatial", hidden, hidden, spec.kernel_size, spec.stride, act=spec.act)
    out = g.conv(out, f"{name}.expand", hidden, spec.out_channels)
    return g.activation(spec.act, _add_shortcut(g, x, out, name, spec), f"{name}.act")


def _add_shortcut(g: Graph, x: str, branch: str, name: str, spec: BlockSpec) -> str:
    """Add what the spec's shortcut makes of the block's input (ofa.block_spec.SHORTCUTS)."""
    if spec.shortcut == "none":
        return branch
    if spec.shortcut != "identity" and spec.stride > 1:
        missing = -spec.resolution % spec.stride  # pixels that the last window lacks
        if spec.shortcut == "pool_conv_bn":  # it averages over those that are there
            pads, count = [0, 0, missing, missing], 0
        else:
            pads, count = [(missing + 1) // 2] * 4, 1
        square = {"kernel_shape": [spec.stride] * 2, "strides": [spec.stride] * 2}
        x = g.node("AveragePool", [x], f"{name}.shortcut.pool", pads=pads, count_include_pad=count, **square)
    if spec.shortcut in ("pool_conv", "pool_conv_bn"):
        bias = spec.shortcut == "pool_conv_bn"
        x = g.conv(x, f"{name}.shortcut.conv", spec.in_channels, spec.out_channels, bias=bias)
    return g.node("Add", [branch, x], name)


def _maxpool(g: Graph, x: str, name: str, spec: BlockSpec) -> str:
    window = {"kernel_shape": [spec.kernel_size] * 2, "strides": [spec.stride] * 2, "pads": [spec.kernel_size // 2] * 4}
    return g.node("MaxPool", [x], name, **window)


def _pool(g: Graph, x: str, name: str, spec: BlockSpec) -> str:
    return g.node("Flatten", [g.node("GlobalAveragePool", [x], f"{name}.mean")], name, axis=1)


def _linear(g: Graph, x: str, name: str, spec: BlockSpec) -> str:
    out = g.layer("Gemm", x, name, (spec.out_channels, spec.in_channels), bias=spec.bias, transB=1)
    return g.activation(spec.act, out, f"{name}.act")


EMITTERS = {
    "conv": _conv,
    "mbconv": _mbconv,
    "bottleneck": _bottleneck,
    "maxpool": _maxpool,
    "pool": _pool,
    "linear": _linear,
}


def emit(
    blocks: Mapping[str, BlockSpec],
    weights: Weights | None = None,
    *,
    precision: str = "fp32",
    scales: Scales | None = None,
    metadata: Mapping[str, str] | None = None,
) -> bytes:
    """Return the bytes of an ONNX model that runs the blocks in order, equal for equal input.

    Args:
        blocks: name -> block, in execution order.
        weights: folded weights under "<block>.<layer>.weight" / ".bias" (deploy.export.fold); None = constants.
        precision: "fp32" or "int8".
        scales: int8 only: (scale, zero point) of every activation, by its tensor's name in the fp32 graph; None = constants.
        metadata: key -> text for the file's metadata_props.
    Raises:
        OfaError: if no graph of this precision can be written.
    """
    if precision not in ("fp32", "int8"):
        raise OfaError(
            f"precision {precision!r} is not one of a graph, expected fp32 or int8; bf16 and fp16 are how a device runs fp32"
        )
    if precision == "int8" and (weights is None) != (scales is None):
        raise OfaError("int8 needs the scales of all activations with trained weights, and no scales with constant ones")
    graph = Graph(weights) if precision == "fp32" else QuantizedGraph(weights, scales)
    specs = list(blocks.values())
    x = "images"
    for name, spec in blocks.items():
        x = EMITTERS[spec.kind](graph, x, name, spec)
    graph.node("Identity", [x], "logits")
    first, last = specs[0], specs[-1]
    model = helper.make_model(
        helper.make_graph(
            graph.nodes,
            "ofa",
            [helper.make_tensor_value_info("images", TensorProto.FLOAT, ["batch", *input_shape(first)])],
            [helper.make_tensor_value_info("logits", TensorProto.FLOAT, _output_shape(last))],
            list(graph.initializers.values()),
        ),
        opset_imports=[helper.make_opsetid("", OPSET)],
        ir_version=IR_VERSION,
        producer_name="ofa-toolkit",
    )
    helper.set_model_props(model, dict(sorted((metadata or {}).items())))
    return model.SerializeToString(deterministic=True)


def input_shape(spec: BlockSpec) -> list[int]:
    """Shape of a block's input without the batch; linear layers stand after pooling and have no height and width."""
    return [spec.in_channels] if spec.kind == "linear" else [spec.in_channels, spec.resolution, spec.resolution]


def _output_shape(spec: BlockSpec) -> list[int | str]:
    if spec.kind in ("pool", "linear"):
        return ["batch", spec.out_channels]
    return ["batch", spec.out_channels, spec.out_resolution, spec.out_resolution]
