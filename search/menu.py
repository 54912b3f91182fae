"""The menu of a search with several targets: one line a target, as JSON and CSV beside the targets' folders."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ofa.artefacts import write_json
from ofa.run_dir import Run
from search.result import SearchResult, candidate_row, cost_column, cost_keys, write_csv

MENU_SCHEMA = "ofa.menu/1"


@dataclass(frozen=True, slots=True)
class InfeasibleTarget:
    """A target that no network of the space meets."""

    name: str
    limits: tuple[str, ...]
    reason: str  # with the nearest feasible value


def save_menu(run: Run, path: Path, results: Sequence[SearchResult | InfeasibleTarget]) -> None:
    """Write menu.json and, beside it, menu.csv: what each target gets.

    Args:
        run: the run that was searched.
        path: of menu.json; search/menu.json is where a report looks.
        results: in the order of the menu; a result goes by the name of its folder.
    """
    targets = [_target(found) for found in results]
    write_json(path, {"schema": MENU_SCHEMA, "space": run.space.name, "targets": targets}, sealed=True)
    keys = cost_keys(found.best for found in results if isinstance(found, SearchResult))
    rows = []
    for found in results:
        limits = "; ".join(found.limits)
        if isinstance(found, SearchResult):
            costs = [found.best.costs.get(key, "") for key in keys]
            rows.append([found.path.name, limits, found.best.top1, *costs, ""])
        else:
            rows.append([found.name, limits, *[""] * (len(keys) + 1), found.reason])
    write_csv(path.with_suffix(".csv"), ["name", "limits", "top1", *map(cost_column, keys), "reason"], rows)


def _target(found: SearchResult | InfeasibleTarget) -> dict[str, Any]:
    if isinstance(found, InfeasibleTarget):
        return {"name": found.name, "limits": list(found.limits), "best": None, "reason": found.reason}
    return {"name": found.path.name, "limits": list(found.limits), "best": candidate_row(found.best), "reason": ""}
