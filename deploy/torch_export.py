"""Write any PyTorch network as an ONNX graph, through torch's own exporter: the door for what no space describes.

What comes out keeps the promises of deploy.emit: one file, one input "images" and one output "logits" with a dynamic batch, no
BatchNormalization, hard-swish as one operator, bytes that hold no path and no date and are equal for equal networks.
"""

from __future__ import annotations

import copy
import importlib.util
import io
from collections.abc import Mapping
from typing import Any, Literal

import onnx
import torch
from onnx import TensorProto
from torch import Tensor, nn

from deploy.fold_norms import fold_norms
from deploy.hard_swish import join_hard_swish
from deploy.onnx_file import write_model
from deploy.quiet import quiet
from deploy.runtimes import first_line
from ofa.errors import OfaError

Exporter = Literal["torchscript", "dynamo"]
LEAST_OPSET = {"torchscript": 13, "dynamo": 18}  # asked for less, dynamo writes 18 without a word
BATCH = {0: "batch"}


class TorchExportError(OfaError):
    """torch's exporter cannot write this network."""


def onnx_of_module(
    net: nn.Module,
    input_shape: tuple[int, int, int],
    *,
    opset: int = 17,
    exporter: Exporter = "torchscript",
    metadata: Mapping[str, str] | None = None,
) -> bytes:
    """Return the bytes of an ONNX model that computes what the network computes in eval mode, equal for equal networks.

    Args:
        net: takes one float32 tensor (n, channels, height, width), returns one whose first axis is n; it is not changed.
        input_shape: (channels, height, width) of the images.
        opset: of the standard operators; 17 is read by ONNX Runtime from 1.12 on.
        exporter: "torchscript" traces a call; "dynamo" (torch.export) is many times slower, and for what cannot be traced.
        metadata: key -> text for the file's metadata_props.
    Raises:
        TorchExportError: if the network does not run on such images, has other inputs or outputs, or cannot be exported.
    """
    if exporter not in LEAST_OPSET:
        raise TorchExportError(f"exporter {exporter!r} is not known, expected one of: {', '.join(LEAST_OPSET)}")
    if opset < LEAST_OPSET[exporter]:
        raise TorchExportError(
            f"opset {opset} is not one that the {exporter} exporter writes, expected {LEAST_OPSET[exporter]} or later"
            + ("; the torchscript exporter writes older ones" if exporter == "dynamo" and opset >= 13 else "")
        )
    if exporter == "dynamo" and importlib.util.find_spec("onnxscript") is None:
        raise TorchExportError("the dynamo exporter needs onnxscript, which is not installed: pip install 'ofa-toolkit[dynamo]'")
    static = _copy(net)
    images = torch.randn(2, *input_shape, generator=torch.Generator().manual_seed(0))  # two: one would be taken for a constant
    with quiet():
        _require_one_in_one_out(static, images)
        try:
            model = _trace(static, images, opset) if exporter == "torchscript" else _dynamo(static, images, opset)
        except Exception as error:  # an exporter runs the network's own code and raises whatever it meets
            raise TorchExportError(
                f"torch's {exporter} exporter cannot write {type(net).__name__} with opset {opset} ({_cause(error)})"
            ) from None
    _require_promises(model, opset)
    fold_norms(model)
    join_hard_swish(model)
    return write_model(model, metadata or {})


def _trace(net: nn.Module, images: Tensor, opset: int) -> onnx.ModelProto:
    buffer: Any = io.BytesIO()  # torch's annotation knows files only
    torch.onnx.export(
        net,
        (images,),
        buffer,
        dynamo=False,
        opset_version=opset,
        # the network is in eval mode already; EVAL would also fold BatchNorms, in float32 and under new names
        training=torch.onnx.TrainingMode.PRESERVE,
        input_names=["images"],
        output_names=["logits"],
        dynamic_axes={"images": BATCH, "logits": BATCH},
    )
    return onnx.load_from_string(buffer.getvalue())


def _dynamo(net: nn.Module, images: Tensor, opset: int) -> onnx.ModelProto:
    program: Any = torch.onnx.export(
        net,
        (images,),
        dynamo=True,
        opset_version=opset,
        input_names=["images"],
        output_names=["logits"],
        dynamic_shapes=({0: torch.export.Dim("batch")},),
        verbose=False,
    )
    model: onnx.ModelProto = program.model_proto
    return model


def _copy(net: nn.Module) -> nn.Module:
    try:
        return copy.deepcopy(net).eval().cpu().float()
    except Exception as error:  # whatever the network's attributes raise
        raise TorchExportError(f"{type(net).__name__} cannot be copied ({first_line(error)})") from None


@torch.no_grad()
def _require_one_in_one_out(net: nn.Module, images: Tensor) -> None:
    name = type(net).__name__
    try:
        out = net(images)
    except Exception as error:
        raise TorchExportError(
            f"{name} does not run on images {tuple(images.shape)} ({first_line(error)}); expected a network of one tensor"
        ) from None
    if not isinstance(out, Tensor):
        raise TorchExportError(f"{name} returns a {type(out).__name__}, expected one tensor; wrap it in a module that picks one")
    if not out.is_floating_point() or out.shape[:1] != images.shape[:1]:
        raise TorchExportError(
            f"{name} returns {str(out.dtype).removeprefix('torch.')} {tuple(out.shape)} for {len(images)} images, "
            "expected one row of floating point numbers for each"
        )


def _cause(error: Exception) -> str:
    """Return what began it: the exporters wrap errors several times, in advice for their own developers."""
    while isinstance(error.__cause__, Exception):
        error = error.__cause__
    return first_line(error)


def _require_promises(model: onnx.ModelProto, opset: int) -> None:
    """Refuse what the exporter wrote otherwise than asked."""
    written = next(entry.version for entry in model.opset_import if entry.domain == "")
    if written != opset:
        raise TorchExportError(f"torch's exporter wrote opset {written}, not {opset}; ask for {written}")
    outside = [tensor.name for tensor in model.graph.initializer if tensor.data_location == TensorProto.EXTERNAL]
    if outside:
        raise TorchExportError(f"torch's exporter put {outside[0]} outside the file; the network is too large for one of 2 GB")
    names = [[value.name for value in values] for values in (model.graph.input, model.graph.output)]
    if names != [["images"], ["logits"]]:
        raise TorchExportError(f"torch's exporter wrote inputs and outputs {names}, expected one image input and one output")
