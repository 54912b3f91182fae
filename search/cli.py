"""The command `ofa`: the verbs of all rooms, and those about which network to take: search, report, demo.

This is the topmost module; nothing imports it. Heavy imports stay inside functions, so that --help answers at once.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

import deploy.cli
import deploy.export_cli
import latency.cli
import ofa.cli
import ofa.text_cli
from ofa.cli_support import command, print_json
from search import nas_cli

if TYPE_CHECKING:
    from search.menu import InfeasibleTarget
    from search.result import SearchResult

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
    run: Annotated[Path, typer.Argument(help="Run directory that `ofa train` made; with --space it may be a new one.")],
    where: Annotated[
        list[str] | None,
        typer.Option(help='A limit, e.g. "latency@pi4 <= 12ms"; repeat for more.'),
    ] = None,
    maximize: Annotated[list[str] | None, typer.Option("--max", help="accuracy, which is also the default.")] = None,
    minimize: Annotated[
        list[str] | None, typer.Option("--min", help='A cost, e.g. "latency@pi4"; with --max accuracy the result is a front.')
    ] = None,
    per_device: Annotated[
        bool, typer.Option("--per-device", help="The best network for each device, not one network for all of them.")
    ] = False,
    sweep: Annotated[
        str | None, typer.Option(help='The best network at each of many limits, e.g. "latency@pi4: 4ms..20ms x9".')
    ] = None,
    evals: Annotated[
        int | None,
        typer.Option(help="Networks to measure, 100; where a table or predictor tells accuracy, 200,000 for each target."),
    ] = None,
    rounds: Annotated[int, typer.Option(help="Times that the predictor is fitted again and says what to measure next.")] = 6,
    strategy: Annotated[
        str | None,
        typer.Option(
            help="aging_evolution, coarse_to_fine, controller, evolution, local, nsga2, random, reinforce or spos; its own "
            "numbers may follow (spos:population=50,generations=20); default: evolution, or nsga2 with several objectives."
        ),
    ] = None,
    predictor: Annotated[
        str,
        typer.Option(
            help="auto, none (the strategy itself asks for measurements), or gaussian_process, ridge, ridge_pairs, "
            "random_forest, gradient_boosting, blend, mlp, torch_mlp, macs; several with commas."
        ),
    ] = "auto",
    accuracy: Annotated[
        str,
        typer.Option(help="supernet, FILE.csv, FILE.npz (MIT's predictor), MODULE:FUNCTION, proxy:naswot or proxy:synflow."),
    ] = "supernet",
    reward: Annotated[
        str | None, typer.Option(help="mnasnet_soft, mnasnet_hard or mobilenetv3: limits are targets that may be missed.")
    ] = None,
    engine: Annotated[str | None, typer.Option(help="Where to measure: joblib:2, dask:ADDRESS or ray:ADDRESS.")] = None,
    timeout: Annotated[float | None, typer.Option(help="Seconds that MODULE:FUNCTION may take for one network.")] = None,
    space: Annotated[str | None, typer.Option(help="Start RUN as a search in this space, without a supernet.")] = None,
    tag: Annotated[str | None, typer.Option(help="Write to RUN/search/TAG instead of RUN/search.")] = None,
    seed: Annotated[int, typer.Option(help="Everything random follows from it.")] = 0,
    json: Annotated[bool, typer.Option("--json", help="Print JSON on stdout.")] = False,
) -> Path | None:
    """Find the most accurate network under your limits.

    All limits must hold; exit 3 if no network (or, of several targets, none) meets them.
    Limits: latency@DEVICE, energy@DEVICE, macs, params, memory, size (both also @fp16, @int8) <= a number with its unit or a
    share such as 60% of the largest network; accuracy >= 0.9.

    Results: RUN/search[/TAG]/best, front.json, front.csv; of several targets one folder each, and RUN/search/menu.csv.
    What was measured is kept: another limit, another device or another day costs only what is new.
    Example: ofa search runs/x --where "latency@pi4 <= 12ms" --where "latency@laptop <= 3ms" --per-device
    """
    from ofa.errors import OfaError
    from ofa.progress import say
    from search import targets
    from search.constraints import InfeasibleError
    from search.menu import InfeasibleTarget
    from search.run import open_run, search_targets
    from search.tables import show_menu

    limits, began = where or [], (run / "run.json").exists()
    if per_device and sweep:
        raise OfaError("--per-device and --sweep: expected one of them; a sweep may be given other limits with --where")
    wanted = targets.sweep(sweep, limits) if sweep else targets.per_device(limits) if per_device else {"": limits}
    try:
        found = search_targets(
            open_run(run, space),
            wanted,
            maximize=maximize,
            minimize=minimize,
            strategy=strategy,
            evals=evals,
            rounds=rounds,
            predictor=predictor,
            accuracy=accuracy,
            reward=reward,
            engine=engine,
            timeout_s=timeout,
            tag=tag,
            seed=seed,
        )
    except OfaError as error:
        if json and isinstance(error, InfeasibleError):
            print_json({"best": None, "reason": str(error)})
        if not began and not (run / "search").exists():  # nothing is in it yet but its space, which may be the mistake
            (run / "run.json").unlink(missing_ok=True)
        raise
    if len(wanted) > 1:
        show_menu(found)
    for result in found.values():
        if len(wanted) == 1 and not isinstance(result, InfeasibleTarget):
            costs = ", ".join(describe_cost(key, value) for key, value in result.best.costs.items())
            say(f"best: {result.describe_accuracy()}, {costs}  -> {result.path / 'best'}")
            if len(result.objectives) > 1:
                say(f"front: {len(result.front)} networks  -> {result.path / 'front.csv'}")
    if json:
        summaries = {name: _summary(result) for name, result in found.items()}
        print_json({"targets": summaries} if len(wanted) > 1 else summaries.popitem()[1])
    return run


def _summary(found: SearchResult | InfeasibleTarget) -> dict[str, Any]:
    from search.menu import InfeasibleTarget

    if isinstance(found, InfeasibleTarget):
        return {"best": None, "reason": found.reason}
    return {
        "best": str(found.path / "best"),
        "accuracy": found.accuracy,
        "top1": found.best.top1,
        "costs": found.best.costs,
        "front": len(found.front),
        "new_evaluations": found.new_evaluations,
        "predictor": found.predictor and found.predictor["kendall_tau"],
    }


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
    ofa.text_cli.train_text,
    latency.cli.profile,
    latency.cli.predict,
    search,
    deploy.export_cli.export,
    deploy.cli.verify,
    deploy.cli.bench,
    report,
    demo,
    ofa.cli.import_,
    ofa.cli.spaces,
    deploy.cli.doctor,
):
    app.command(verb.__name__.rstrip("_").replace("_", "-"))(verb)  # import_ is `ofa import`
app.add_typer(nas_cli.app)


def main() -> None:
    """Run the command line."""
    app()
