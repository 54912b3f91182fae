"""The command `ofa`: the verbs of all rooms, and those about which network to take: search, report, demo.

This is the topmost module; nothing imports it. Heavy imports stay inside functions, so that --help answers at once.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

import deploy.cli
import latency.cli
import ofa.cli
from ofa.cli_support import command, print_json

app = typer.Typer(
    name="ofa",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Train one elastic network once; get, for every device you own, the most accurate ONNX file under its limit, "
    "with the proof.",
    epilog="In order: train, profile, search, export, verify, report. `ofa demo` does all of them in minutes on built-in data. "
    "Exit codes: 0 ok, 1 error, 2 usage, 3 no network meets the limits, 4 verification failed.",
)


@command
def search(
    run: Annotated[Path, typer.Argument(help="Run directory that `ofa train` made.")],
    where: Annotated[
        list[str] | None,
        typer.Option(help='A limit, e.g. "latency@ort_cpu_1t <= 3ms", "params <= 1.5M", "macs <= 20M"; repeat for more.'),
    ] = None,
    tag: Annotated[str | None, typer.Option(help="Write to RUN/search/TAG instead of RUN/search.")] = None,
    evals: Annotated[int, typer.Option(help="Subnets measured to fit the predictor; shared by all searches of the run.")] = 60,
    finalists: Annotated[int, typer.Option(help="Subnets measured under the limits, in each round.")] = 6,
    rounds: Annotated[int, typer.Option(help="Rounds of: evolve with the predictor, measure the finalists, fit again.")] = 2,
    seed: Annotated[int, typer.Option(help="Everything random follows from it.")] = 0,
    json: Annotated[bool, typer.Option("--json", help="Print JSON on stdout.")] = False,
) -> Path | None:
    """Find the most accurate network under your limits.

    All limits must hold; exit 3 if no network meets them.

    What was measured is kept: another limit costs only its finalists.
    Example: ofa search runs/x --where "latency@ort_cpu_1t <= 3ms"
    """
    from ofa.progress import say
    from search.run import SearchConfig, search_run

    config = SearchConfig(evals=evals, finalists=finalists, rounds=rounds, seed=seed)
    found = search_run(run, where or [], tag=tag, config=config)
    costs = ", ".join(describe_cost(key, value) for key, value in found.best.costs.items())
    say(f"best: top-1 {found.best.top1:.4f} on validation images, {costs}  -> {found.path / 'best'}")
    if json:
        print_json(
            {
                "best": str(found.path / "best"),
                "top1": found.best.top1,
                "costs": found.best.costs,
                "predictor": found.predictor["kendall_tau"],
            }
        )
    return run


@command
def report(
    run: Annotated[Path, typer.Argument(help="Run directory.")],
    out: Annotated[Path | None, typer.Option("--out", "-o", help="File to write; default: RUN/report.html.")] = None,
) -> Path | None:
    """Write report.html, one file that opens offline.

    Plots, drawings of the chosen networks, numbers and provenance.
    """
    from ofa.progress import say
    from search.report import write_report

    say(f"report: {write_report(run, out)}")
    return None


@command
def demo(
    out: Annotated[Path, typer.Option(help="Run directory to write; an interrupted demo there goes on.")] = Path("runs/demo"),
    epochs: Annotated[int, typer.Option(help="Epochs of training.")] = 20,
) -> Path | None:
    """Run the whole job in minutes on built-in data.

    Train on digits, profile this machine, search under two limits, export, verify, report.
    """
    from search.demo import run_demo

    run_demo(out, epochs=epochs)
    return out


def describe_cost(key: str, value: float) -> str:
    """Write a cost with its unit, e.g. "latency@pi4 2.5ms"."""
    from deploy.limits import format_value

    return f"{key} {format_value(key.partition('@')[0], value)}"


for verb in (
    ofa.cli.train,
    ofa.cli.specialize,
    latency.cli.profile,
    latency.cli.predict,
    search,
    deploy.cli.export,
    deploy.cli.verify,
    report,
    demo,
    ofa.cli.import_,
    ofa.cli.spaces,
    deploy.cli.doctor,
):
    app.command(verb.__name__.rstrip("_"))(verb)  # import_ is `ofa import`


def main() -> None:
    """Run the command line."""
    app()
