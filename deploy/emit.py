"""Write BlockSpecs as an ONNX graph: the one emitter for what is timed and for what ships.

With constant-filled weights (ConstantOfShape nodes, which runtimes fold when they load the file) the graphs are tiny and
a device can time every block of a space; with folded trained weights the same graph is the file that ships.
Opset 17, IR 8: read by ONNX Runtime from 1.12 on.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from ofa.block_spec import BlockSpec
from ofa.slots import se_channels

OPSET, IR_VERSION = 17, 8
Weights = Mapping[str, NDArray[np.float32]]


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

    def weight(self, name: str, shape: tuple[int, ...], fan_in: int) -> str:
        """Return the name of a weight tensor: the given one, or a constant that keeps activations of order one."""
        if self.weights is not None:
            tensor = self.weights[name]
            assert tensor.shape == shape, f"{name}: {tensor.shape} is not {shape}"
            self.initializers[name] = numpy_helper.from_array(np.ascontiguousarray(tensor, dtype=np.float32), name)
            return name
        value = helper.make_tensor("value", TensorProto.FLOAT, [1], [1.0 / fan_in])
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
        fan_in = in_channels // groups * kernel_size**2
        inputs = [x, self.weight(f"{name}.weight", (out_channels, in_channels // groups, kernel_size, kernel_size), fan_in)]
        if bias:
            inputs.append(self.weight(f"{name}.bias", (out_channels,), fan_in))
        pads = [kernel_size // 2] * 4
        shape = {"kernel_shape": [kernel_size] * 2, "strides": [stride] * 2, "pads": pads, "group": groups}
        return self.activation(act, self.node("Conv", inputs, f"{name}.conv", **shape), f"{name}.act")


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
    inputs = [x, g.weight(f"{name}.weight", (spec.out_channels, spec.in_channels), spec.in_channels)]
    if spec.bias:
        inputs.append(g.weight(f"{name}.bias", (spec.out_channels,), spec.in_channels))
    return g.activation(spec.act, g.node("Gemm", inputs, f"{name}.gemm", transB=1), f"{name}.act")


EMITTERS = {
    "conv": _conv,
    "mbconv": _mbconv,
    "bottleneck": _bottleneck,
    "maxpool": _maxpool,
    "pool": _pool,
    "linear": _linear,
}


def emit(blocks: Mapping[str, BlockSpec], weights: Weights | None = None, *, metadata: Mapping[str, str] | None = None) -> bytes:
    """Return the bytes of an ONNX model that runs the blocks in order, equal for equal input.

    Args:
        blocks: name -> block, in execution order.
        weights: folded weights under "<block>.<layer>.weight" / ".bias" (deploy.export.fold); None = constants.
        metadata: key -> text for the file's metadata_props.
    """
    graph = Graph(weights)
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
