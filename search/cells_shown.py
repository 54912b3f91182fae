"""The report's section on a search by gradients: cells, alphas and skips over time, and what comes next."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from ofa.formats.nasbench201 import parse_nasbench201
from ofa.genotype import GenotypeError, parse_genotype
from ofa.run_dir import Run
from search.alpha_plot import EdgeHistory, draw_edge
from search.cell_drawing import Cell, cells_of, draw_cell, nasbench201_cell
from search.joint.record import DRAWING, SearchRecord, read_search, train_command
from search.plots import curves_plot
from search.reward_plot import is_number, points

BRIGHT = 3  # times the probability of an operation in a uniform choice: full colour at least
STYLES = ("largest", "smallest", "random")  # CSS classes of lines, one a cell
GUARDS = {  # setting -> words
    "max_skips": "skips in the derived normal cell at most {}",
    "stop_skips": "search ends when they would be {}",
    "warmup_epochs": "epochs before the alphas learn {}",
    "skip_drop": "skips dropped at first {:.0%}",
}


@dataclass(frozen=True, slots=True)
class ShownCell:
    """A cell as the page shows it."""

    title: str
    drawing: Markup
    sentences: list[str]


def show_cells(run: Run) -> dict[str, Any] | None:
    """Return what the section shows; None if the run holds no search by gradients."""
    record = read_search(run.path)
    if record is None or record.is_by_controller or record.method == "gates":
        return None
    text = record.genotype or (record.decided[-1].genotype if record.decided else "")
    cells = cells_in(text)
    seen = [p for d in record.decided for rows in d.probabilities.values() for row in rows for p in row]
    full = max([*seen, BRIGHT / max(1, len(record.operations))])
    return {
        "text": text,
        "done": record.genotype is not None,
        "cells": shown_cells(cells),
        "drawing": DRAWING,
        "epochs": max((decided.epoch for decided in record.decided), default=0),
        "of_epochs": record.config.get("epochs"),
        "order": record.config.get("order"),
        "method": {"darts": "DARTS", "cdarts": "Cyclic-DARTS"}.get(str(record.config.get("method")), "gradients"),
        "guards": _guards(record),
        "target_ms": record.config.get("target_ms") or 0,
        "top1": next((r["alpha_top1"] for r in reversed(record.metrics) if is_number(r.get("alpha_top1"))), None),
        "expected_ms": next((r["expected_ms"] for r in reversed(record.metrics) if is_number(r.get("expected_ms"))), None),
        "skips": _skips(record),
        "skip_names": list(zip(STYLES, record.edges, strict=False)),
        "losses": _losses(record),
        "alphas": _alphas(record, cells, full),
        "full": full,
        "operations": record.operations,
        "train": train_command(run),
    }


def shown_cells(cells: Sequence[Cell]) -> list[ShownCell]:
    """Return cells as the page shows them."""
    return [ShownCell(cell.title, draw_cell(cell), cell.sentences()) for cell in cells]


def cells_in(text: str) -> list[Cell]:
    """Return the cells of a text; none if it has none."""
    try:
        return [nasbench201_cell(parse_nasbench201(text))] if text.startswith("|") else cells_of(parse_genotype(text))
    except GenotypeError:
        return []  # a file that somebody wrote into; its text is shown as it is


def _guards(record: SearchRecord) -> list[str]:
    given = record.config.get("guards")
    if not isinstance(given, dict):
        return []
    return [
        words.format(given[name]) for name, words in GUARDS.items() if isinstance(given.get(name), int | float) and given[name]
    ]


def _skips(record: SearchRecord) -> Markup | None:
    if len(record.decided) < 2:
        return None
    lines = [
        (style, [(float(d.epoch), float(d.skips.get(cell, 0))) for d in record.decided])
        for style, cell in zip(STYLES, record.edges, strict=False)
    ]
    return curves_plot(lines, y_title="Skips in the derived cells")


def _losses(record: SearchRecord) -> Markup | None:
    """Return the losses over time: of the weights' images, and of the alphas'."""
    lines = [(style, points(record.metrics, name)) for style, name in (("largest", "loss"), ("smallest", "alpha_loss"))]
    return curves_plot([line for line in lines if line[1]], y_title="Loss, nats") if any(line for _, line in lines) else None


def _alphas(record: SearchRecord, cells: Sequence[Cell], full: float) -> list[dict[str, Any]]:
    """Return for each cell the history of its edges, drawn and as numbers; `full`: probability that has the full colour."""
    found = []
    for place, (name, edges) in enumerate(record.edges.items()):
        cell = cells[place] if place < len(cells) else None
        histories = [_history(record, cell, name, row, edge) for row, edge in enumerate(edges)] if record.decided else []
        drawn = [(history, draw_edge(history, record.operations, full)) for history in histories]
        found.append({"name": cell.title if cell else name, "edges": drawn})
    return found


def _history(record: SearchRecord, cell: Cell | None, name: str, row: int, edge: tuple[int, int]) -> EdgeHistory:
    to, source = edge
    derived = ""
    if cell is not None and 0 <= to - len(cell.inputs) < len(cell.nodes):
        derived = next((operation for operation, read in cell.nodes[to - len(cell.inputs)] if read == source), "")
    return EdgeHistory(
        f"{cell.name(source) if cell else source} to {to}",
        [decided.epoch for decided in record.decided],
        [decided.probabilities[name][row] for decided in record.decided],
        derived,
    )
