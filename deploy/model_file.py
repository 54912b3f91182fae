"""An ONNX file of anybody, read before a runtime sees it: which input it takes, in which precision it computes, whose it is."""

from __future__ import annotations

import contextlib
import hashlib
import re
from dataclasses import dataclass
from pathlib import Path

import onnx
from onnx import TensorProto

from deploy.bundle import MAX_LARGE_BYTES, Bundle, open_bundle
from deploy.integrity import MANIFEST, require_self_contained
from deploy.precision import grid_of
from deploy.runtimes import ModelError
from ofa.artefacts import ArtefactError, read_bounded

PRECISION_WORD = re.compile(r"(^|[-_.])(fp32|fp16|int8|a\d+w\d+)(?=$|[-_.])")  # of a name such as fast-int8


@dataclass(frozen=True, eq=False)  # one named twice is two, that tell how far equal files seem to differ
class ModelFile:
    """An ONNX file with one float32 input, all of it inside."""

    path: Path  # as it was named: the file, or its bundle
    content: bytes
    sha256: str
    precision: str
    network: str  # equal for files of one network in several precisions
    dims: tuple[int | None, ...]  # of the input, None where any size will do
    bundle: Bundle | None  # that it lies in

    @property
    def leaves_resolution_free(self) -> bool:
        return self.dims[1:][-2:] == (None, None)

    def input_shape(self, batch_size: int, resolution: int | None = None) -> tuple[int, ...]:
        """Return the input's shape for a batch; `resolution` is that of a graph which leaves height and width free.

        Raises:
            ModelError: if the graph takes batches of another size, or leaves open what nobody names.
        """
        first, *rest = self.dims
        if first not in (None, batch_size):
            raise ModelError(f"takes batches of {first} only")
        if self.leaves_resolution_free and resolution is not None:
            rest[-2:] = [resolution, resolution]
        if None in rest:
            way_out = "; name height and width with --resolution" if self.leaves_resolution_free else ", which nothing here tells"
            raise ModelError(f"takes an input of ({', '.join('?' if n is None else str(n) for n in self.dims)}){way_out}")
        return (batch_size, *(size for size in rest if size is not None))


def open_model_file(path: Path | str) -> ModelFile:
    """Read an ONNX file, or the model.onnx of a bundle, whose SHA256SUMS then must hold.

    Raises:
        ArtefactError: if it is missing, damaged, no ONNX model, keeps tensors outside, or has not exactly one float32 input.
    """
    path = Path(path)
    is_bundle = path.is_dir() or (path.name == "model.onnx" and (path.parent / MANIFEST).exists())
    bundle = open_bundle(path) if is_bundle else None
    if bundle is None:
        content = read_bounded(path, what="an ONNX file or an exported folder", limit=MAX_LARGE_BYTES)
    else:
        content = bundle.read("model.onnx")
    require_self_contained(content, path)  # before a runtime follows any reference
    model = onnx.load_from_string(content)
    metadata = {str(entry.key): str(entry.value) for entry in model.metadata_props}  # damaged text comes as bytes
    dims = _input_dims(model.graph, path)
    arch, space = metadata.get("ofa.arch", "null"), metadata.get("ofa.space", "")
    name = path.resolve().parent.name if path.name == "model.onnx" else path.resolve().stem
    return ModelFile(
        path=path,
        content=content,
        sha256=hashlib.sha256(content).hexdigest(),
        precision=_precision(metadata.get("ofa.precision", ""), model.graph),
        network=f"{space} {arch}" if arch != "null" else f"{PRECISION_WORD.sub('', name)} {dims}",
        dims=dims,
        bundle=bundle,
    )


def _input_dims(graph: onnx.GraphProto, path: Path) -> tuple[int | None, ...]:
    constants = {tensor.name for tensor in graph.initializer}
    inputs = [value for value in graph.input if value.name not in constants]
    if len(inputs) != 1:
        raise ArtefactError(f"{path}: takes {len(inputs)} inputs, expected one, a batch of images")
    tensor = inputs[0].type.tensor_type
    if tensor.elem_type != TensorProto.FLOAT:
        kinds = {number: name.lower() for name, number in TensorProto.DataType.items()}
        found = kinds.get(tensor.elem_type, f"type {tensor.elem_type}")
        raise ArtefactError(f"{path}: takes {found} numbers, expected float32 (TensorProto.FLOAT) as runtimes are fed here")
    dims = tuple(d.dim_value if d.dim_value > 0 else None for d in tensor.shape.dim)  # some exporters write 0 or -1 for any
    if len(dims) < 2:
        raise ArtefactError(f"{path}: takes an input of {len(dims)} dimensions, expected a batch of images (n, c, h, w)")
    return dims


def _precision(told: str, graph: onnx.GraphProto) -> str:
    """The precision that the file's metadata tells, else the one of its tensors."""
    name = told.strip('"')  # metadata of ours is JSON
    with contextlib.suppress(ValueError):  # it is text, of anybody
        grid_of(name)
        return name
    tensors = {tensor.name: tensor.data_type for tensor in graph.initializer}
    wide = (TensorProto.UINT16, TensorProto.INT16)
    zero_points = [tensors.get(node.input[2]) for node in graph.node if _op(node) == "QuantizeLinear" and len(node.input) > 2]
    if any(kind in wide for kind in zero_points):
        return "a16w8"
    if any("QuantizeLinear" in op or op.startswith("QLinear") or op.endswith("Integer") for op in map(_op, graph.node)):
        return "int8"
    inside = [attribute.t.data_type for node in graph.node for attribute in node.attribute]  # of Constant nodes and the like
    return "fp16" if TensorProto.FLOAT16 in (*tensors.values(), *inside) else "fp32"


def _op(node: onnx.NodeProto) -> str:
    return str(node.op_type)  # bytes in a damaged file
