"""Pack: from the bytes of an ONNX file to a bundle, through the checks that every exported file passes, by whichever door."""

from __future__ import annotations

import hashlib
import io
import json
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from safetensors.torch import save
from torch import Tensor, nn

from deploy.bundle import MODEL_SCHEMA, write_bundle
from deploy.card import render_card
from deploy.device import get_device
from deploy.integrity import require_self_contained
from deploy.parity import REFERENCE_DEVICE, TOLERANCE, random_images, relative_error
from deploy.precision import grid_of
from deploy.rounded_parity import file_parity_error
from deploy.runtimes import Session, first_line, open_session
from ofa.artefacts import format_json
from ofa.errors import OfaError
from ofa.quantised_layers import has_bits
from ofa.run_dir import host_facts, versions
from ofa.space import ArchConfig
from ofa.training.data import Preprocessing

PREPROCESS_SCHEMA = "ofa.preprocess/1"
GOLDEN_IMAGES = 4
# of golden logits on another machine, over the largest: other kernels sum in another order; in integers, what lies half way
# between two steps may go either way in each of some fifty tensors, which is less than what rounding all of them costs
GOLDEN_TOLERANCE = {"fp32": 1e-4, "fp16": 1e-2, "integers": 2e-2}
BATCH_TOLERANCE = 1e-4  # between an image alone and the same image in a batch


class ParityError(OfaError):
    """The exported file does not compute what the PyTorch network computes."""


@dataclass(frozen=True)
class ExportedModel:
    """A file that ships."""

    path: Path
    arch: ArchConfig | None  # None: a module that is of no space
    resolution: int
    precision: str
    sha256: str
    size_bytes: int
    parity_error: float  # of the network in fp32: largest |difference| from PyTorch over largest |logit| (deploy.rounded_parity)
    deviation: float  # of this file from PyTorch in fp32, likewise, on its golden images
    quantisation: dict[str, Any] | None  # None: fp32
    run: Path | None  # whose weights it holds


@dataclass(frozen=True)
class Source:
    """A PyTorch network and what its users need to know."""

    net: nn.Module  # fp32, in eval mode
    preprocess: dict[str, Any]
    examples: NDArray[np.uint8]  # images (n, stored_size, stored_size, 3), a few
    facts: dict[str, Any]  # also in the file's metadata: space, arch, classes, weights_sha256
    record: dict[str, Any]  # besides in model.json: limits, predicted, devices, ...
    arch: ArchConfig | None = None
    run: Path | None = None


def preprocessing(resolution: int, stored_size: int, how: Preprocessing) -> dict[str, Any]:
    """Return preprocess.json: from an image file to the network's input."""
    return {
        "schema": PREPROCESS_SCHEMA,
        "layout": "NCHW",
        "channels": "RGB",
        "crop": "centre square",
        "stored_size": stored_size,
        "resolution": resolution,
        "resize": "to stored_size, then to resolution; bilinear, antialiased",
        "scale": 1 / 255,
        "mean": list(how.mean),
        "std": list(how.std),
        "input": "images",
        "output": "logits",
    }


def metadata(source: Source, precision: str) -> dict[str, str]:
    """Return what stands inside the file, key -> JSON text."""
    facts = {**source.facts, "preprocess": source.preprocess, "precision": precision, "versions": versions()}
    return {f"ofa.{name}": json.dumps(value, sort_keys=True) for name, value in facts.items()}


def pack(
    out: Path | str,
    content: bytes,
    source: Source,
    *,
    reference: bytes,
    precision: str = "fp32",
    layers: Mapping[str, str] | None = None,
    quantisation: Mapping[str, Any] | None = None,
    files: Mapping[str, bytes] | None = None,
) -> ExportedModel:
    """Check a file and write its bundle.

    Args:
        out: folder to write.
        content: the file that ships.
        source: the network that it holds.
        reference: the same network in fp32, but for layers with bits of their own, by the same door; `content` where it is that.
        layers: layer -> precision, where it is another than the file's.
        quantisation: what leaving fp32 cost, for model.json.
        files: further files of the bundle, by name.
    Raises:
        ParityError: if ONNX Runtime and PyTorch disagree; nothing is written then.
        OfaError: if the file is not sound otherwise, or cannot be written.
    """
    out, resolution = Path(out), int(source.preprocess["resolution"])
    model = check_file(content, out / "model.onnx")
    session = open_session(content, get_device(REFERENCE_DEVICE))
    error = file_parity_error(source.net, reference, resolution)
    if not error <= TOLERANCE:
        raise ParityError(
            f"ONNX Runtime differs from PyTorch by {error:.1e} of the largest logit, expected at most {TOLERANCE:.0e}; "
            "nothing was written"
        )
    if not (alone := _batch_error(session, resolution)) <= BATCH_TOLERANCE:
        raise ParityError(f"an image alone and in a batch differ by {alone:.1e} of the largest logit; nothing was written")
    golden, deviation = _golden(source, session, precision)
    record: dict[str, Any] = {
        "schema": MODEL_SCHEMA,
        "sha256": hashlib.sha256(content).hexdigest(),
        "size_bytes": len(content),
        "precision": precision,
        "opset": model.opset_import[0].version,
        "ir_version": model.ir_version,
        "layers": dict(layers or {}),
        **source.facts,
        "preprocess": source.preprocess,
        "limits": [],
        "predicted": {},
        "devices": {},
        "parity_error": error,
        "deviation": deviation,
        "quantisation": None if quantisation is None else dict(quantisation),
        "versions": versions(),
        "host": host_facts(),
        **source.record,
    }
    parts = {
        "model.onnx": content,
        "model.safetensors": save({name: tensor.contiguous() for name, tensor in source.net.state_dict().items()}),
        "preprocess.json": format_json(source.preprocess),
        "labels.txt": "".join(f"{name}\n" for name in source.facts["classes"]).encode(),
        "golden.npz": golden,
        "run.py": (Path(__file__).parent / "runner.py").read_bytes(),
        **(files or {}),
    }
    parts |= {"model.json": format_json(record), "MODEL_CARD.md": render_card(record).encode()}
    write_bundle(out, parts)
    return ExportedModel(
        path=out / "model.onnx",
        arch=source.arch,
        resolution=resolution,
        precision=precision,
        sha256=record["sha256"],
        size_bytes=len(content),
        parity_error=error,
        deviation=deviation,
        quantisation=record["quantisation"],
        run=source.run,
    )


def check_file(content: bytes, path: Path) -> onnx.ModelProto:
    """Return the model of a file that is sound: valid ONNX, all weights inside, no BatchNormalization left.

    Raises:
        OfaError: saying what is wrong.
    """
    require_self_contained(content, path)
    model = onnx.load_from_string(content)
    try:
        onnx.checker.check_model(model, full_check=True)
    except Exception as error:  # the checker and shape inference share no base
        raise OfaError(f"{path}: not valid ONNX ({first_line(error)}); nothing was written") from None
    if any(node.op_type == "BatchNormalization" for node in model.graph.node):
        raise OfaError(f"{path}: a BatchNormalization was not folded; nothing was written")
    return model


def preprocessed(images: NDArray[np.uint8], preprocess: Mapping[str, Any]) -> Tensor:
    """Turn images (n, s, s, 3) into network input (n, 3, r, r) as preprocess.json says."""
    how = Preprocessing(tuple(preprocess["mean"]), tuple(preprocess["std"]), flip=False)
    return how(torch.from_numpy(images).permute(0, 3, 1, 2), int(preprocess["resolution"])).contiguous()


@torch.no_grad()
def _golden(source: Source, session: Session, precision: str) -> tuple[bytes, float]:
    """Return golden.npz, and how far the file is from the PyTorch network on its images."""
    images = preprocessed(source.examples, source.preprocess)
    expected, found = source.net(images).numpy(), session.run(images.numpy())
    integers = grid_of(precision) is not None or has_bits(source.net)
    deviation = relative_error(found, expected)
    tolerance = max(GOLDEN_TOLERANCE["integers"], deviation) if integers else GOLDEN_TOLERANCE[precision]
    arrays = {
        "images": source.examples,
        "logits": found,
        "reference": expected,
        "tolerance": np.array(tolerance, np.float32),
    }
    return format_arrays(arrays), deviation


def _batch_error(session: Session, resolution: int) -> float:
    images = random_images(resolution)[-1]
    return relative_error(np.concatenate([session.run(image[None]) for image in images]), session.run(images))


def format_arrays(arrays: Mapping[str, NDArray[Any]]) -> bytes:
    """Return an .npz file; numpy's own writer puts the time into it, equal arrays must give equal bytes."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, array in arrays.items():
            data = io.BytesIO()
            np.save(data, np.asarray(array, order="C"), allow_pickle=False)
            archive.writestr(zipfile.ZipInfo(f"{name}.npy"), data.getvalue(), zipfile.ZIP_DEFLATED)
    return file.getvalue()
