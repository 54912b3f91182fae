"""ONNX graphs under construction: the same operators in floating point and in integers.

Blocks are written by deploy/emitters.py without knowing which: a graph decides what stands around an operator. Layers with
bits of their own stand in integers in either, on the grids that they were trained on.
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

from deploy.precision import INT8, Grid, PrecisionError, grid_of
from ofa.block_spec import takes_bits

Weights = Mapping[str, NDArray[np.float32]]
Scales = Mapping[str, tuple[float, int]]  # of activations by tensor name: step, and the integer that stands for zero

HARD_SWISH_OPSET, UINT16_OPSET = 14, 21  # the first that have it
CLIPPING = ("Relu", "Clip")
IN_FLOAT = (*CLIPPING, "HardSwish", "HardSigmoid", "Sigmoid", "Identity")  # what stays in float after a layer in float
CONV_DEFAULTS = ([1, 1], [0, 0, 0, 0], 1)  # of strides and dilations, pads, group: not written
UNNAMED = ("QuantizeLinear", "DequantizeLinear", "ConstantOfShape")
SIGNED, UNSIGNED = (1 / 64, 128), (1 / 64, 0)  # of activations of order one; up to 4 < 6, so that ReLU6 needs no Clip


class Graph:
    """A graph in fp32. `weights` None fills every tensor with a constant instead."""

    dtype: DTypeLike = np.float32

    def __init__(self, weights: Weights | None, opset: int, bits: Mapping[str, Grid] | None = None) -> None:
        """Begin a graph; `bits` names the blocks that have some of their own."""
        self.weights, self.opset, self.bits = weights, opset, bits or {}
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: dict[str, onnx.TensorProto] = {}
        self.pairs: dict[tuple[str, object], str] = {}  # (tensor, on which grid) -> what comes out of its pair
        self.stored = 0  # tensors of integer weights and biases

    def input(self, name: str) -> str:
        """Return what stands for the graph's input."""
        return name

    def output(self, x: str, name: str) -> None:
        """Name what the graph computes."""
        self.node("Identity", [x], name)

    def node(self, op: str, inputs: list[str], name: str, **attributes: Any) -> str:
        """Append a node and return the name of its output."""
        # names take a tenth of a small file: what only moves between numbers goes by that of its output alone
        self.nodes.append(helper.make_node(op, inputs, [name], name=None if op in UNNAMED else name, **attributes))
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
            bounds = [self.constant(f"const.{v}", np.array(v, self.dtype)) for v in (0.0, 6.0)]
            return self.node("Clip", [x, *bounds], name)
        if act == "swish":
            return self.node("Mul", [x, self.node("Sigmoid", [x], f"{name}.sigmoid")], name)
        if act == "h_swish" and self.opset < HARD_SWISH_OPSET:
            return self.node("Mul", [x, self.node("HardSigmoid", [x], f"{name}.gate", alpha=1 / 6, beta=0.5)], name)
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
        dilation: int = 1,
        kernel_width: int = 0,
    ) -> str:
        """Convolution with "same" padding, none for an even kernel on an even side, then the activation.

        Args:
            kernel_width: 0 = as wide as high.
        """
        kernel = [kernel_size, kernel_width or kernel_size]
        padding = [dilation * (side // 2) if side % 2 else 0 for side in kernel]
        window = {"strides": [stride] * 2, "pads": padding * 2, "group": groups, "dilations": [dilation] * 2}
        given = {key: value for key, value in window.items() if value not in CONV_DEFAULTS}
        out = self.layer("Conv", x, name, (out_channels, in_channels // groups, *kernel), bias=bias, kernel_shape=kernel, **given)
        return self.activation(act, out, f"{name}.act")

    def layer(self, op: str, x: str, name: str, shape: tuple[int, ...], *, bias: bool, **attributes: Any) -> str:
        """Append a Conv or Gemm with its weights; `shape` is that of the weight tensor, output channels first."""
        fan_in = math.prod(shape[1:])
        if (own := self.bits_of(name)) is not None:
            return self._layer_of_bits(own, op, x, name, shape, bias=bias, **attributes)
        inputs = [x]
        for each, its_shape in (("weight", shape), ("bias", shape[:1]))[: 1 + bias]:
            values = self.values(f"{name}.{each}", its_shape, fan_in).astype(self.dtype, copy=False)
            inputs.append(self.tensor(f"{name}.{each}", values, its_shape))
        return self.node(op, inputs, f"{name}.{op.lower()}", **attributes)

    def bits_of(self, layer: str) -> Grid | None:
        """Return the bits that a layer has of its own."""
        block, _, path = layer.partition(".")
        return self.bits.get(block) if takes_bits(path) else None

    def _layer_of_bits(
        self, grid: Grid, op: str, x: str, name: str, shape: tuple[int, ...], *, bias: bool, **attributes: Any
    ) -> str:
        """Append a layer as it was trained, by its own steps.

        Its bias is added in float, in a node of its own: ONNX Runtime would round the bias of an operator that reads integers to
        multiples of both steps, which are coarse here.
        """
        fan_in, out = math.prod(shape[1:]), f"{name}.{op.lower()}"
        if self.weights is None:
            scale, zero_point, steps = *_finer(UNSIGNED, INT8, grid), np.full(1, 1 / fan_in, np.float32)
        else:
            scale, zero_point = self.weights[f"{name}.input"].tolist()
            steps = np.ascontiguousarray(self.weights[f"{name}.steps"], np.float32)
        weight = self.values(f"{name}.weight", shape, fan_in)
        taken = self._pair((x, name), scale, int(zero_point), grid.activation_bits)
        inputs = [taken, self.integers(f"{name}.weight", weight, steps, np.int8, shape)]
        if not bias:
            return Graph.node(self, op, inputs, out, **attributes)
        product = Graph.node(self, op, inputs, f"{name}.product", **attributes)
        column = (shape[0], *[1] * (len(shape) - 2))  # broadcast over pixels
        shift = self.values(f"{name}.bias", shape[:1], fan_in)
        return Graph.node(self, "Add", [product, self.tensor(f"{name}.bias", shift.reshape(-1, *column[1:]), column)], out)

    def _pair(self, key: tuple[str, object], scale: float, zero_point: int, bits: int) -> str:
        """Return what comes out of the pair that quantises and dequantises a tensor; `key` is (tensor, anything)."""
        if key not in self.pairs:
            container = np.uint8 if bits <= 8 else np.uint16
            number = len(self.pairs)  # a tenth of a small file would be names: what stands around an operator has short ones
            steps = [
                self.constant(f"s{number}", np.array(scale, np.float32)),
                self._zero_point(np.array(zero_point, container)),
            ]
            x, most = key[0], 2**bits - 1
            if most < np.iinfo(container).max:  # the container would hold more than the grid has
                ends = [(end - zero_point) * scale for end in (0, most)]
                bounds = [
                    self.constant(f"{side}{number}", np.array(end, np.float32)) for side, end in zip("lh", ends, strict=True)
                ]
                x = Graph.node(self, "Clip", [x, *bounds], f"c{number}")
            quantised = Graph.node(self, "QuantizeLinear", [x, *steps], f"q{number}")
            self.pairs[key] = Graph.node(self, "DequantizeLinear", [quantised, *steps], f"d{number}")
        return self.pairs[key]

    def integers(
        self, name: str, values: NDArray[np.float32], scale: NDArray[np.float32], dtype: DTypeLike, shape: tuple[int, ...]
    ) -> str:
        """Store weights as integers and return what dequantises them; `scale` has one value for each output channel."""
        steps = np.rint(values / scale.reshape(-1, *[1] * (values.ndim - 1))).astype(dtype)
        self.stored += 1
        inputs = [self.tensor(name, steps, shape), self.tensor(f"w{self.stored}s", scale, shape[:1])]
        if values.ndim == 2:  # optional, but ONNX Runtime's QGemm wants it
            inputs.append(self._zero_point(np.zeros(shape[:1], dtype)))
        return Graph.node(self, "DequantizeLinear", inputs, f"w{self.stored}", axis=0)

    def _zero_point(self, value: NDArray[np.generic]) -> str:
        """Store a zero point, scalar or zeros for each channel; equal ones once."""
        return self.constant(f"z{value.dtype}.{value if value.ndim == 0 else f'x{len(value)}'}", value)


class HalfGraph(Graph):
    """A graph that stores and computes in fp16; images and logits are fp32, as of any other file."""

    dtype = np.float16

    def input(self, name: str) -> str:
        return self.node("Cast", [name], f"{name}.half", to=TensorProto.FLOAT16)

    def output(self, x: str, name: str) -> None:
        self.node("Cast", [x], name, to=TensorProto.FLOAT)

    def values(self, name: str, shape: tuple[int, ...], fan_in: int) -> NDArray[np.float32]:
        found = super().values(name, shape, fan_in)
        if np.abs(found).max(initial=0.0) > np.finfo(np.float16).max:
            raise PrecisionError(f"{name} holds {np.abs(found).max():.3g}, which fp16 cannot; export it in fp32")
        return found


class QuantizedGraph(Graph):
    """A graph in static integers: what an operator takes passes a pair that quantises and dequantises it (QDQ).

    Activations are asymmetric and unsigned, weights symmetric and signed with a scale for each output channel, biases int32. In
    int8, ONNX Runtime fuses an operator with the pairs around it (QLinearConv, QGemm, QLinearAdd, ...). Before a clipping
    activation stands none: the zero point of its output clips as it does. HardSwish and HardSigmoid have no integer kernel there
    and run in float.
    """

    def __init__(
        self,
        weights: Weights | None,
        opset: int,
        grid: Grid = INT8,
        scales: Scales | None = None,
        layers: Mapping[str, str] | None = None,
        bits: Mapping[str, Grid] | None = None,
    ) -> None:
        """Begin a graph.

        Args:
            grid: of the network.
            scales: of every activation, on the network's grid; None = constants.
            layers: name of a layer -> precision, where it is another than the network's.
            bits: of blocks that have some of their own.
        """
        super().__init__(weights, opset, bits)
        self.grid, self.layers = grid, layers or {}
        signed, unsigned = _finer(SIGNED, INT8, grid), _finer(UNSIGNED, INT8, grid)
        self.scales: dict[str, tuple[float, int]] = defaultdict(lambda: signed) if scales is None else dict(scales)
        self.unsigned = unsigned
        self.floats: set[str] = set()  # computed by a layer in float, and not rounded since

    def node(self, op: str, inputs: list[str], name: str, **attributes: Any) -> str:
        if op in ("MaxPool", "Flatten", "Pad", "Slice"):  # move integers as they are
            self.scales[name] = self.scales[inputs[0]]
        elif op in CLIPPING and self.weights is None:
            self.scales[name] = self.unsigned
        if op in IN_FLOAT and inputs[0] in self.floats:
            self.floats.add(name)
        elif op not in (*CLIPPING, "ConstantOfShape"):
            inputs = [x if x in self.initializers else self.pair(x, self.grid) for x in inputs]
        return super().node(op, inputs, name, **attributes)

    def output(self, x: str, name: str) -> None:
        if x.endswith(".gemm"):  # logits stay float: rounded ones would tie
            self.floats.add(x)
        super().output(x, name)

    def pair(self, x: str, grid: Grid) -> str:
        """Return what comes out of a tensor's pair."""
        scale, zero_point = _finer(self.scales[x], self.grid, grid)
        return self._pair((x, grid), scale, zero_point, grid.activation_bits)

    def layer(self, op: str, x: str, name: str, shape: tuple[int, ...], *, bias: bool, **attributes: Any) -> str:
        out = f"{name}.{op.lower()}"
        if (own := self.bits_of(name)) is not None:
            self.floats.add(out)
            return self._layer_of_bits(own, op, x, name, shape, bias=bias, **attributes)
        grid = grid_of(self.layers[name]) if name in self.layers else self.grid
        fan_in = math.prod(shape[1:])
        weight = self.values(f"{name}.weight", shape, fan_in)
        shift = self.values(f"{name}.bias", shape[:1], fan_in) if bias else np.zeros(1, np.float32)
        if grid is None:
            self.floats.add(out)
            inputs = [x, self.tensor(f"{name}.weight", weight, shape)]
            inputs += [self.tensor(f"{name}.bias", shift, shape[:1])] if bias else []
            return super().node(op, inputs, out, **attributes)
        x_scale, _ = _finer(self.scales[x], self.grid, grid)
        largest = np.abs(weight).max(axis=tuple(range(1, weight.ndim)), initial=1e-30)
        # the bias of a channel whose weights have all but vanished must still fit into int32
        scale = np.maximum(largest / grid.most_weight, np.abs(shift) / (x_scale * 2**30)).astype(np.float32)  # (out_channels,)
        inputs = [self.pair(x, grid), self.integers(f"{name}.weight", weight, scale, np.int8, shape)]
        if bias:
            inputs.append(self.integers(f"{name}.bias", shift, x_scale * scale, np.int32, shape[:1]))
        return super().node(op, inputs, out, **attributes)


def _finer(scale: tuple[float, int], grid: Grid, other: Grid) -> tuple[float, int]:
    """Put the same range of values on another grid; zero stays one of its points."""
    if grid.activation_bits == other.activation_bits:
        return scale
    ratio = other.most_activation / grid.most_activation
    return scale[0] / ratio, round(scale[1] * ratio)
