"""The report: everything a run found out and the proof of it, in one HTML file that opens offline.

Reads a run at any stage; a part that is not there yet becomes a sentence with the command that makes it. The numbers are those
of the run's files; only SHA-256 sums and costs of architectures are computed anew.
"""

from __future__ import annotations

import itertools
import math
import os
import shlex
from collections.abc import Iterable, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from deploy.limits import Limit, format_value
from latency.cost import CountCost
from latency.open import LatencyModel, open_latency
from latency.table import LatencyTable
from ofa.artefacts import read_json, read_jsonl, sha256_of, write_bytes
from ofa.run_dir import Run
from ofa.space import ArchConfig, SearchSpace
from ofa.training.checkpoint import list_checkpoints
from ofa.training.config import TrainConfig
from ofa.training.data import ORIENTED
from ofa.training.loop import SCHEMA as TRAINING_SCHEMA
from search.drawing import draw_network, most_channels
from search.evidence import Network, Search, best_of, read_exports, read_searches, reading
from search.pareto import non_dominated
from search.plots import Bound, Point, agreement_plot, curves_plot, pareto_plot

LOOKED_AT = {"largest": "largest", "smallest": "smallest", "random_1": "random", "random_2": "random"}  # subnet -> CSS class
BAND = 0.10  # share around the diagonal within which a predicted latency counts as good
VALIDATION_FRACTION = 0.1  # what `ofa train` holds out unless it is told
WIDE, NARROW = (920.0, 420.0), (380.0, 380.0)  # px; a plot that is only scaled down cannot be read on a phone


def write_report(run: Run | Path | str, out: Path | str | None = None) -> Path:
    """Write a run's report.

    Args:
        run: run directory, at any stage.
        out: file to write; None = report.html in the run directory.

    Returns:
        The file that was written.

    Raises:
        OfaError: if `run` is no run directory, or one of its files is damaged.
    """
    run = Run(run.path if isinstance(run, Run) else run)  # read again: commands may have been added since
    path = Path(out) if out is not None else run.path / "report.html"
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        digits=_digits, percent=_percent, count=_count, duration=_duration, brief=lambda arch: brief(run.space, arch)
    )
    write_bytes(path, environment.get_template("report.html.j2").render(_content(run)).encode())
    return path


def _content(run: Run) -> dict[str, Any]:
    """Return what the template shows."""
    tables = [open_latency(path, run.space) for path in sorted((run.path / "latency").glob("*.json"))]
    searches = read_searches(run)
    exports = read_exports(run)
    shipped = {network.arch for network in exports}
    networks = exports + [best_of(run, search) for search in searches if search.best not in shipped]
    macs, params = CountCost("macs", run.space), CountCost("params", run.space)
    networks.sort(key=lambda n: (macs(n.arch), n.name))
    costs: list[tuple[str, LatencyModel | CountCost]] = [(table.device, table) for table in tables] or [("", macs)]
    training = run.supernet_dir / "config.json"
    config = read_json(training, schema=TRAINING_SCHEMA) if training.exists() else {}
    return {
        "run": run,
        "data_name": (Path(run.data.source).name or run.data.source) if run.has_images else "",
        "imported": _imported(run),
        "commands": _commands(run, tables, config),
        "space_size": _power_of_ten(run.space.size()),
        "networks": networks,
        "macs": macs,
        "params": params,
        "tables": [(table, _latency_plot(table)) for table in tables],
        "fronts": [_front(run, device, cost, searches) for device, cost in costs] if searches else [],
        "searches": searches,
        "predictor": _predictor(searches),
        "drawings": _drawings(run, networks),
        "training": _training(run),
        "config": config,
        "history": _history(run),
        "hosts": _hosts(run, tables, networks),
        "files": [(_relative(path, run), sha256_of(path)) for path in _files(run, searches, networks)],
    }


def _front(run: Run, device: str, cost: LatencyModel | CountCost, searches: Iterable[Search]) -> dict[str, Any]:
    """Put all measured networks on one plot against one cost: latency in ms, or multiply-adds in millions."""
    key, unit, scale = (f"latency@{device}", "ms", 1.0) if device else ("macs", "M", 1e-6)
    top1: dict[ArchConfig, float] = {}
    chosen: dict[ArchConfig, list[str]] = {}
    limits: dict[float, list[str]] = {}
    for search in searches:
        top1.update(search.top1)
        chosen.setdefault(search.best, []).append(search.name)
        for limit in search.limits:
            if limit.key == key:
                limits.setdefault(limit.bound * scale, []).append(search.name)
    prices = (cost.price if isinstance(cost, LatencyTable) else cost.predict)(run.space.encode(list(top1))) * scale
    archs = [arch for arch, price in zip(top1, prices, strict=True) if np.isfinite(price)]  # a table may lack some blocks
    costs = prices[np.isfinite(prices)]
    kept = non_dominated(np.column_stack([costs, [-top1[arch] for arch in archs]]))
    points = []
    for arch, value, on_front in zip(archs, costs.tolist(), kept.tolist(), strict=True):
        label = ", ".join(chosen.get(arch, []))
        title = f"{brief(run.space, arch)}; top-1 {_percent(top1[arch])}, {_digits(value)} {unit if device else 'M MACs'}"
        points.append(Point(value, 100 * top1[arch], f"{label}: {title}" if label else title, on_front, label))
    bounds = [Bound(value, ", ".join(names), f"≤ {value:.4g} {unit}") for value, names in sorted(limits.items())]
    reach = 1.3 * float(costs.max(initial=0.0))
    shown = [bound for bound in bounds if bound.cost <= reach]
    x_title = "Predicted latency, ms" if device else "Multiply-adds (MACs), millions"
    return {
        "device": device,
        "unit": "Latency, ms" if device else "MACs, M",
        "wide": pareto_plot(points, shown, x_title=x_title, width=WIDE[0], height=WIDE[1]),
        "narrow": pareto_plot(points, shown, x_title=x_title, width=NARROW[0], height=NARROW[1]),
        "beyond": [bound.label for bound in bounds if bound.cost > reach],
        "limited": bool(bounds),
        "num_points": len(points),
        "rows": [(archs[i], float(costs[i]), top1[archs[i]], chosen.get(archs[i], [])) for i in np.argsort(costs) if kept[i]],
    }


def _latency_plot(table: LatencyModel) -> Markup | None:
    return agreement_plot(table.validation, quantity="latency", unit="ms", band=BAND) if table.validation else None


def _predictor(searches: Iterable[Search]) -> tuple[Search, Markup] | None:
    """Return the search whose accuracy predictor was fitted to the most networks, and the plot of that predictor."""
    best = max(searches, key=lambda search: len(search.held_out), default=None)
    if best is None or not best.held_out:
        return None
    pairs = [(100 * predicted, 100 * measured) for predicted, measured in best.held_out]
    return best, agreement_plot(pairs, quantity="top-1", unit="%")


def _drawings(run: Run, networks: Iterable[Network]) -> list[tuple[list[str], ArchConfig, dict[str, Any], Markup]]:
    """Draw every chosen architecture once, all to one scale."""
    names: dict[ArchConfig, list[str]] = {}
    for network in networks:
        names.setdefault(network.arch, []).append(network.name)
    blocks = {arch: run.space.blocks(arch) for arch in names}
    channels = max((most_channels(b) for b in blocks.values()), default=1)
    return [(names[arch], arch, b, draw_network(b, channels=channels)) for arch, b in blocks.items()]


def _training(run: Run) -> dict[str, Any] | None:
    """Return the training curves and their last values; None before the first epoch."""
    records = [r for r in read_jsonl(run.supernet_dir / "metrics.jsonl") if _is_number(r.get("epoch"))]
    lines = {
        name: [(float(r["epoch"]), float(r[name]) * (1 if name == "loss" else 100)) for r in records if _is_number(r.get(name))]
        for name in ("loss", *(f"top1_{subnet}" for subnet in LOOKED_AT))
    }
    if not lines["loss"]:
        return None
    seconds = [float(r["seconds"]) for r in records if _is_number(r.get("seconds"))]
    # the clock starts again whenever training is resumed
    total = sum(now - before if now >= before else now for before, now in zip([0.0, *seconds], seconds, strict=False))
    top1 = [(style, lines[f"top1_{subnet}"]) for subnet, style in LOOKED_AT.items()]
    phases = dict.fromkeys(str(r["phase"]) for r in records if "phase" in r)
    return {
        "epochs": records[-1]["epoch"],
        "phases": list(phases),
        "duration": _duration(total),
        "last": {name: line[-1][1] for name, line in lines.items() if line},
        "loss": curves_plot([("loss", lines["loss"])], y_title="Training loss, nats"),
        "top1": curves_plot(top1, y_title="Top-1 on validation images, %") if any(line for _, line in top1) else None,
    }


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def _history(run: Run) -> list[tuple[str, str, float]]:
    """Return (command, when it finished, seconds) of the commands that were run."""
    with reading(run.path / "run.json"):
        commands = run.record.get("commands", [])
        return [(shlex.join(command["argv"]), str(command["finished"]), float(command["seconds"])) for command in commands]


def _hosts(run: Run, tables: Iterable[LatencyModel], networks: Iterable[Network]) -> list[tuple[str, list[str]]]:
    """Return (machine with its versions, what was done there), each machine once."""
    work = [(command.get("host"), "commands") for command in run.record.get("commands", [])]
    work += [(table.provenance.get("host"), f"latency table {table.device}") for table in tables]
    work += [(network.proof.host, f"verification of {network.name}") for network in networks if network.proof]
    found: dict[str, dict[str, None]] = {}
    for host, what in work:
        if isinstance(host, Mapping):
            text = ", ".join(
                str(value) if key in ("cpu", "system") else f"{key} {value}"
                for key, value in host.items()
                if value != "not installed"
            )
            found.setdefault(text, {})[what] = None
    return [(host, list(done)) for host, done in found.items()]


def _files(run: Run, searches: Iterable[Search], networks: Iterable[Network]) -> list[Path]:
    """Files that the report rests on."""
    weights = [checkpoint.path / "model.safetensors" for checkpoint in list_checkpoints(run.supernet_dir)[-1:]]
    tables = sorted((run.path / "latency").glob("*.json"))
    models = [n.path / name for n in networks for name in ("model.onnx", "model.json", "verification.json")]
    return [path for path in [*weights, *tables, *(s.path for s in searches), *models] if path.exists()]


def _commands(run: Run, tables: Iterable[LatencyModel], config: Mapping[str, Any]) -> dict[str, str]:
    """Return the commands that make what a run lacks, with limits that can be met."""
    where = shlex.quote(str(run.path))
    some = run.space.sample(np.random.default_rng(0), 500)
    limit = Limit("macs", None, float(np.median(CountCost("macs", run.space).predict(some))))
    for table in tables:
        known = table.upper(some)
        if np.isfinite(known).any():
            limit = Limit("latency", table.device, float(np.median(known[np.isfinite(known)])))
    with reading(run.path / "run.json"):
        train = shlex.join(_train_again(run, config)) if run.has_images else ""
    return {
        "train": train,
        "import": shlex.join(_import_with_images(run)),
        "profile": f"ofa profile {where} --device ort_cpu_1t",
        "search": f"ofa search {where} --where {shlex.quote(str(limit))}",
        "export": shlex.join(["ofa", "export", str(run.path / "arch.json"), "-o", str(run.path / "export" / "network")]),
    }


def _train_again(run: Run, config: Mapping[str, Any]) -> list[str]:
    """Return the command that trains a run, or goes on with it: the last that was given, or else what the run's files say.

    They do not say where an external teacher lies, unless it is what the weights began with.
    """
    given = [list(command["argv"]) for command in run.record.get("commands", [])]
    given = [argv for argv in given if argv[1:2] in (["train"], ["specialize"])]
    if given:
        goes_on = ("--resume", "auto") in itertools.pairwise(given[-1])
        return given[-1] if goes_on else [*given[-1], "--resume", "auto"]
    argv = ["ofa", "train", "--space", run.space_name, "--data", run.data.source, "--out", str(run.path)]
    for field in fields(TrainConfig):
        if config.get(field.name, field.default) != field.default:
            argv += _option(field.name, config[field.name])
    if config.get("sync_batchnorm"):
        argv += _option("sync_batchnorm", True)
    if run.record["arch"] is not None:
        argv += _option("arch", run.path / "arch.json")
    init = run.record.get("init")
    begun_with = None if init is None else os.path.normpath(run.path / init["run"])
    if begun_with is not None:
        argv += _option("init", begun_with)
    if config.get("teacher"):
        argv += _option("teacher", begun_with if init and init["weights_sha256"] == config["teacher"] else "TEACHER")
    if run.data.validation_fraction != VALIDATION_FRACTION:
        argv += _option("validation_fraction", run.data.validation_fraction)
    if run.data.flip != (run.data.source not in ORIENTED):
        argv += _option("flip", run.data.flip)
    return [*argv, "--resume", "auto"]


def _imported(run: Run) -> dict[str, str] | None:
    """Return what the weights were imported from: file, format, sha256; None if they were trained."""
    imported = run.record.get("imported")
    with reading(run.path / "run.json"):
        return None if imported is None else {name: str(imported[name]) for name in ("file", "format", "sha256")}


def _import_with_images(run: Run) -> list[str]:
    """Return the command that makes another run of an imported one, with images: only its user knows which."""
    imported = _imported(run) or {"file": "FILE", "format": "FORMAT"}
    argv = ["ofa", "import", imported["file"], "--format", imported["format"], "--space", run.space_name]
    if run.record["arch"] is not None:
        argv += _option("arch", run.path / "arch.json")
    return [*argv, "--data", "IMAGES", "--out", f"{run.path}-2"]


def _option(name: str, value: object) -> list[str]:
    """Write a setting as an option of the command line; what can only be on or off has two names there and no value."""
    name = name.replace("_", "-")
    if isinstance(value, bool):
        return [f"--{name}" if value else f"--no-{name}"]
    return [f"--{name}", str(value)]


def brief(space: SearchSpace, arch: ArchConfig) -> str:
    """Describe an architecture in a few words: resolution and the depths of its stages."""
    depths = [
        str(value) for dimension, value in zip(space.dimensions, arch.values, strict=True) if dimension.name.endswith(".depth")
    ]
    return f"{space.resolution(arch)} px input" + (f", depths {'-'.join(depths)}" if depths else "")


def _relative(path: Path, run: Run) -> str:
    return path.relative_to(run.path).as_posix() if path.is_relative_to(run.path) else str(path)


def _duration(seconds: float) -> str:
    unit, size = ("s", 1) if seconds < 120 else ("min", 60) if seconds < 7200 else ("h", 3600)
    return f"{seconds / size:.3g} {unit}"


def _digits(value: float, significant: int = 3) -> str:
    """Write a number with that many significant digits and no exponent."""
    decimals = significant - 1 - math.floor(math.log10(abs(value))) if value else 0
    return f"{value:.{max(0, decimals)}f}"


def _percent(share: float, decimals: int = 1) -> str:
    return f"{100 * share:.{decimals}f}%"


def _count(value: float) -> str:
    written = format_value("macs", value)
    return f"{written[:-1]} {written[-1]}"


def _power_of_ten(value: int) -> str:
    """Write a number of networks for people: in full up to 9999, larger ones like 4.2 × 10¹⁵."""
    digits = str(value)
    if len(digits) <= 4:
        return digits
    power = str(len(digits) - 1).translate(str.maketrans("0123456789", "⁰¹²³⁴⁵⁶⁷⁸⁹"))
    return f"{digits[0]}.{digits[1]} × 10{power}"
