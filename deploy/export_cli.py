"""The command line verb export: which of the doors a network goes through."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from deploy.cli import device_names, say_checks
from ofa.cli_support import command, print_json
from ofa.errors import OfaError

if TYPE_CHECKING:
    from torch import nn

ANY_NETWORK = "Networks of no run"


@command
def export(
    ctx: typer.Context,
    source: Annotated[
        str,
        typer.Argument(
            help="A search's best/ folder, an arch.json, a run (then whatever its searches found, each to a folder), "
            "package.module:function that returns any network, e.g. torchvision.models:mobilenet_v3_large, a published cell "
            "(darts_v2, ...) or genotype.txt with --weights, or a folder of `ofa train-text`."
        ),
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder to write.")],
    run: Annotated[Path | None, typer.Option(help="Run that holds the weights; default: the one that SOURCE lies in.")] = None,
    precision: Annotated[
        str,
        typer.Option(
            help="fp32, fp16 (half the file), int8 (a quarter) or a16w8 (for accelerators that have it). Blocks that an "
            "architecture gives bits of their own keep those in any."
        ),
    ] = "fp32",
    opset: Annotated[
        int | None, typer.Option(help="ONNX operator set, 13 or later; default: 17, which ONNX Runtime reads since 1.12.")
    ] = None,
    finetune: Annotated[
        int, typer.Option(help="int8, a16w8: epochs of training with weights and activations rounded as they will be.", min=0)
    ] = 0,
    max_drop: Annotated[
        str, typer.Option(help="int8, a16w8: top-1 that may be lost; while more is, the layers that cost most stay in float.")
    ] = "0.5%",
    layer: Annotated[
        list[str] | None,
        typer.Option(
            help='int8, a16w8: another precision for some layers, e.g. "*.depthwise=a16w8" or "final=fp32"; repeatable.'
        ),
    ] = None,
    device: Annotated[
        list[str] | None,
        typer.Option(help="What to time the file on, besides where it is limited; default ort_cpu_1t. Repeatable."),
    ] = None,
    weights: Annotated[
        Path | None,
        typer.Option(
            help="package.module:function or a cell: its state_dict, .safetensors or .pth.", rich_help_panel=ANY_NETWORK
        ),
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(help="Images: their classes, calibration for int8, test images.", rich_help_panel=ANY_NETWORK),
    ] = None,
    labels: Annotated[Path | None, typer.Option(help="Names of the classes, one a line.", rich_help_panel=ANY_NETWORK)] = None,
    resolution: Annotated[
        int,
        typer.Option(
            help="Side of the network's input, pixels; of a cell, what its stem is for.",
            min=1,
            max=4096,
            rich_help_panel=ANY_NETWORK,
        ),
    ] = 224,
    resize: Annotated[
        int | None,
        typer.Option(
            help="Side that images are resized to first, pixels; default: the input's.",
            min=1,
            max=4096,
            rich_help_panel=ANY_NETWORK,
        ),
    ] = None,
    mean: Annotated[
        str, typer.Option(help="Mean of the pixels in [0, 1] that it was trained with.", rich_help_panel=ANY_NETWORK)
    ] = "0.485,0.456,0.406",
    std: Annotated[str, typer.Option(help="Their standard deviation.", rich_help_panel=ANY_NETWORK)] = "0.229,0.224,0.225",
    exporter: Annotated[
        str, typer.Option(help="torchscript, or dynamo (needs onnxscript).", rich_help_panel=ANY_NETWORK)
    ] = "torchscript",
    prove: Annotated[
        bool, typer.Option("--prove/--no-prove", help="Whether to time and verify the file: bench.json, verify.json.")
    ] = True,
    json: Annotated[bool, typer.Option("--json", help="Print JSON on stdout.")] = False,
) -> Path | None:
    """Write a found network as one ONNX file, with the proof beside it.

    Extracted from the supernet, BatchNorm calibrated and folded, checked against PyTorch, rounded where that is asked for; then
    timed, and its accuracy measured on test images. The folder is all that a device needs: copy it there and run
    `python run.py --self-test`.

    Example: ofa export runs/x/search/best -o out/int8 --precision int8
    """
    from deploy.bench_table import notes
    from deploy.device import get_device
    from deploy.export import export_searches, export_subnet
    from deploy.export_module import export_module, load_cells, make_module
    from deploy.prove import prove as measure
    from ofa.functions import is_function_name
    from ofa.genotypes import list_genotypes
    from ofa.progress import say

    if (Path(source) / "vocabulary.json").exists():
        _export_language_model(ctx, Path(source), out, json=json)
        return None
    devices = device_names(device)
    for name in devices:
        get_device(name)  # an unknown one is told before anything is done
    if not prove:
        _refuse(ctx, "--no-prove", ("device",), "are for the proof")
    if precision in ("fp32", "fp16"):
        _refuse(ctx, precision, ("max_drop",), "are for int8 and a16w8")
    how: dict[str, Any] = {
        "precision": precision,
        "opset": opset,
        "layers": dict(_layer(text) for text in layer or []),
        "max_drop": _share("--max-drop", max_drop),
        "finetune_epochs": finetune,
    }
    if source in list_genotypes() and weights is None:
        raise OfaError(f"{source}: a published cell needs weights: give --weights, or train it: ofa train --arch {source}")
    if is_function_name(source) or weights is not None:
        _refuse(ctx, source, ("run", "finetune", "max_drop", "layer"), "are for networks of a run")
        classes = None if labels is None else _read_labels(labels)
        if is_function_name(source):
            net: nn.Module = make_module(source, num_classes=_count_classes(classes, data), weights=weights)
        else:
            assert weights is not None
            cells = load_cells(source, weights)
            net = cells.net
            resolution = resolution if _is_given(ctx, "resolution") else cells.resolution
            mean = mean if _is_given(ctx, "mean") else ",".join(map(str, cells.mean))
            std = std if _is_given(ctx, "std") else ",".join(map(str, cells.std))
        models = [
            export_module(
                net,
                out,
                resolution=resolution,
                stored_size=resize,
                mean=_three("--mean", mean),
                std=_three("--std", std),
                classes=classes,
                data=data,
                precision=precision,
                opset=opset,
                exporter=exporter,  # type: ignore[arg-type]  # checked there
            )
        ]
    else:
        unknown = ("weights", "data", "labels", "resolution", "resize", "mean", "std", "exporter")
        _refuse(ctx, source, unknown, "are for package.module:function; a run knows its own")
        if (Path(source) / "run.json").exists():
            if run is not None:
                raise OfaError(f"--run {run}: {source} is a run itself; leave it out")
            models = export_searches(source, out, **how)
        else:
            models = [export_subnet(source, out, run=run, **how)]
    results, proofs = [], []
    for model in models:
        off = model.parity_error if model.precision == "fp32" else model.deviation
        say(
            f"{model.path}: {model.size_bytes / 2**20:.2f} MiB, {model.precision}, input {model.resolution} px, "
            f"differs from PyTorch in fp32 by {off:.2g} of the largest logit"
        )
        result = {
            "path": str(model.path),
            "sha256": model.sha256,
            "size_bytes": model.size_bytes,
            "precision": model.precision,
            "parity_error": model.parity_error,
            "deviation": model.deviation,
            "quantisation": model.quantisation,
        }
        if prove:
            rows, found = measure(model.path, devices=devices)
            say_checks(found)
            for line in notes(rows):
                say(line)
            result |= {"ok": found.ok, "top1": found.top1, "checks": [asdict(check) for check in found.checks]}
            proofs.append(found)
        results.append(result)
    if json:
        print_json({"models": results})
    for found in proofs:  # after all are written: what one breaks takes nothing from the others
        found.raise_if_failed()
    return models[0].run


def _export_language_model(ctx: typer.Context, source: Path, out: Path, *, json: bool) -> None:
    """Write one step of a recurrent language model; it has no images to prove anything on."""
    from deploy.language import export_language_model
    from ofa.progress import say

    given = ("run", "precision", "opset", "finetune", "max_drop", "layer", "device", "weights", "data", "labels", "resolution")
    _refuse(ctx, str(source), (*given, "resize", "mean", "std", "exporter"), "are for networks that classify images")
    model = export_language_model(source, out)
    say(f"{model.path}: {model.size_mib:.2f} MiB, differs from PyTorch by {model.parity_error:.2g} of the largest output")
    if json:
        print_json({"models": [{**asdict(model), "path": str(model.path)}]})


def _refuse(ctx: typer.Context, source: str, names: Sequence[str], why: str) -> None:
    """Refuse options that were given and would do nothing."""
    for name in names:
        if _is_given(ctx, name):
            raise OfaError(f"--{name.replace('_', '-')} with {source}: these options {why}; leave it out")


def _is_given(ctx: typer.Context, name: str) -> bool:
    source = ctx.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"


def _read_labels(path: Path) -> list[str]:
    try:
        names = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise OfaError(f"--labels {path}: cannot be read ({error}); expected the name of a class on each line") from None
    if not names or not all(names):
        raise OfaError(f"--labels {path}: expected the name of a class on each line, none empty")
    return names


def _count_classes(classes: Sequence[str] | None, data: str | None) -> int | None:
    """How many classes a network is to be made for; None = as many as it likes."""
    from ofa.training.data import load_images

    if classes is not None or data is None:
        return None if classes is None else len(classes)
    return len(load_images(data, "train", size=8).classes)


def _three(option: str, text: str) -> tuple[float, float, float]:
    """Read a number for each of red, green and blue."""
    try:
        red, green, blue = map(float, text.split(","))
    except ValueError:
        raise OfaError(f"{option} {text!r}: expected three numbers with commas, such as 0.485,0.456,0.406") from None
    return red, green, blue


def _layer(text: str) -> tuple[str, str]:
    pattern, equals, precision = text.rpartition("=")
    if not (pattern and equals and precision):
        raise OfaError(f'--layer {text!r}: expected PATTERN=PRECISION, such as "*.depthwise=a16w8"')
    return pattern, precision


def _share(option: str, text: str) -> float:
    """Read a share such as 0.5% or 0.005."""
    number = text.removesuffix("%")
    try:
        share = float(number) / (100 if number != text else 1)
    except ValueError:
        share = -1.0
    if not 0 <= share <= 1:
        raise OfaError(f"{option} {text!r}: expected a share, such as 0.5% or 0.005")
    return share
