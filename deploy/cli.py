"""Command line verbs about files and machines: verify, bench, doctor; export is in export_cli.py."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ofa.cli_support import command, print_json
from ofa.errors import OfaError

if TYPE_CHECKING:
    from deploy.verify import Verification


class Format(str, Enum):
    """What is printed on stdout."""

    table = "table"
    json = "json"
    csv = "csv"


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

    found = verify_model(model, data=data, limits=where, devices=device_names(device), seconds=seconds)
    say_checks(found)
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


def device_names(given: Sequence[str] | None) -> list[str]:
    """Split what an option was given: repeated, or with commas."""
    return [name.strip() for text in given or () for name in text.split(",")]


def say_checks(found: Verification) -> None:
    """Say what was verified, a line each."""
    from ofa.progress import say

    for check in found.checks:
        say(f"{'ok  ' if check.ok else 'FAIL'} {check.name}: {check.detail}")


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
    names = device_names(device) or ["ort_cpu_1t"]
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
