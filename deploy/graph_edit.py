"""Edit an ONNX graph that somebody else wrote."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper


class GraphEdit:
    """The nodes and constants of a model, from each tensor to the node that makes it and to those that read it.

    Constant nodes and copies of tensors (Identity) are gone from the start. `write` puts the rest back into the model, every
    node after those it reads from, without constants that nothing reads.
    """

    def __init__(self, model: onnx.ModelProto) -> None:
        self._graph = model.graph
        self.opset = next(entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx"))
        self.tensors = {tensor.name: tensor for tensor in model.graph.initializer}
        self.nodes = list(model.graph.node)
        self.kept = {value.name for value in model.graph.output}  # names that may not change
        self.kept.update(name for node in self.nodes for name in _inner_names(node))
        self._maker: dict[str, onnx.NodeProto] = {}
        self._readers: dict[str, list[onnx.NodeProto]] = {}  # a node that reads a tensor twice stands twice
        for node in self.nodes:
            self._index(node)
        for node in self.of_type("Constant"):
            self._to_tensor(node)
        for node in self.of_type("Identity"):
            if node.output[0] not in self.kept or (node.input[0] in self._maker and node.input[0] not in self.kept):
                self.skip(node)

    def of_type(self, op: str) -> list[onnx.NodeProto]:
        return [node for node in self.nodes if node.op_type == op]

    def maker(self, name: str) -> onnx.NodeProto | None:
        """Return the node that makes a tensor; None = it is a constant or the graph's input."""
        return self._maker.get(name)

    def only_reader(self, name: str) -> onnx.NodeProto | None:
        """Return the one node that reads a tensor; None = there are others, or it reads it twice."""
        return self._readers[name][0] if self.uses(name) == 1 and self._readers.get(name) else None

    def uses(self, name: str) -> int:
        return len(self._readers.get(name, [])) + (name in self.kept)

    def constant(self, name: str) -> NDArray[np.generic] | None:
        """Return a constant's values; None = the tensor is computed."""
        return numpy_helper.to_array(self.tensors[name]) if name in self.tensors else None

    def scalar(self, name: str) -> float | None:
        """Return a constant of one value; None = the tensor is another."""
        values = self.constant(name)
        return float(values.item()) if values is not None and values.size == 1 else None

    def set_constant(self, node: onnx.NodeProto, index: int, values: NDArray[np.generic], role: str) -> None:
        """Give a node another constant as its input; one that other nodes read too stays theirs."""
        old = node.input[index] if index < len(node.input) else ""
        name = old if old in self.tensors and self.uses(old) == 1 else self._unused(f"{node.output[0]}.{role}")
        self.tensors[name] = numpy_helper.from_array(np.ascontiguousarray(values), name)
        self._forget(node)
        node.input[:] = [*node.input[:index], name, *node.input[index + 1 :]]
        self._index(node)

    def add(self, node: onnx.NodeProto) -> None:
        self.nodes.append(node)
        self._index(node)

    def delete(self, node: onnx.NodeProto) -> None:
        self.nodes = [other for other in self.nodes if other is not node]
        self._forget(node)

    def skip(self, node: onnx.NodeProto) -> None:
        """Delete a node and let its first input stand for its output."""
        source, output = node.input[0], node.output[0]
        self.delete(node)
        if output in self.kept:  # its name has to stay: the node before takes it
            source, output = output, source
            before = self._maker.pop(output)
            before.output[:] = [source if name == output else name for name in before.output]
            self._maker[source] = before
        readers = self._readers.pop(output, [])
        self._readers.setdefault(source, []).extend(readers)
        for reader in readers:
            reader.input[:] = [source if name == output else name for name in reader.input]

    def write(self) -> None:
        """Put nodes and constants back into the model."""
        ordered: dict[int, onnx.NodeProto] = {}
        for node in self.nodes:
            self._place(node, ordered)
        names = {name for node in self.nodes for name in node.input} | self.kept
        tensors = [tensor for name, tensor in self.tensors.items() if name in names]
        del self._graph.node[:], self._graph.initializer[:]
        self._graph.node.extend(ordered.values())
        self._graph.initializer.extend(tensors)

    def _place(self, node: onnx.NodeProto, ordered: dict[int, onnx.NodeProto]) -> None:
        """Place a node after what it reads. Nearly all stand in order already, so that the recursion stays shallow."""
        if id(node) in ordered:
            return
        for name in (*node.input, *_inner_names(node)):
            if name in self._maker:
                self._place(self._maker[name], ordered)
        ordered[id(node)] = node

    def _index(self, node: onnx.NodeProto) -> None:
        self._maker.update((name, node) for name in node.output)
        for name in node.input:
            self._readers.setdefault(name, []).append(node)

    def _forget(self, node: onnx.NodeProto) -> None:
        for name in node.output:
            self._maker.pop(name, None)
        for name in node.input:
            self._readers[name] = [other for other in self._readers[name] if other is not node]

    def _unused(self, name: str) -> str:
        return self._unused(f"{name}_") if name in self.tensors or name in self._maker else name

    def _to_tensor(self, node: onnx.NodeProto) -> None:
        """Make a constant of a Constant node, if it holds numbers."""
        name, value = node.output[0], attribute(node, "value")
        for kind, dtype in (("float", np.float32), ("floats", np.float32), ("int", np.int64), ("ints", np.int64)):
            number = attribute(node, f"value_{kind}")
            value = value if number is None else numpy_helper.from_array(np.array(number, dtype))
        if isinstance(value, onnx.TensorProto) and name not in self.kept:
            self.delete(node)
            self.tensors[name] = tensor = onnx.TensorProto()
            tensor.CopyFrom(value)
            tensor.name = name


def attribute(node: onnx.NodeProto, name: str, default: Any = None) -> Any:
    """Return a node's attribute, or the standard's default for one that is left out."""
    return next((helper.get_attribute_value(entry) for entry in node.attribute if entry.name == name), default)


def _inner_names(node: onnx.NodeProto) -> Iterator[str]:
    """Names that the branches of an If or the body of a Loop read, some of them from outside."""
    for entry in node.attribute:
        for graph in (*entry.graphs, entry.g):
            for inner in graph.node:
                yield from inner.input
                yield from _inner_names(inner)
            yield from (value.name for value in graph.output)
