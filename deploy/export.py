"""Export: from an architecture of a trained run to a bundle, one ONNX file that needs nothing else and the proof of it.

Networks of our spaces are written by the block emitter; deploy/export_module.py is the door for any other PyTorch module. Both
end in deploy/pack.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch import nn

from deploy.comparison import compare
from deploy.device import get_device
from deploy.emit import emit, layers_of_bits, short_names
from deploy.fold import fold
from deploy.pack import GOLDEN_IMAGES, ExportedModel, Source, metadata, pack, preprocessing
from deploy.parity import REFERENCE_DEVICE
from deploy.rounding import MAX_DROP, Format, TrainedRun, describe, describe_bits, round_network
from deploy.runtimes import open_session
from ofa.artefacts import ArtefactError, format_json, read_json
from ofa.block_spec import Blocks, BlockSpec
from ofa.progress import say
from ofa.run_dir import Run
from ofa.space import ARCH_SCHEMA, ArchConfig
from ofa.training.calibration import calibrate
from ofa.training.data import calibration_batches

CANDIDATE_SCHEMA = "ofa.candidate/1"


def export_subnet(
    source: Path | str,
    out: Path | str,
    *,
    run: Path | str | None = None,
    precision: str = "fp32",
    opset: int | None = None,
    layers: Mapping[str, str] | None = None,
    max_drop: float = MAX_DROP,
    finetune_epochs: int = 0,
) -> ExportedModel:
    """Extract an architecture from its trained supernet, calibrate BatchNorm, write the ONNX file and check it.

    Args:
        source: a search's best/ folder, or an arch.json.
        out: folder to write.
        run: the run that holds the weights; None = the run directory that `source` lies in.
        precision: fp32, fp16, int8 or a16w8 (deploy.precision), of all layers that have no bits of their own.
        opset: None = 17, or 21 where the precision needs it.
        layers: pattern of layers' names, such as "*.depthwise" -> precision; "fp32" leaves them in float.
        max_drop: top-1 on validation images that rounding may cost; while it costs more, layers are left in float.
        finetune_epochs: epochs of training with the weights and activations rounded as they will be.
    Raises:
        OfaError: if the architecture or the run cannot be read, or do not fit each other.
        ParityError: if ONNX Runtime and PyTorch disagree; nothing is written then.
    """
    arch_path = Path(source) / "arch.json" if Path(source).is_dir() else Path(source)
    how = Format(precision, opset, layers, max_drop, finetune_epochs)
    weights = TrainedRun(Run(run if run is not None else _enclosing_run(arch_path)))
    return _export(weights, arch_path, Path(out), how)


def export_searches(
    run: Path | str,
    out: Path | str,
    *,
    precision: str = "fp32",
    opset: int | None = None,
    layers: Mapping[str, str] | None = None,
    max_drop: float = MAX_DROP,
    finetune_epochs: int = 0,
) -> list[ExportedModel]:
    """Export what every search of a run found, each to a folder of its name in `out`; arguments as of `export_subnet`.

    Raises:
        OfaError: if the run holds no search, or as `export_subnet`.
    """
    how = Format(precision, opset, layers, max_drop, finetune_epochs)
    weights = TrainedRun(Run(run))
    found = sorted(path for pattern in ("best", "*/best") for path in weights.run.path.glob(f"search/{pattern}/arch.json"))
    if not found:
        raise ArtefactError(f"{run}: holds no finished search; run: ofa search {run}")
    exported = []
    for number, path in enumerate(found, 1):
        name = "best" if path.parents[1].name == "search" else path.parents[1].name  # a search without a tag
        say(f"{number}/{len(found)} {name}")
        exported.append(_export(weights, path, Path(out) / name, how))
    return exported


def _export(trained: TrainedRun, arch_path: Path, out: Path, how: Format) -> ExportedModel:
    run = trained.run
    arch = run.space.from_json(read_json(arch_path, schema=ARCH_SCHEMA))
    resolution, blocks = run.space.resolution(arch), run.space.blocks(arch)
    net = trained.supernet.extract(arch)
    calibrate(net, calibration_batches(trained.train, run.preprocess, resolution))
    weights = fold(net)
    rounded = round_network(trained, blocks, weights, resolution, how)
    source = _source(trained, arch, net, out, _candidate(arch_path.parent / "candidate.json", run, arch))
    content = emit(
        blocks,
        rounded.weights,
        precision=how.precision,
        scales=rounded.scales,
        layers=rounded.layers,
        opset=how.opset,
        metadata=metadata(source, how.precision),
    )
    own = layers_of_bits(blocks)
    if own:
        say(describe_bits(own, how.precision))
    if rounded.scales is not None or own:
        content = short_names(content)
    reference, quantisation = content, None
    if how.precision != "fp32":
        reference = emit(blocks, weights)
        ours, theirs = (open_session(each, get_device(REFERENCE_DEVICE)) for each in (content, reference))
        cost = compare(ours, theirs, trained.judged, run.preprocess, resolution)
        say(describe(how.precision, cost, rounded.layers))
        quantisation = {**asdict(cost), "split": "validation", **rounded.record}
        source.record["top1_validation"] = cost.top1
    model = pack(
        out,
        content,
        source,
        reference=reference,
        precision=how.precision,
        layers={**own, **rounded.layers},
        quantisation=quantisation,
        files={"arch.json": format_json(run.space.to_json(arch), sealed=True)},
    )
    run.note_export(out)
    return model


def _source(trained: TrainedRun, arch: ArchConfig, net: nn.Module, out: Path, known: dict[str, Any]) -> Source:
    """Describe a network of a run."""
    run = trained.run
    examples = trained.validation.images[:GOLDEN_IMAGES].permute(0, 2, 3, 1).contiguous().numpy()
    return Source(
        net=net,
        preprocess=preprocessing(run.space.resolution(arch), run.data.image_size, run.preprocess),
        examples=examples,
        facts={
            "space": run.space.name,
            "arch": run.space.to_json(arch)["values"],
            "classes": list(run.data.classes),
            "weights_sha256": run.weights_sha256,
        },
        record={
            "name": out.resolve().name,
            "data": run.data.source,
            "run": run.path.resolve().name,
            "blocks": _fields(run.space.blocks(arch)),
            "bn_eps": run.space.bn_eps,
            **known,
        },
        arch=arch,
        run=run.path,
    )


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
    anchors = {}
    for device, anchor in candidate.get("anchors", {}).items():
        blocks = run.whole_space.blocks(run.whole_space.from_values(anchor["arch"]))  # a run of one network has the device's too
        anchors[device] = {"blocks": _fields(blocks), "latency_ms": anchor["latency_ms"]}
    return {"anchors": anchors, **{name: candidate[name] for name in names if name in candidate}}


def _fields(blocks: Mapping[str, BlockSpec]) -> dict[str, Any]:
    """Blocks as `deploy.model_record.read_blocks` reads them."""
    reads = blocks.reads if isinstance(blocks, Blocks) else {}
    return {name: spec.to_dict() | ({"reads": list(reads[name])} if name in reads else {}) for name, spec in blocks.items()}
