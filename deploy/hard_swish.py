"""Join hard-swish and hard sigmoid that were written out (x * relu6(x + 3) / 6) into the one operator that each is.

One operator is one pass over memory, and runtimes fuse it into the convolution before it. Source of both functions: Howard et
al. 2019 (arXiv 1905.02244), section 5.2.
"""

from __future__ import annotations

import onnx
from onnx import helper

from deploy.graph_edit import GraphEdit, attribute
from deploy.graphs import HARD_SWISH_OPSET

SIXTH = 1e-6  # how near to 1/6 a number must be: float32 holds it to 1e-8


def join_hard_swish(model: onnx.ModelProto) -> None:
    """Rewrite a model with HardSigmoid and, where its opset has it, HardSwish; only the rounding of what it computes changes."""
    graph = GraphEdit(model)
    for node in graph.of_type("Clip"):
        _join_hard_sigmoid(graph, node)
    if graph.opset >= HARD_SWISH_OPSET:
        for node in graph.of_type("HardSigmoid"):
            _join_hard_swish(graph, node)
    graph.write()


def _join_hard_sigmoid(graph: GraphEdit, clip: onnx.NodeProto) -> None:
    """Clip(x + 3, 0, 6) / 6 -> HardSigmoid(x), also where the division comes after a multiplication: x * Clip(...) / 6."""
    bounds = [graph.scalar(name) for name in clip.input[1:]]
    plus = graph.maker(clip.input[0])
    if bounds != [0.0, 6.0] or plus is None or plus.op_type != "Add":
        return
    x = _other(graph, plus, 3.0)
    reader = graph.only_reader(clip.output[0])
    if reader is not None and reader.op_type == "Mul" and not _is_sixth(graph, reader):
        reader = graph.only_reader(reader.output[0])
    if x is None or reader is None or not _is_sixth(graph, reader):
        return
    gate = helper.make_node("HardSigmoid", [x], [clip.output[0]], name=clip.name, alpha=1 / 6, beta=0.5)
    graph.delete(clip)
    graph.add(gate)
    if not graph.uses(plus.output[0]):
        graph.delete(plus)
    if graph.scalar(reader.input[0]) is not None:  # a product's constant may stand first, `skip` keeps the first input
        reader.input[:] = reversed(reader.input)
    graph.skip(reader)


def _join_hard_swish(graph: GraphEdit, gate: onnx.NodeProto) -> None:
    """X * HardSigmoid(x) -> HardSwish(x)."""
    x, product = gate.input[0], graph.only_reader(gate.output[0])
    exact = abs(attribute(gate, "alpha", 0.2) - 1 / 6) < SIXTH and attribute(gate, "beta", 0.5) == 0.5
    if exact and product is not None and product.op_type == "Mul" and x in product.input:
        graph.delete(gate)
        graph.delete(product)
        graph.add(helper.make_node("HardSwish", [x], [product.output[0]], name=product.name))


def _other(graph: GraphEdit, node: onnx.NodeProto, value: float) -> str | None:
    """Return what a node of two inputs reads beside the constant `value`."""
    first, second = node.input
    if graph.scalar(second) == value:
        return str(first)
    return str(second) if graph.scalar(first) == value else None


def _is_sixth(graph: GraphEdit, node: onnx.NodeProto) -> bool:
    """Whether a node divides by six."""
    if node.op_type == "Div":
        return graph.scalar(node.input[1]) == 6.0
    factors = [graph.scalar(name) for name in node.input] if node.op_type == "Mul" else []
    return any(factor is not None and abs(factor - 1 / 6) < SIXTH for factor in factors)
