"""Fold the BatchNorms of an ONNX graph into the layers around them, in float64, so that the only error left is the last rounding.

In eval mode a BatchNorm multiplies each channel by a constant and adds another. It goes, in this order,
  into the Conv or Gemm before it,
  through a Concat into the layers of all branches (the FactorizedReduce of DARTS, DenseNet's blocks),
  into the Conv or Gemm after it, where that is exact: zeros that a Conv pads with would have to be shifted too,
  or else becomes a Mul and an Add.
A layer takes it only where nothing else reads what lies between.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper

from deploy.graph_edit import GraphEdit, attribute
from ofa.errors import OfaError

Channels = NDArray[np.float64]  # one value for each channel


def fold_norms(model: onnx.ModelProto) -> None:
    """Rewrite a model without BatchNormalization; what it computes stays the same.

    Raises:
        OfaError: if a BatchNormalization is in training mode, or its numbers are computed in the graph.
    """
    ranks = _ranks(model)
    graph = GraphEdit(model)
    for node in graph.of_type("MatMul"):  # a linear layer without a bias; Gemm has a place for one
        weight = graph.constant(node.input[1])
        if weight is not None and weight.ndim == 2 == ranks.get(node.input[0]):
            node.op_type = "Gemm"
    for node in graph.of_type("BatchNormalization"):
        scale, shift = _affine(graph, node)
        source, output = node.input[0], node.output[0]
        if _width(graph, source) is not None:
            _rescale(graph, source, scale, shift)
            graph.skip(node)
        elif _absorb(graph, output, scale, shift):
            graph.skip(node)
        else:
            _spell_out(graph, node, ranks, scale, shift)
    graph.write()


def _affine(graph: GraphEdit, node: onnx.NodeProto) -> tuple[Channels, Channels]:
    """Return what a BatchNorm multiplies each channel by and what it then adds."""
    numbers = [graph.constant(name) for name in node.input[1:]]
    if attribute(node, "training_mode", 0) or len(node.output) > 1:
        raise OfaError(f"BatchNormalization {node.name} is in training mode; export the network in eval mode")
    if any(values is None for values in numbers):
        raise OfaError(f"BatchNormalization {node.name} takes numbers that the graph computes, expected constants")
    weight, bias, mean, var = (np.asarray(values, np.float64) for values in numbers)
    scale = weight / np.sqrt(var + attribute(node, "epsilon", 1e-5))
    return scale, bias - mean * scale


class Layer:
    """The weights of a Conv or Gemm, output channels first, in float64."""

    def __init__(
        self, graph: GraphEdit, node: onnx.NodeProto, weight: NDArray[np.generic], bias: NDArray[np.generic] | None
    ) -> None:
        self._graph, self._node, self._dtype = graph, node, weight.dtype
        self._flipped = node.op_type == "Gemm" and not attribute(node, "transB", 0)
        self.weight = np.asarray(weight.T if self._flipped else weight, np.float64)
        self.bias = np.zeros(len(self.weight)) if bias is None else np.asarray(bias, np.float64)

    @classmethod
    def of(cls, graph: GraphEdit, node: onnx.NodeProto | None) -> Layer | None:
        """Return the layer that a node is, if its weights can be changed."""
        if node is None or node.op_type not in ("Conv", "Gemm"):
            return None
        plain = {"alpha": 1.0, "beta": 1.0, "transA": 0}
        if node.op_type == "Gemm" and any(attribute(node, name, value) != value for name, value in plain.items()):
            return None
        has_bias = len(node.input) > 2 and node.input[2] != ""
        weight, bias = graph.constant(node.input[1]), graph.constant(node.input[2]) if has_bias else None
        if weight is None or (has_bias and bias is None):
            return None
        layer = cls(graph, node, weight, bias)
        return layer if layer.bias.shape == layer.weight.shape[:1] else None

    def write(self) -> None:
        weight = self.weight.T if self._flipped else self.weight
        self._graph.set_constant(self._node, 1, weight.astype(self._dtype), "weight")
        self._graph.set_constant(self._node, 2, self.bias.astype(self._dtype), "bias")


def _width(graph: GraphEdit, tensor: str) -> int | None:
    """Return how many channels a tensor has, if the layers that make it can take a factor and a shift for each."""
    node = graph.maker(tensor)
    if node is None or graph.uses(tensor) != 1:
        return None
    if node.op_type == "Concat" and attribute(node, "axis") == 1:
        widths = [_width(graph, name) for name in node.input]
        return None if None in widths else sum(filter(None, widths))
    layer = Layer.of(graph, node)
    return None if layer is None else len(layer.weight)


def _rescale(graph: GraphEdit, tensor: str, scale: Channels, shift: Channels) -> None:
    """Change the layers that make a tensor, so that it becomes `scale` times what it was plus `shift`."""
    node = graph.maker(tensor)
    assert node is not None
    if node.op_type == "Concat":
        start = 0
        for name in node.input:
            end = start + (_width(graph, name) or 0)
            _rescale(graph, name, scale[start:end], shift[start:end])
            start = end
        return
    layer = Layer.of(graph, node)
    assert layer is not None
    layer.weight *= _along(scale, layer.weight.ndim)
    layer.bias = layer.bias * scale + shift
    layer.write()


def _absorb(graph: GraphEdit, tensor: str, scale: Channels, shift: Channels) -> bool:
    """Let the only layer that reads a tensor apply `scale` and `shift` to it, if it can; return whether it does."""
    node = graph.only_reader(tensor)
    layer = Layer.of(graph, node)
    if node is None or layer is None or node.input[0] != tensor:
        return False
    padded = any(attribute(node, "pads", [])) or attribute(node, "auto_pad", b"NOTSET") not in (b"NOTSET", b"VALID")
    if padded and shift.any():
        return False
    groups = attribute(node, "group", 1)
    out, width, *window = layer.weight.shape  # width: input channels of a group
    by_output = [np.repeat(values.reshape(groups, width), out // groups, axis=0) for values in (scale, shift)]  # (out, width)
    layer.bias = layer.bias + (layer.weight.reshape(out, width, -1).sum(2) * by_output[1]).sum(1)
    layer.weight *= by_output[0].reshape(out, width, *[1] * len(window))
    layer.write()
    return True


def _spell_out(graph: GraphEdit, node: onnx.NodeProto, ranks: Mapping[str, int], scale: Channels, shift: Channels) -> None:
    """Put a Mul and an Add in a BatchNorm's place."""
    source, output, dtype = node.input[0], node.output[0], graph.tensors[node.input[1]].data_type
    if source not in ranks:
        raise OfaError(f"the shape of {source}, which a BatchNormalization reads, is not known; export it with known sizes")
    graph.delete(node)
    for op, name, out, values in (("Mul", "scale", f"{output}.scaled", scale), ("Add", "shift", output, shift)):
        step = helper.make_node(op, [source, ""], [out], name=f"{node.name or output}.{name}")
        graph.add(step)
        column = _along(values, ranks[node.input[0]] - 1)  # (channels, 1, 1): broadcasts over the batch too
        graph.set_constant(step, 1, column.astype(helper.tensor_dtype_to_np_dtype(dtype)), name)
        source = out


def _ranks(model: onnx.ModelProto) -> dict[str, int]:
    """Return the number of dimensions of each tensor where it is known."""
    graph = onnx.shape_inference.infer_shapes(model).graph
    shaped = (value for value in (*graph.input, *graph.value_info, *graph.output) if value.type.tensor_type.HasField("shape"))
    return {value.name: len(value.type.tensor_type.shape.dim) for value in shaped}


def _along(values: Channels, rank: int) -> Channels:
    """Return one value a channel as an array whose first axis is the channels."""
    return values.reshape(-1, *[1] * (rank - 1))
