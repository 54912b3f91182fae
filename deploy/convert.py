"""Make an fp32 ONNX file of any operators smaller: in fp16, or in integers through ONNX Runtime's quantiser.

For graphs that no space describes (deploy.torch_export); our own networks are emitted in every precision (deploy.emit).
"""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path
from typing import Literal

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, numpy_helper

from deploy.graph_edit import GraphEdit
from deploy.graphs import UINT16_OPSET
from deploy.onnx_file import metadata_of, read_model, write_model
from deploy.quiet import quiet
from deploy.runtimes import first_line
from ofa.errors import OfaError

FP16_MAX = 65504.0
Batch = NDArray[np.float32]


class ConversionError(OfaError):
    """A file cannot be had in this precision."""


def to_fp16(content: bytes) -> bytes:
    """Return a file that stores weights and computes in fp16; its input and output stay float32.

    Raises:
        ConversionError: if the content is no fp32 file, or a weight is larger than fp16 holds.
    """
    from onnxruntime.transformers.float16 import convert_float_to_float16

    model = _fp32_model(content)
    for tensor in model.graph.initializer:
        largest = np.abs(numpy_helper.to_array(tensor)).max(initial=0) if tensor.data_type == TensorProto.FLOAT else 0
        if largest > FP16_MAX:
            raise ConversionError(f"{tensor.name} holds {largest:.3g}, fp16 ends at {FP16_MAX:.0f}; keep the file in fp32")
    metadata = metadata_of(model)
    with quiet():
        half = convert_float_to_float16(model, keep_io_types=True)
    GraphEdit(half).write()  # its casts stand at the end; here every node comes after those that it reads from
    return write_model(half, metadata)


def to_int8(
    content: bytes,
    batches: Iterable[Batch],
    *,
    activation_bits: Literal[8, 16] = 8,
    exclude: Collection[str] = (),
) -> bytes:
    """Return a statically quantised file: operators read what a pair of nodes has quantised and dequantised (QDQ).

    Weights are symmetric int8 with a scale for each output channel. Activations are unsigned and asymmetric (hard-swish ends at
    -0.375: half of a symmetric grid would be lost), over the whole range that they had on the calibration images. Logits stay
    float: rounded ones would tie. ONNX Runtime's pre-processing is left out: it splits hard-swish, whose halves are then rounded
    one by one, and what else it does has been done (deploy.fold_norms).

    Args:
        content: an fp32 file; activations of 16 bits need one of opset 21 or later.
        batches: preprocessed images (n, channels, height, width) to calibrate with.
        exclude: names of nodes that stay float.
    Raises:
        ConversionError: if the content is no fp32 file or of too old an opset, there are no images or not such as the network
            takes, or a node to exclude does not exist.
    """
    from onnxruntime.quantization import CalibrationMethod, QuantType, quantize_static

    if activation_bits not in (8, 16):
        raise ConversionError(f"activations of {activation_bits} bits are not to be had here, expected 8 or 16")
    model = _fp32_model(content)
    graph = GraphEdit(model)
    unknown = sorted(set(exclude) - {node.name for node in graph.nodes})
    if unknown:
        raise ConversionError(f"node {unknown[0]!r}, which is to stay float, is not in this file; expected names of its nodes")
    if activation_bits == 16 and graph.opset < UINT16_OPSET:
        raise ConversionError(f"activations of 16 bits need opset {UINT16_OPSET}, this file has {graph.opset}; export it anew")
    batches = iter(batches)
    first = next(batches, None)
    if first is None:
        raise ConversionError("there are no images to calibrate with, expected at least one batch")
    with tempfile.TemporaryDirectory() as folder, quiet():
        source, target = Path(folder) / "fp32.onnx", Path(folder) / "int8.onnx"
        source.write_bytes(content)
        try:
            quantize_static(
                source,
                target,
                _Reader(model.graph.input[0].name, itertools.chain([first], batches)),
                per_channel=True,
                activation_type=QuantType.QUInt8 if activation_bits == 8 else QuantType.QUInt16,
                weight_type=QuantType.QInt8,
                calibrate_method=CalibrationMethod.MinMax,
                nodes_to_exclude=sorted(exclude),
            )
        except OfaError:  # of the batches
            raise
        except Exception as error:  # onnxruntime's share no base but Exception
            raise ConversionError(f"ONNX Runtime cannot quantise this file ({first_line(error)})") from None
        quantised = onnx.load(target)
    _leave_output_float(quantised)
    return write_model(quantised, metadata_of(model))


class _Reader:
    """Batches as ONNX Runtime's calibration takes them (its CalibrationDataReader accepts any class with this method)."""

    def __init__(self, name: str, batches: Iterator[Batch]) -> None:
        self._name, self._batches = name, batches

    def get_next(self) -> dict[str, Batch] | None:
        batch = next(self._batches, None)
        return None if batch is None else {self._name: np.ascontiguousarray(batch, dtype=np.float32)}


def _fp32_model(content: bytes) -> onnx.ModelProto:
    model = read_model(content)
    stored = {tensor.data_type for tensor in model.graph.initializer}
    integers = any(node.op_type == "QuantizeLinear" for node in model.graph.node)
    if integers or TensorProto.FLOAT16 in stored:
        raise ConversionError(f"this file is {'quantised' if integers else 'fp16'} already, expected an fp32 one")
    return model


def _leave_output_float(model: onnx.ModelProto) -> None:
    """Take away the pair that rounds the graph's output."""
    graph = GraphEdit(model)
    last = graph.maker(model.graph.output[0].name)
    before = graph.maker(last.input[0]) if last is not None and last.op_type == "DequantizeLinear" else None
    if last is not None and before is not None and before.op_type == "QuantizeLinear" and graph.uses(before.output[0]) == 1:
        graph.skip(last)
        graph.skip(before)
    graph.write()
