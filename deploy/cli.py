"""Command line verbs about files and machines: export, verify, bench, doctor."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ofa.cli_support import command, print_json
from ofa.errors import OfaError

if TYPE_CHECKING:
    from deploy.verify import Verification


ANY_NETWORK = "Networks of no run"


class Format(str, Enum):
    """What is printed on stdout."""

    table = "table"
    json = "json"
    csv = "csv"


@command
def export(
    ctx: typer.Context,
    source: Annotated[
        str,
        typer.Argument(
            help="A search's best/ folder, an arch.json, a run (then whatever its searches found, each to a folder), or "
            "package.module:function that returns any network, e.g. torchvision.models:mobilenet_v3_large."
        ),
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder to write.")],
    run: Annotated[Path | None, typer.Option(help="Run that holds the weights; default: the one that SOURCE lies in.")] = None,
    precision: Annotated[
        str, typer.Option(help="fp32, fp16 (half the file), int8 (a quarter) or a16w8 (for accelerators that have it).")
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
        typer.Option(help="package.module:function: its state_dict, .safetensors or .pth.", rich_help_panel=ANY_NETWORK),
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(help="Images: their classes, calibration for int8, test images.", rich_help_panel=ANY_NETWORK),
    ] = None,
    labels: Annotated[Path | None, typer.Option(help="Names of the classes, one a line.", rich_help_panel=ANY_NETWORK)] = None,
    resolution: Annotated[
        int, typer.Option(help="Side of the network's input, pixels.", min=1, max=4096, rich_help_panel=ANY_NETWORK)
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
    from deploy.export_module import export_module, make_module
    from deploy.prove import prove as measure
    from ofa.functions import is_function_name
    from ofa.progress import say

    devices = _names(device)
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
    if is_function_name(source):
        _refuse(ctx, source, ("run", "finetune", "max_drop", "layer"), "are for networks of a run")
        classes = None if labels is None else _read_labels(labels)
        net = make_module(source, num_classes=_count_classes(classes, data), weights=weights)
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
            _say_checks(found)
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


@command
def verify(
    model: Annotated[Path, typer.Argument(help="An exported folder, or the model.onnx in it.")],
    data: Annotated[str | None, typer.Option(help="Images to classify; default: the test images of the run's data.")] = None,
    where: Annotated[
        list[str] | None,
        typer.Option(help='What must hold, e.g. "latency <= 3ms" or "accuracy >= 0.9"; default: the limits of its search.'),
    ] = None,
    device: Annotated[list[str] | None, typer.Option(help="What to time it on, besides where it is limited. Repeatable.")] = None,
    seconds: Annotated[float, typer.Option(help="How long to time it on each device.", min=0.1)] = 3.0,
    json: Annotated[bool, typer.Option("--json", help="Print JSON on stdout.")] = False,
) -> Path | None:
    """Prove an exported file; exit 4 if it breaks a limit.

    Is it whole, equal to PyTorch, how accurate on test images, how fast against its limits.
    Example: ofa verify out/ --device ort_cpu_1t --where "latency <= 3ms" --where "accuracy >= 0.9"
    """
    from deploy.verify import verify_model

    found = verify_model(model, data=data, limits=where, devices=_names(device), seconds=seconds)
    _say_checks(found)
    if json:
        print_json(
            {
                "ok": found.ok,
                "top1": found.top1,
                "fp32": None if found.fp32 is None else asdict(found.fp32),
                "checks": [asdict(c) for c in found.checks],
                "latency": {d: asdict(v) for d, v in found.latency.items()},
            }
        )
    found.raise_if_failed()
    return None


def _names(given: Sequence[str] | None) -> list[str]:
    """Split what an option was given: repeated, or with commas."""
    return [name.strip() for text in given or () for name in text.split(",")]


def _say_checks(found: Verification) -> None:
    from ofa.progress import say

    for check in found.checks:
        say(f"{'ok  ' if check.ok else 'FAIL'} {check.name}: {check.detail}")


def _refuse(ctx: typer.Context, source: str, names: Sequence[str], why: str) -> None:
    """Refuse options that were given and would do nothing."""
    for name in names:
        source_of = ctx.get_parameter_source(name)
        if source_of is not None and source_of.name == "COMMANDLINE":
            raise OfaError(f"--{name.replace('_', '-')} with {source}: these options {why}; leave it out")


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


@command
def bench(
    models: Annotated[list[Path], typer.Argument(help="ONNX files of anybody, or exported folders. Ratios are to the first.")],
    device: Annotated[
        list[str] | None,
        typer.Option(help="What to run them on (default ort_cpu_1t); several with commas. `ofa doctor` lists the names."),
    ] = None,
    batch: Annotated[str, typer.Option(help="Images in a run; several with commas.")] = "1,8,32",
    seconds: Annotated[
        float, typer.Option(help="How long to time each file on each device at each batch size.", min=0.1, max=3600)
    ] = 2.0,
    resolution: Annotated[
        int | None, typer.Option(help="Side in pixels of the input of files that leave it free.", min=1, max=2**16)
    ] = None,
    format: Annotated[Format, typer.Option(help="What to print on stdout.")] = Format.table,
    json: Annotated[bool, typer.Option("--json", help="Print JSON on stdout; as --format json.")] = False,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Write the rows to this .json or .csv as well.")] = None,
) -> Path | None:
    """Time ONNX files on devices of this machine, side by side.

    Latency with its percentiles, images a second at several batch sizes, memory; and where int8 or fp16 is not faster than fp32.

    All are visited in turn, in rounds of random order, so that whatever slows the machine down hits them alike: trust the ratios
    more than the times. Memory is the peak of loading and running a file, above the runtime itself, in a process of its own.
    A file that a device cannot run is named with the reason; the others go on.
    Of a file in an exported folder, the rows are also written to its bench.json.

    Example: ofa bench out/fp32 out/int8 --device ort_cpu_1t,openvino_1t --batch 1,8
    """
    from deploy.bench import bench_models
    from deploy.bench_table import show_table, to_csv, to_json
    from ofa.artefacts import write_bytes, write_json
    from ofa.progress import say

    if json and format is Format.csv:
        raise OfaError("--json and --format csv: expected one of them")
    if out is not None and out.suffix not in (".json", ".csv"):
        raise OfaError(f"--out {out}: expected a name that ends in .json or .csv")
    sizes = [int(text) if text.strip().isdecimal() else 0 for text in batch.split(",")]
    if not all(0 < size <= 2**16 for size in sizes):
        raise OfaError(f"--batch {batch!r}: expected numbers of images with commas, such as 1,8,32")
    names = _names(device) or ["ort_cpu_1t"]
    rows = bench_models(models, names, batch_sizes=sizes, seconds=seconds, resolution=resolution)
    if out is not None:
        write_bytes(out, to_csv(rows).encode()) if out.suffix == ".csv" else write_json(out, to_json(rows))
        say(f"rows: {out}")
    if json or format is Format.json:
        print_json(to_json(rows))
    elif format is Format.csv:
        print(to_csv(rows), end="")
    else:
        show_table(rows)
    return None


@command
def doctor(json: Annotated[bool, typer.Option("--json", help="Print JSON on stdout.")] = False) -> Path | None:
    """Tell what this machine is and what is missing.

    Versions, processor features, threads, and what disturbs timings.
    """
    from deploy.doctor import diagnose

    facts, advice = diagnose()
    if json:
        print_json({"facts": facts, "advice": advice})
        return None
    for name, value in facts.items():
        print(f"{name:22} {value}")
    for line in advice:
        print(f"note: {line}")
    return None
