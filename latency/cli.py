"""Command line verbs about cost: profile and predict."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ofa.cli_support import command, print_json

if TYPE_CHECKING:
    from latency.open import LatencyModel
    from ofa.run_dir import Run

BAR = 40  # characters of the longest bar
MEASURING = ("--device", "--budget", "--rounds", "--precision", "--resolutions", "--fresh", "--reuse", "--settings", "--python")
TAKES = {  # mode of profile -> options that it takes
    "": MEASURING,
    "--plan": ("--device", "--precision", "--resolutions"),
    "--merge": ("--as",),
    "--import": ("--as", "--format"),
    "--check": (),
}


@command
def profile(
    run: Annotated[Path, typer.Argument(help="Run directory that `ofa train` or `ofa import` made.")],
    device: Annotated[
        list[str] | None,
        typer.Option(
            help="What to measure (default ort_cpu_1t): a device name, the path of a device .toml, or a device elsewhere as "
            "NAME=ssh:USER@HOST or NAME=adb:SERIAL. May be repeated."
        ),
    ] = None,
    budget: Annotated[str | None, typer.Option(help="How long to measure each device, e.g. 60s (default) or 5min.")] = None,
    rounds: Annotated[int | None, typer.Option(help="How often everything is timed, at most (default 60).")] = None,
    precision: Annotated[
        str | None, typer.Option(help="fp32, fp16, int8 or a16w8 (as the files to come), instead of the device's own.")
    ] = None,
    resolutions: Annotated[
        str | None,
        typer.Option(
            help="Input sizes at which blocks are timed, e.g. 128,176,224; between them times are interpolated. "
            "Default: all, of more than three the smallest, the middle and the largest."
        ),
    ] = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Measure anew instead of adding to earlier rounds.")] = False,
    reuse: Annotated[
        Path | None, typer.Option(help="Table of the same device from another run: blocks in it are not timed again.")
    ] = None,
    plan: Annotated[
        Path | None, typer.Option(help="Write a plan.zip, with agent.py beside it, for a device that has no copy of this code.")
    ] = None,
    merge: Annotated[Path | None, typer.Option(help="Make a table of the results.json that agent.py wrote; needs --as.")] = None,
    import_: Annotated[
        Path | None, typer.Option("--import", help="Make a table of timings by others; needs --format and --as.")
    ] = None,
    format: Annotated[str | None, typer.Option(help="Of --import: mit_ofa, ultra96 or csv.")] = None,
    as_: Annotated[str | None, typer.Option("--as", help="Name of the merged or imported device.")] = None,
    check: Annotated[
        Path | None, typer.Option(help="Time a few networks of this table again: fresh, rescaled (and put right) or stale.")
    ] = None,
    settings: Annotated[
        str | None,
        typer.Option(help="Device file with threads and provider of a device behind ssh: or adb: (default ort_cpu_1t)."),
    ] = None,
    python: Annotated[
        str | None, typer.Option(help="Python there, a full path; it needs numpy and onnxruntime (default python3).")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print JSON on stdout.")] = False,
) -> Path | None:
    """Measure a device's latency table, and its error on whole networks.

    Here, over ssh or adb, or anywhere by a file to copy.

    Every block of the space is timed, and some whole networks that tell how wrong their sum is. Interrupted, it goes on
    where it was.

    Examples:
    ofa profile runs/x --device ort_cpu_1t;
    ofa profile runs/x --device pi4=ssh:pi@host;
    ofa profile runs/x --plan plan.zip, then on the device: python agent.py plan.zip -o results.json,
    then: ofa profile runs/x --merge results.json --as jetson
    """
    from latency import profile as profiling
    from ofa.errors import OfaError
    from ofa.run_dir import Run

    opened = Run(run)
    options = {
        "--device": device,
        "--budget": budget,
        "--rounds": rounds,
        "--precision": precision,
        "--resolutions": resolutions,
        "--fresh": fresh or None,
        "--reuse": reuse,
        "--settings": settings,
        "--python": python,
        "--format": format,
        "--as": as_,
    }
    modes = {"--plan": plan, "--merge": merge, "--import": import_, "--check": check}
    given = [name for name, value in modes.items() if value is not None]
    if len(given) > 1:
        raise OfaError(f"{' and '.join(given)}: expected one of them at a time")
    mode = given[0] if given else ""
    useless = [name for name, value in options.items() if value is not None and name not in TAKES[mode]]
    if useless:
        raise OfaError(f"{useless[0]} has no effect {f'with {mode}' if mode else 'here'}; leave it out")
    if mode in ("--merge", "--import") and as_ is None:
        raise OfaError(f"{mode} needs a name for the device: --as NAME")
    names = device or ["ort_cpu_1t"]
    if check is not None:
        _check(opened, check, json)
        return run
    sides = _sides(resolutions) if resolutions else None
    config = profiling.ProfileConfig(budget_s=_seconds(budget or "60s"), rounds=rounds or 60, resolutions=sides)
    if plan is not None:
        if len(names) > 1:
            raise OfaError(f"--plan {plan}: is for one device, {len(names)} are named")
        _plan(opened, names[0], plan, config, precision, json)
        return run
    if merge is not None:
        tables: list[LatencyModel] = [profiling.merge_results(opened, merge, str(as_))]
        _describe(opened, tables[0])
    elif import_ is not None:
        from latency.formats import import_timings

        if format is None:
            raise OfaError("--import needs --format mit_ofa, ultra96 or csv")
        profiling.require_foreign_name(str(as_))
        tables = [import_timings(import_, format, profiling.profiled_space(opened), str(as_))]
        tables[0].save(opened.latency_path(str(as_)))
        _describe(opened, tables[0])
    else:
        there, its_python = settings or "ort_cpu_1t", python or "python3"
        for name in names:  # before the first is measured
            profiling.check_device(name, precision=precision, settings=there, python=its_python)
        tables = []
        for name in names:
            tables.append(
                profiling.profile_device(
                    opened,
                    name,
                    config=config,
                    fresh=fresh,
                    reuse=reuse,
                    precision=precision,
                    settings=there,
                    python=its_python,
                )
            )
            _describe(opened, tables[-1])
    if json:
        print_json({"tables": [_summary(opened, table) for table in tables]})
    return run


@command
def predict(
    run: Annotated[Path, typer.Argument(help="Run directory with tables that `ofa profile` made.")],
    arch: Annotated[list[Path], typer.Option(help="An arch.json, or a search's best/ folder; may be repeated.")],
    device: Annotated[list[str] | None, typer.Option(help="Tables to ask; default: all of the run.")] = None,
    json: Annotated[bool, typer.Option("--json", help="Print JSON on stdout.")] = False,
) -> Path | None:
    """Predict an architecture's latency, and show where it goes.

    Milliseconds on each device, between which values nine networks in ten measure, and a bar for every block.
    Example: ofa predict runs/x --arch runs/x/search/best --device ort_cpu_1t
    """
    from latency.freshness import require_usable
    from latency.open import open_latency
    from latency.table import LatencyTable
    from ofa.artefacts import read_json
    from ofa.errors import OfaError
    from ofa.progress import say
    from ofa.run_dir import Run
    from ofa.space import ARCH_SCHEMA

    opened = Run(run)
    names = device or sorted(path.stem for path in (run / "latency").glob("*.json"))
    if not names:
        raise OfaError(f"{run} has no latency table yet; measure one: ofa profile {run}")
    found = []
    for source in arch:
        path = source / "arch.json" if source.is_dir() else source
        one = opened.space.from_json(read_json(path, schema=ARCH_SCHEMA))
        population = opened.space.encode([one])
        for name in names:
            model = open_latency(opened.latency_path(name), opened.space)
            if isinstance(model, LatencyTable):
                require_usable(model, opened.latency_path(name))
            record: dict[str, Any] = {"arch": str(path), "device": name, "latency_ms": float(model.predict(population)[0])}
            record["interval_ms"] = model.interval(population)[0].tolist() if model.margin is not None else None
            blocks = model.explain(one) if isinstance(model, LatencyTable) else []
            record["blocks"] = [{**asdict(block), "spec": block.spec.to_dict()} for block in blocks]
            found.append(record)
            low, high = record["interval_ms"] or (None, None)
            between = f", nine in ten networks within {low:.4g}-{high:.4g} ms" if low is not None else ", error not known"
            say(f"{path} on {name}: {record['latency_ms']:.4g} ms{between}")
            largest = max((block.latency_ms for block in blocks), default=1.0)
            width = max((len(block.name) for block in blocks), default=0)
            for block in blocks:
                bar = "█" * round(BAR * max(0.0, block.latency_ms) / largest) if largest > 0 else ""
                note = "  (interpolated)" if block.interpolated else ""
                say(f"  {block.name:{width}} {block.latency_ms * 1e3:8.1f} us {bar:{BAR}} {block.spec}{note}")
            if isinstance(model, LatencyTable) and model.offset:
                say(f"  {'(besides)':{width}} {model.offset * 1e3:8.1f} us")
    if json:
        print_json({"predictions": found})
    return None


def _plan(run: Run, device: str, path: Path, config: Any, precision: str | None, json: bool) -> None:
    from latency.profile import describe_items, write_plan
    from ofa.progress import say

    plan = write_plan(run, device, path, config=config, precision=precision)
    say(f"{path}: {describe_items(plan)}, {path.stat().st_size / 1024:.0f} KiB")
    say(f"copy it and {path.parent / 'agent.py'} to the device, which needs Python with numpy and onnxruntime; there:")
    say(f"  python agent.py {path.name} -o results.json")
    say("and here, with what it wrote:")
    say(f"  ofa profile {run.path} --merge results.json --as NAME")
    if json:
        print_json({"plan": str(path), "agent": str(path.parent / "agent.py"), "graphs": len(plan.manifest["items"])})


def _check(run: Run, table: Path, json: bool) -> None:
    from latency.freshness import StaleTableError, check_table
    from latency.profile import profiled_space
    from ofa.progress import say

    found = check_table(table, profiled_space(run))
    for then, now in found.networks:
        say(f"  {then:8.4g} ms then, {now:8.4g} ms now ({now / then - 1:+.1%})")
    say(f"{table}: {found}" + ("; its times were put right" if found.verdict == "rescaled" else ""))
    if json:
        print_json(asdict(found))
    if found.verdict == "stale":
        raise StaleTableError(f"{table}: is stale; measure anew: ofa profile {run.path} --device {table.stem} --fresh")


def _describe(run: Run, table: LatencyModel) -> None:
    from latency.table import LatencyTable
    from ofa.progress import say

    what = f"{len(table.entries)} blocks" if isinstance(table, LatencyTable) else "a predictor fitted to whole networks"
    say(f"{run.latency_path(table.device)}: {what}")
    if isinstance(table, LatencyTable) and table.is_of_one:
        measured_ms, factor = table.provenance["networks"][0]["measured_ms"], table.calibration.per_ms
        taken = f"{measured_ms:.4g} ms of {table.provenance['clock']} time"
        say(f"the network takes {taken}, {factor:.3g} of the sum of its blocks' times alone")
        say(f"error not known: {table.provenance['no_error']}; predictions come without an interval")
    elif table.error is None:
        say("its origin states no error; predictions come without an interval")
        return
    else:
        say(f"error on networks it was not fitted to: {table.error}")
        say(f"a line fitted to MACs alone:            {table.macs_error}")
        say(f"nine networks in ten measure within {table.margin:.1%} of a prediction; limits are held by that margin")
    if isinstance(table, LatencyTable):
        noisy, faults, drift = (table.provenance.get(name) or 0 for name in ("noisy_blocks", "clock_faults", "drift"))
        if noisy > 0.1 * len(table.entries):
            say(f"warning: {noisy} of {len(table.entries)} blocks varied much; measure again on a quiet machine (--fresh)")
        if faults:
            say(f"warning: the clock was set back in {faults} runs, which were left out")
        if abs(drift) > 0.1:
            say(f"note: the device changed its speed by {drift:+.0%} on the way, which was divided out")
        for spec, why in table.failed.items():
            say(f"warning: {table.device} cannot run {spec} ({why})")
        if table.energy is not None:
            power = f"{table.energy['watts']:.2f} W, {table.energy['offset_mj']:.3g} mJ besides"
            say(f"energy ({table.energy['meter']}): {power}, error {table.energy['rmspe']:.1%} on networks it was not fitted to")


def _summary(run: Run, table: LatencyModel) -> dict[str, Any]:
    return {
        "device": table.device,
        "path": str(run.latency_path(table.device)),
        "error": asdict(table.error) if table.error else None,
        "macs_error": asdict(table.macs_error) if table.macs_error else None,
        "margin": table.margin,
    }


def _seconds(text: str) -> float:
    from latency.agent import AgentError, parse_seconds
    from ofa.errors import OfaError

    try:
        return parse_seconds(text)
    except AgentError as error:
        raise OfaError(str(error)) from None


def _sides(text: str) -> tuple[int, ...]:
    from ofa.errors import OfaError

    try:
        return tuple(sorted({int(part) for part in text.split(",")}))
    except ValueError:
        raise OfaError(f"--resolutions {text!r}: expected whole numbers with commas between, e.g. 128,176,224") from None
