"""Command line verb about cost: profile."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from ofa.cli_support import command, print_json


@command
def profile(
    run: Annotated[Path, typer.Argument(help="Run directory that `ofa train` made.")],
    device: Annotated[
        str, typer.Option(help="Device name (ort_cpu_1t, ort_cpu_2t) or the path of a device .toml.")
    ] = "ort_cpu_1t",
    rounds: Annotated[int, typer.Option(help="How often everything is timed.")] = 60,
    fresh: Annotated[bool, typer.Option("--fresh", help="Measure anew instead of adding to earlier rounds.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print JSON on stdout.")] = False,
) -> Path | None:
    """Measure this machine's latency table and its error.

    Every block of the space is timed, and some whole networks that tell how wrong their sum is. Interrupted, it goes on
    where it was. Example: ofa profile runs/x --device ort_cpu_1t
    """
    from latency.profile import ProfileConfig, profile_device
    from ofa.progress import say
    from ofa.run_dir import Run

    opened = Run(run)
    table = profile_device(opened, device, config=ProfileConfig(rounds=rounds), fresh=fresh)
    path = opened.latency_path(table.device)
    say(f"{path}: {len(table.entries)} blocks")
    say(f"error on networks it was not calibrated on: {table.error}")
    say(f"a line fitted to MACs alone:              {table.macs_error}")
    say(f"limits are held with a margin of {table.margin:.1%} above predictions")
    if json:
        print_json(
            {"path": str(path), "error": asdict(table.error), "macs_error": asdict(table.macs_error), "margin": table.margin}
        )
    return run
