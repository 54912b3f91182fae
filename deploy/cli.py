"""Command line verbs about files and machines: export, verify, bench, doctor."""

from __future__ import annotations

from dataclasses import asdict
from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from ofa.cli_support import command, print_json


class Format(str, Enum):
    """What is printed on stdout."""

    table = "table"
    json = "json"
    csv = "csv"


@command
def export(
    source: Annotated[Path, typer.Argument(help="A search's best/ folder, or an arch.json.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder to write.")],
    run: Annotated[Path | None, typer.Option(help="Run that holds the weights; default: the one that SOURCE lies in.")] = None,
    json: Annotated[bool, typer.Option("--json", help="Print JSON on stdout.")] = False,
) -> Path | None:
    """Write a found network as one ONNX file.

    Extracted from the supernet, BatchNorm calibrated and folded, checked against PyTorch.
    Example: ofa export runs/x/search/best -o out/
    """
    from deploy.export import export_subnet
    from ofa.progress import say

    model = export_subnet(source, out, run=run)
    say(
        f"{model.path}: {model.size_bytes / 2**20:.2f} MiB, input {model.resolution} px, "
        f"differs from PyTorch by {model.parity_error:.1e} of the largest logit"
    )
    if json:
        print_json(
            {"path": str(model.path), "sha256": model.sha256, "size_bytes": model.size_bytes, "parity_error": model.parity_error}
        )
    return model.run


@command
def verify(
    model: Annotated[Path, typer.Argument(help="An exported model.onnx.")],
    data: Annotated[str | None, typer.Option(help="Images to classify; default: the test images of the run's data.")] = None,
    where: Annotated[
        list[str] | None,
        typer.Option(
            help='What must hold, e.g. "latency@ort_cpu_1t <= 3ms" or "top1 >= 0.9"; default: the limits of its search.'
        ),
    ] = None,
    device: Annotated[list[str] | None, typer.Option(help="Further devices to time it on.")] = None,
    seconds: Annotated[float, typer.Option(help="How long to time it on each device.", min=0.1)] = 3.0,
    json: Annotated[bool, typer.Option("--json", help="Print JSON on stdout.")] = False,
) -> Path | None:
    """Prove an exported file; exit 4 if it breaks a limit.

    Is it whole, equal to PyTorch, how accurate on test images, how fast against its limits.
    Example: ofa verify out/model.onnx --where "latency@ort_cpu_1t <= 3ms" --where "top1 >= 0.9"
    """
    from deploy.verify import verify_model
    from ofa.progress import say

    found = verify_model(model, data=data, limits=where, devices=device or (), seconds=seconds)
    for check in found.checks:
        say(f"{'ok  ' if check.ok else 'FAIL'} {check.name}: {check.detail}")
    if json:
        print_json(
            {
                "ok": found.ok,
                "top1": found.top1,
                "checks": [asdict(c) for c in found.checks],
                "latency": {d: asdict(v) for d, v in found.latency.items()},
            }
        )
    found.raise_if_failed()
    return None


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
    from ofa.errors import OfaError
    from ofa.progress import say

    if json and format is Format.csv:
        raise OfaError("--json and --format csv: expected one of them")
    if out is not None and out.suffix not in (".json", ".csv"):
        raise OfaError(f"--out {out}: expected a name that ends in .json or .csv")
    sizes = [int(text) if text.strip().isdecimal() else 0 for text in batch.split(",")]
    if not all(0 < size <= 2**16 for size in sizes):
        raise OfaError(f"--batch {batch!r}: expected numbers of images with commas, such as 1,8,32")
    names = [name.strip() for text in device or ["ort_cpu_1t"] for name in text.split(",")]
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
