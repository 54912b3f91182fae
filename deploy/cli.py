"""Command line verbs about files and machines: export, verify, doctor."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from ofa.cli_support import command, print_json


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
