"""An ONNX file's bytes: read with suspicion, written so that they say nothing but the network."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import onnx
from onnx import helper

from deploy.integrity import require_self_contained


def read_model(content: bytes) -> onnx.ModelProto:
    """Parse a file's bytes.

    Raises:
        ArtefactError: if they are no ONNX model, or one that keeps tensors outside.
    """
    require_self_contained(content, Path("model.onnx"))
    return onnx.load_from_string(content)


def write_model(model: onnx.ModelProto, metadata: Mapping[str, str]) -> bytes:
    """Return a model's bytes, equal for equal networks: no remarks, stack traces, inferred shapes, or names of who wrote it when.

    The IR version is the oldest that has the model's operators.
    """
    _strip(model)
    domains = {node.domain for node in model.graph.node} | {""}
    opsets = [entry for entry in model.opset_import if entry.domain.removeprefix("ai.onnx") in domains]
    plain = helper.make_model(
        model.graph,
        opset_imports=opsets,
        functions=model.functions,
        ir_version=helper.find_min_ir_version_for(opsets, ignore_unknown=True),
        producer_name="ofa-toolkit",
    )
    plain.graph.name = "ofa"
    helper.set_model_props(plain, dict(sorted(metadata.items())))
    return plain.SerializeToString(deterministic=True)


def metadata_of(model: onnx.ModelProto) -> dict[str, str]:
    """Return the facts that a file carries, key -> text."""
    return {entry.key: entry.value for entry in model.metadata_props}


def _strip(message: Any) -> None:
    """Clear what does not change what a model computes, wherever it stands."""
    for field, value in message.ListFields():
        if field.name in ("doc_string", "metadata_props", "value_info"):
            message.ClearField(field.name)
        elif field.message_type is not None:
            for part in [value] if hasattr(value, "ListFields") else value:  # a message, or a container of them
                _strip(part)
