"""The report: everything a run found out and the proof of it, in one HTML file that opens offline.

Reads a run at any stage; a part that is not there yet becomes a sentence with the command that makes it. The numbers are those
of the run's files; only SHA-256 sums and costs of architectures are computed anew.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from latency.cost import CountCost
from latency.open import LatencyModel, open_latency
from ofa.artefacts import read_json, write_bytes
from ofa.run_dir import Run
from ofa.space import ArchConfig
from ofa.training.loop import SCHEMA as TRAINING_SCHEMA
from search.agreement import foreseen, held_out
from search.architectures import Architecture, show_architectures
from search.cell_drawing import words
from search.cells_shown import show_cells
from search.controller_shown import show_controller
from search.evidence import Network, read_exports
from search.fronts import MOST_NAMED, chosen_labels, front, history_curves, measured, threads, written
from search.gates_shown import show_gates
from search.next_steps import can_export, imported_from, instead_of_export, is_search_alone, next_commands, round_command
from search.past_records import Menu, Search
from search.past_searches import best_of, comparable, read_menus, read_old_searches, read_searches
from search.plots import agreement_plot
from search.precisions import families
from search.provenance import digests, history, hosts
from search.spending_plot import show_spending
from search.training_curves import show_training
from search.wording import (
    accuracy,
    bound,
    brief,
    cost_name,
    count,
    digits,
    duration,
    percent,
    power_of_ten,
    size,
    unit_of,
)

PAGE = Path(__file__).parent / "page"  # templates, one a section
SECTIONS = {
    "cells": "Cells that were found",
    "controller": "What was found",
    "gates": "What was found",
    "networks": "Chosen networks",
    "precisions": "int8 and fp16 against fp32",
    "speed": "Speed and memory",
    "cards": "Model cards",
    "accuracy-cost": "Accuracy against cost",
    "spending": "What the limit is spent on",
    "predictions": "Are the predictions right?",
    "architectures": "Chosen architectures",
    "training": "Training",
    "searches": "Searches",
    "provenance": "Where this comes from",
}
OF_EXPORTS = ("precisions", "speed", "cards")  # sections that are left out before the first export
OF_NAS = ("cells", "controller", "gates", "provenance")  # of a search of weights and architecture, before more is done with it
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
        OfaError: if `run` is no run directory, or one of its files is damaged; an export that is damaged counts as failed.
    """
    run = Run(run.path if isinstance(run, Run) else run)  # read again: commands may have been added since
    path = Path(out) if out is not None else run.path / "report.html"
    environment = Environment(
        loader=FileSystemLoader(PAGE),
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
        size=size,
        quoted=shlex.quote,
        cost_name=cost_name,
        words=words,
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
    exports, unusable = read_exports(run)
    shipped = {network.arch for network in exports}
    waiting = [best_of(run, search) for search in searches if search.best.arch not in shipped]
    macs, params = (_count_of(run, quantity, searches, exports) for quantity in ("macs", "params"))
    networks = sorted(exports + waiting, key=lambda n: (macs(n.arch) or 0, n.export.order if n.export else (False, 0), n.name))
    exports, waiting = [n for n in networks if n.export], [n for n in networks if not n.export]
    together = len(waiting) <= MOST_OPEN
    training = run.supernet_dir / "config.json"
    config = read_json(training, schema=TRAINING_SCHEMA) if training.exists() else {}
    drawings, drawing_notes = show_architectures(run, networks, tables)
    commands = {**next_commands(run, tables, config), "int8": round_command(run, exports, searches)}
    cells, controller, gates = show_cells(run), show_controller(run), show_gates(run)
    latencies = {key for network in networks for key in network.predicted if key.startswith("latency@")}
    return {
        "run": run,
        "section_titles": _sections(
            exports=bool(exports),
            joint={"cells": bool(cells), "controller": bool(controller), "gates": bool(gates)},
            alone=not (networks or searches or training.exists()),
        ),
        "cells": cells,
        "controller": controller,
        "gates": gates,
        "joint": cells or controller or gates,
        "data_name": (Path(run.data.source).name or run.data.source) if run.has_images else "",
        "imported": imported_from(run),
        "commands": commands,
        "search_alone": is_search_alone(run),
        "exportable": can_export(run) or bool(exports or unusable),
        "no_export": instead_of_export(run, waiting, commands),
        "sources": list(dict.fromkeys(network.source for network in networks)),
        "latencies": can_export(run) or bool(exports or latencies),
        "noted_latency": bool(latencies) and not latencies & {f"latency@{table.device}" for table in tables},
        "elsewhen": any(
            anchor.is_slower and not anchor.is_elsewhere for n in exports if n.proof for anchor in n.proof.anchors.values()
        ),
        "space_size": power_of_ten(run.space.size()),
        "networks": networks,
        "exports": exports,
        "unusable": unusable,
        "shown": networks if together else exports,
        "unshipped": [] if together else waiting,
        "most_open": MOST_OPEN,
        "macs": macs,
        "params": params,
        "written": written,
        "families": families(exports),
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
        "drawing_notes": drawing_notes,
        "drawing_of": {drawn.arch: i for i, drawn in enumerate(drawings, 1)},
        "training": show_training(run),
        "config": config,
        "history": history(run),
        "hosts": hosts(run, tables, networks),
        "files": digests(run, searches, networks),
    }


def _sections(*, exports: bool, joint: Mapping[str, bool], alone: bool) -> dict[str, str]:
    """Return the sections that a run has something for, or a command.

    Args:
        joint: section of a search of weights and architecture -> whether there was one; `alone`: and nothing else.
    """
    left_out = (() if exports else OF_EXPORTS) + tuple(name for name, is_there in joint.items() if not is_there)
    kept = OF_NAS if any(joint.values()) and alone else tuple(SECTIONS)
    return {name: title for name, title in SECTIONS.items() if name in kept and name not in left_out}


def _count_of(
    run: Run, quantity: str, searches: Iterable[Search], exports: Iterable[Network]
) -> Callable[[ArchConfig], float | None]:
    """Return what counts multiply-adds or parameters: of a space without blocks it is what the searches noted, or None."""
    if run.space.slots:
        return CountCost(quantity, run.space)
    noted = {network.arch: network.predicted.get(quantity) for network in exports}
    noted |= {arch: candidate.costs.get(quantity) for arch, candidate in measured(searches).items()}
    return noted.get


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


def _menu(menu: Menu, searches: Sequence[Search], drawings: Iterable[Architecture]) -> dict[str, Any]:
    """Return a menu's rows with the number of their search and of the drawing of their network."""
    numbers = {search.name: i for i, search in enumerate(searches, 1)}
    told = next((search.source for search in searches if search.name in {row.name for row in menu.rows}), None)
    drawn = {drawing.arch: i for i, drawing in enumerate(drawings, 1)}
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
