"""Export: from an architecture of a trained run to a folder with one ONNX file that needs nothing else.

model.onnx          the network, BatchNorm folded, dynamic batch, facts in its metadata
model.json          what it is, where it came from, what it must keep (limits), SHA-256 of the file
model.safetensors   the same network's PyTorch weights, for the parity check and for further training
arch.json           the architecture
MODEL_CARD.md       the same facts for people
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from safetensors.torch import save
from torch import nn

from deploy.device import get_device
from deploy.emit import OPSET, emit
from deploy.runtimes import Session, open_session
from ofa.artefacts import ArtefactError, read_json, sha256_of, write_bytes, write_json
from ofa.block_spec import BlockSpec
from ofa.blocks import ConvBN
from ofa.errors import OfaError
from ofa.run_dir import Run, host_facts, versions
from ofa.space import ARCH_SCHEMA, ArchConfig
from ofa.training.calibration import calibrate
from ofa.training.data import calibration_batches

MODEL_SCHEMA = "ofa.model/1"
CANDIDATE_SCHEMA = "ofa.candidate/1"
PARITY_TOLERANCE = 1e-4  # of the largest |logit|: float32 sums in another order differ by 1e-6 to 1e-5 of it
REFERENCE_DEVICE = "ort_cpu_1t"  # where parity is checked


class ParityError(OfaError):
    """The exported file does not compute what the PyTorch network computes."""


@dataclass(frozen=True)
class ExportedModel:
    """A file that ships."""

    path: Path
    arch: ArchConfig
    resolution: int
    sha256: str
    size_bytes: int
    parity_error: float  # largest |difference| from PyTorch over largest |logit|
    run: Path  # whose weights it holds


def export_subnet(source: Path | str, out: Path | str, *, run: Path | str | None = None) -> ExportedModel:
    """Extract an architecture from its trained supernet, calibrate BatchNorm, write the ONNX file and check it.

    Args:
        source: a search's best/ folder, or an arch.json.
        out: folder to write.
        run: the run that holds the weights; None = the run directory that `source` lies in.
    Raises:
        OfaError: if the architecture or the run cannot be read, or do not fit each other.
        ParityError: if ONNX Runtime and PyTorch disagree; nothing is written then.
    """
    source, out = Path(source), Path(out)
    arch_path = source / "arch.json" if source.is_dir() else source
    trained = Run(run if run is not None else _enclosing_run(arch_path))
    arch = trained.space.from_json(read_json(arch_path, schema=ARCH_SCHEMA))
    candidate = _candidate(arch_path.parent / "candidate.json", trained, arch)

    supernet = trained.load_supernet()
    train, _ = trained.load_train_and_validation()
    resolution = trained.space.resolution(arch)
    net = supernet.extract(arch)
    calibrate(net, calibration_batches(train, trained.preprocess, resolution))

    facts: dict[str, Any] = {
        "space": trained.space.name,
        "arch": trained.space.to_json(arch)["values"],
        "classes": list(trained.data.classes),
        "preprocess": {
            "layout": "NCHW",
            "channels": "RGB",
            "resolution": resolution,
            "crop": "centre square",
            "stored_size": trained.data.image_size,
            "resize": "to stored_size, then to resolution; bilinear, antialiased",
            "scale": 1 / 255,
            "mean": list(trained.data.mean),
            "std": list(trained.data.std),
        },
        "weights_sha256": trained.weights_sha256,
        "versions": versions(),
    }
    blocks = trained.space.blocks(arch)
    content = emit(blocks, fold(net), metadata={f"ofa.{k}": json.dumps(v, sort_keys=True) for k, v in facts.items()})
    onnx.checker.check_model(onnx.load_from_string(content), full_check=True)
    error = parity_error(net, open_session(content, get_device(REFERENCE_DEVICE)), resolution)
    if not error <= PARITY_TOLERANCE:
        raise ParityError(
            f"ONNX Runtime differs from PyTorch by {error:.1e} of the largest logit, "
            f"expected at most {PARITY_TOLERANCE:.0e}; nothing was written"
        )

    write_bytes(out / "model.onnx", content)
    write_bytes(out / "model.safetensors", save(dict(net.state_dict())))
    write_json(out / "arch.json", trained.space.to_json(arch))
    digest = sha256_of(out / "model.onnx")
    record: dict[str, Any] = {
        "schema": MODEL_SCHEMA,
        "sha256": digest,
        "size_bytes": len(content),
        **facts,
        "data": trained.data.source,
        "run": str(trained.path.resolve().name),
        "parity_error": error,
        "opset": OPSET,
        "ir_version": 8,
        "host": host_facts(),
        **candidate,
    }
    write_json(out / "model.json", record)
    write_bytes(out / "MODEL_CARD.md", _card(record, blocks).encode())
    trained.note_export(out)
    return ExportedModel(out / "model.onnx", arch, resolution, digest, len(content), error, trained.path)


def fold(net: nn.Module) -> dict[str, NDArray[np.float32]]:
    """Return a network's weights by the emitter's names, every BatchNorm folded into the convolution before it.

    In float64, so that the only error left is the final rounding.
    """
    weights: dict[str, torch.Tensor] = {}
    folded = {module.conv for module in net.modules() if isinstance(module, ConvBN)}
    for name, module in net.named_modules():
        if isinstance(module, ConvBN):
            norm = module.bn
            mean, var = norm.get_buffer("running_mean").double(), norm.get_buffer("running_var").double()
            scale = norm.weight.double() / (var + norm.eps).sqrt()
            weights[f"{name}.weight"] = module.conv.weight.double() * scale.view(-1, 1, 1, 1)
            weights[f"{name}.bias"] = norm.bias.double() - mean * scale
        elif isinstance(module, nn.Conv2d) and module not in folded:
            weights[f"{name}.weight"] = module.weight
            if module.bias is not None:
                weights[f"{name}.bias"] = module.bias
        elif isinstance(module, nn.Linear):
            block = name.removesuffix(".linear")
            weights[f"{block}.weight"] = module.weight
            if module.bias is not None:
                weights[f"{block}.bias"] = module.bias
    return {name: tensor.detach().float().numpy() for name, tensor in weights.items()}


@torch.no_grad()
def parity_error(net: nn.Module, session: Session, resolution: int) -> float:
    """Return the largest |difference| of logits over the largest |logit|, for batches of 1, 3 and 8 random images."""
    worst = 0.0
    for batch in (1, 3, 8):
        images = np.random.default_rng(batch).standard_normal((batch, 3, resolution, resolution), dtype=np.float32)
        expected = net(torch.from_numpy(images)).numpy()
        worst = max(worst, float(np.abs(session.run(images) - expected).max() / np.abs(expected).max()))
    return worst


def _enclosing_run(path: Path) -> Path:
    folder = next((p for p in path.resolve().parents if (p / "run.json").exists()), None)
    if not path.exists():
        raise ArtefactError(f"{path}: no such file; expected a search's best/ folder or an arch.json")
    if folder is None:
        raise ArtefactError(f"{path}: lies in no run directory; name the run that holds its weights with --run")
    return folder


def _candidate(path: Path, run: Run, arch: ArchConfig) -> dict[str, Any]:
    """What the search said of this architecture, and of its accuracy if it has these weights; nothing if it is another's."""
    if not path.exists():
        return {}
    candidate = read_json(path, schema=CANDIDATE_SCHEMA)
    if candidate.get("arch") != run.space.to_json(arch)["values"]:
        return {}
    names = ["limits", "predicted", "devices"]
    names += ["top1_validation"] if candidate.get("weights_sha256") == run.weights_sha256 else []
    return {name: candidate[name] for name in names if name in candidate}


def _card(record: Mapping[str, Any], blocks: Mapping[str, BlockSpec]) -> str:
    pre = record["preprocess"]
    lines = [
        "# model.onnx",
        "",
        f"Image classifier, {len(record['classes'])} classes, found in the space `{record['space']}`. "
        f"{record['size_bytes'] / 2**20:.2f} MiB, SHA-256 `{record['sha256']}`.",
        "",
        f"Input `images`: float32 (batch, 3, {pre['resolution']}, {pre['resolution']}), RGB: the centre square of the image, "
        f"resized (bilinear, antialiased) to {pre['stored_size']} px, then to {pre['resolution']} px, "
        f"scaled to [0, 1], minus mean {pre['mean']}, divided by std {pre['std']}. "
        f"Output `logits`: (batch, {len(record['classes'])}).",
        "",
        f"Classes: {', '.join(record['classes'])}",
        "",
        *([f"Limits: {'; '.join(record['limits'])}", ""] if record.get("limits") else []),
        "Check it: `ofa verify model.onnx`",
        "",
        "| block | |",
        "|---|---|",
        *(f"| {name} | {spec} |" for name, spec in blocks.items()),
        "",
    ]
    return "\n".join(lines)
