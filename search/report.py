"""The report: everything a run found out and the proof of it, in one HTML file that opens offline.

Reads a run at any stage; a part that is not there yet becomes a sentence with the command that makes it. The numbers are those
of the run's files; only SHA-256 sums and costs of architectures are computed anew.
"""

from __future__ import annotations

import math
import shlex
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from latency.cost import CountCost
from latency.open import LatencyModel, open_latency
from ofa.artefacts import read_json, read_jsonl, sha256_of, write_bytes
from ofa.run_dir import Run
from ofa.space import ArchConfig
from ofa.training.checkpoint import list_checkpoints
from ofa.training.loop import SCHEMA as TRAINING_SCHEMA
from search.agreement import foreseen, held_out
from search.drawing import draw_network, most_channels
from search.evidence import Network, read_exports, reading
from search.fronts import MOST_NAMED, chosen_labels, front, history_curves, measured, threads, written
from search.next_steps import can_export, imported_from, instead_of_export, is_search_alone, next_commands
from search.past_searches import Menu, Search, best_of, comparable, read_menus, read_old_searches, read_searches
from search.plots import agreement_plot, curves_plot
from search.spending_plot import show_spending
from search.wording import (
    Source,
    accuracy,
    bound,
    brief,
    cost_name,
    count,
    digits,
    duration,
    percent,
    power_of_ten,
    source,
    unit_of,
)

LOOKED_AT = {"largest": "largest", "smallest": "smallest", "random_1": "random", "random_2": "random"}  # subnet -> CSS class
BAND = 0.10  # share around the diagonal within which a predicted latency counts as good
CONTROLS = dict.fromkeys((*range(9), *range(11, 32), 127), "\ufffd")  # what no HTML may hold, all but tab and newline
MOST_OPEN = 4  # networks or searches that are shown in full at once; of more, each opens on its own


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
        digits=digits,
        percent=percent,
        accuracy=accuracy,
        bound=bound,
        count=count,
        duration=duration,
        cost_name=cost_name,
        brief=lambda arch: brief(run.space, arch),
    )
    html = environment.get_template("report.html.j2").render(_content(run))
    write_bytes(path, html.translate(CONTROLS).encode(errors="replace"))  # names in files are anybody's
    return path


def _content(run: Run) -> dict[str, Any]:
    """Return what the template shows."""
    tables = [open_latency(path, run.space) for path in sorted((run.path / "latency").glob("*.json"))]
    menus = read_menus(run)
    place = {row.name: i for i, row in enumerate(row for menu in menus for row in menu.rows)}
    searches = sorted(read_searches(run), key=lambda search: place.get(search.name, -1))  # in the menus' order
    exports = read_exports(run)
    shipped = {network.arch for network in exports}
    waiting = [best_of(run, search) for search in searches if search.best.arch not in shipped]
    macs, params = (_count_of(run, quantity, searches, exports) for quantity in ("macs", "params"))
    for networks in (exports, waiting):
        networks.sort(key=lambda n: (macs(n.arch) or 0, n.name))
    together = len(waiting) <= MOST_OPEN
    networks = sorted(exports + waiting, key=lambda n: (macs(n.arch) or 0, n.name))
    training = run.supernet_dir / "config.json"
    config = read_json(training, schema=TRAINING_SCHEMA) if training.exists() else {}
    drawings = _drawings(run, networks) if run.space.slots else []
    commands = next_commands(run, tables, config)
    sources = _sources(searches, networks)
    latencies = {key for network in networks for key in network.predicted if key.startswith("latency@")}
    return {
        "run": run,
        "data_name": (Path(run.data.source).name or run.data.source) if run.has_images else "",
        "imported": imported_from(run),
        "commands": commands,
        "search_alone": is_search_alone(run),
        "exportable": can_export(run) or bool(exports),
        "no_export": instead_of_export(run, waiting, commands),
        "sources": list(dict.fromkeys(sources.values())),
        "source_of": sources,
        "latencies": can_export(run) or bool(exports or latencies),
        "noted_latency": bool(latencies) and not latencies & {f"latency@{table.device}" for table in tables},
        "space_size": power_of_ten(run.space.size()),
        "networks": networks,
        "shown": networks if together else exports,
        "unshipped": [] if together else waiting,
        "most_open": MOST_OPEN,
        "macs": macs,
        "params": params,
        "written": written,
        "tables": [(table, _latency_plot(table)) for table in tables],
        "fronts": _fronts(run, tables, searches),
        "numbered": len(searches) > MOST_NAMED,
        "spending": show_spending(run, tables, searches),
        "searches": [(search, history_curves(search)) for search in searches],
        "old_searches": read_old_searches(run),
        "menus": [_menu(menu, searches, drawings) for menu in menus],
        "predictor": held_out(searches),
        "foreseen": max(
            (found for own in comparable(searches) if (found := foreseen(run, own))), key=lambda f: f.n, default=None
        ),
        "drawings": drawings,
        "training": _training(run),
        "config": config,
        "history": _history(run),
        "hosts": _hosts(run, tables, networks),
        "files": [(_relative(path, run), sha256_of(path)) for path in _files(run, searches, networks)],
    }


def _count_of(
    run: Run, quantity: str, searches: Iterable[Search], exports: Iterable[Network]
) -> Callable[[ArchConfig], float | None]:
    """Return what counts multiply-adds or parameters: of a space without blocks it is what the searches noted, or None."""
    if run.space.slots:
        return CountCost(quantity, run.space)
    noted = {network.arch: network.predicted.get(quantity) for network in exports}
    noted |= {arch: candidate.costs.get(quantity) for arch, candidate in measured(searches).items()}
    return noted.get


def _sources(searches: Iterable[Search], networks: Iterable[Network]) -> dict[str, Source]:
    """Return what told each network's accuracy, by name; that of exports is known of images alone."""
    found = {search.name: search.source for search in searches}
    images = source("supernet")
    return {n.name: images if n.size_bytes is not None else found[n.name] for n in networks}


def _fronts(run: Run, tables: Iterable[LatencyModel], searches: Sequence[Search]) -> list[dict[str, Any]]:
    """Return the fronts and their choices, once for each source of accuracies.

    A front stands against the latency on every device, or else against multiply-adds, or against whatever the searches know of a
    space without blocks.
    """
    costs: list[tuple[str, LatencyModel | CountCost | None]] = [(f"latency@{table.device}", table) for table in tables]
    if not costs and run.space.slots:
        costs = [("macs", CountCost("macs", run.space))]
    groups = []
    for own in comparable(searches):
        labels = chosen_labels(searches, own)
        keys = dict.fromkeys(key for candidate in measured(own).values() for key in candidate.costs)
        found = [front(run, key, cost, own, labels) for key, cost in costs or [(key, None) for key in keys]]
        groups.append(
            {
                "accuracy": own[0].accuracy,
                "source": own[0].source,
                "fronts": [plot for plot in found if plot is not None],
                "threads": threads(run, own, labels),
            }
        )
    return groups


def _menu(menu: Menu, searches: Sequence[Search], drawings: Iterable[tuple[list[str], ArchConfig, Any, Any]]) -> dict[str, Any]:
    """Return a menu's rows with the number of their search and of the drawing of their network."""
    numbers = {search.name: i for i, search in enumerate(searches, 1)}
    told = next((search.source for search in searches if search.name in {row.name for row in menu.rows}), None)
    drawn = {arch: i for i, (_, arch, _, _) in enumerate(drawings, 1)}
    rows = [(row, numbers.get(row.name), drawn.get(row.best.arch) if row.best else None) for row in menu.rows]
    limited = [limit.key for row, _, _ in rows for limit in row.limits]
    known = dict.fromkeys(key for row, _, _ in rows if row.best for key in row.best.costs)
    keys = [key for key in dict.fromkeys([*limited, *known]) if key in known]  # what is limited stands first
    columns = []
    for key in keys:
        scale, unit = unit_of(key, max(row.best.costs.get(key, 0.0) for row, _, _ in rows if row.best))
        columns.append((key, f"{cost_name(key)}, {unit}" if unit else cost_name(key), scale))
    facts: dict[str, Any] = {"name": menu.name, "source": told, "met": sum(row.best is not None for row, _, _ in rows)}
    return {**facts, "rows": rows, "columns": columns}


def _latency_plot(table: LatencyModel) -> Markup | None:
    return agreement_plot(table.validation, quantity="latency", unit="ms", band=BAND) if table.validation else None


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
        "duration": duration(total),
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
    models = [n.path / name for n in networks for name in ("model.onnx", "model.json", "verify.json")]
    return [path for path in [*weights, *tables, *(s.path for s in searches), *models] if path.exists()]


def _relative(path: Path, run: Run) -> str:
    return path.relative_to(run.path).as_posix() if path.is_relative_to(run.path) else str(path)
