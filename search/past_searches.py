"""The searches that a run has seen, read back from front.json and menu.json."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from deploy.limits import parse_limit
from ofa.artefacts import ArtefactError, read_json
from ofa.errors import OfaError
from ofa.run_dir import Run
from ofa.space import ArchConfig
from search.evidence import Network
from search.menu import MENU_SCHEMA
from search.next_steps import can_export
from search.past_records import Menu, MenuRow, OldSearch, PredictorFacts, Round, Search
from search.reading import number, numbers, reading
from search.result import FRONT_SCHEMA, OLD_FRONT_SCHEMAS, Candidate


def read_searches(run: Run) -> list[Search]:
    """Read the searches of a run, the untagged one first; those of an older version are left out (`read_old_searches`).

    Raises:
        ArtefactError: if a file is damaged or of another space.
    """
    return [_search(run, path) for path in _fronts(run) if _old(path) is None]


def comparable(searches: Iterable[Search]) -> list[list[Search]]:
    """Group searches by what told their accuracies: those of a table say nothing about those of the supernet."""
    groups: dict[str, list[Search]] = {}
    for search in searches:
        groups.setdefault(search.accuracy, []).append(search)
    return list(groups.values())


def read_old_searches(run: Run) -> list[OldSearch]:
    """Return the searches of a run that an older version wrote: nothing but what makes them anew is read of them."""
    found = []
    for path in _fronts(run):
        record = _old(path)
        if record is not None:
            limits = record.get("limits")
            where = [text for text in limits if isinstance(text, str)] if isinstance(limits, list) else []
            name = _name(run, path)
            argv = ["ofa", "search", str(run.path), *(word for text in where for word in ("--where", text))]
            tag = [] if path.parent == run.path / "search" else ["--tag", name]
            found.append(OldSearch(name, path, shlex.join([*argv, *tag])))
    return found


def read_menus(run: Run) -> list[Menu]:
    """Read the menus of a run's searches with several targets, the untagged one first.

    Raises:
        ArtefactError: if a file is damaged or of another space.
    """
    root = run.path / "search"
    return [_menu(run, path) for path in [root / "menu.json", *sorted(root.glob("*_menu.json"))] if path.exists()]


def best_of(run: Run, search: Search) -> Network:
    """Return the network that a search chose, as one that is not exported yet."""
    best = search.path.parent / "best"
    command = f"ofa export {shlex.quote(str(best))} -o {shlex.quote(str(run.path / 'export' / search.name))}"
    ready = can_export(run)
    return Network(
        name=search.name,
        path=best,
        arch=search.best.arch,
        limits=search.limits,
        predicted=search.best.costs,
        top1_validation=search.best.top1,
        source=search.source,
        export=None,
        verdict="open",
        reason="not exported yet" if ready else "no weights to export",
        command=command if ready else "",
    )


def _fronts(run: Run) -> list[Path]:
    root = run.path / "search"
    return [path for path in [root / "front.json", *sorted(root.glob("*/front.json"))] if path.exists()]


def _name(run: Run, path: Path) -> str:
    return "search" if path.parent == run.path / "search" else path.parent.name


def _old(path: Path) -> dict[str, Any] | None:
    """Return the content of a file of an older version; None if it is of this version, or damaged."""
    for schema in OLD_FRONT_SCHEMAS:
        with suppress(ArtefactError):
            return read_json(path, schema=schema)
    return None


def _check_space(run: Run, record: Mapping[str, Any]) -> None:
    if record["space"] != run.space_name:
        raise OfaError(f"is a search in space {record['space']!r}, expected {run.space_name!r}")


def _search(run: Run, path: Path) -> Search:
    record = read_json(path, schema=FRONT_SCHEMA)
    with reading(path):
        _check_space(run, record)
        return Search(
            name=_name(run, path),
            path=path,
            objectives=_texts(record["objectives"]),
            limits=tuple(parse_limit(text) for text in _texts(record["limits"])),
            strategy=str(record["strategy"]),
            accuracy=str(record["accuracy"]),
            evals=int(record["evals"]),
            new_evaluations=int(record["new_evaluations"]),
            ranges=tuple(_range(row) for row in record["ranges"]),
            feasibility=_texts(record["feasibility"]),
            num_candidates=int(number(record["num_candidates"])),
            candidates=tuple(_candidate(run, row) for row in record["candidates"]),
            front=tuple(_candidate(run, row) for row in record["front"]),
            best=_candidate(run, record["best"]),
            predictor=None if record["predictor"] is None else _predictor(record["predictor"]),
            history=tuple(
                Round(
                    int(number(row["evaluations"])),
                    _number_or_none(row["best_top1"]),
                    int(number(row["front_size"])),
                    _number_or_none(row["hypervolume"]),
                )
                for row in record["history"]
            ),
        )


def _texts(value: object) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise ValueError(f"{value!r} is not a list of texts")
    return tuple(value)


def _menu(run: Run, path: Path) -> Menu:
    record = read_json(path, schema=MENU_SCHEMA)
    with reading(path):
        _check_space(run, record)
        rows = tuple(
            MenuRow(
                name=str(row["name"]),
                limits=tuple(parse_limit(text) for text in _texts(row["limits"])),
                best=None if row["best"] is None else _candidate(run, row["best"]),
                reason=str(row["reason"]),
            )
            for row in record["targets"]
        )
        return Menu(path.stem, rows)


def _range(row: Mapping[str, Any]) -> dict[str, Any]:
    return {"limit": parse_limit(row["limit"])} | {name: number(row[name]) for name in ("minimum", "median", "maximum", "share")}


def _candidate(run: Run, row: Mapping[str, Any]) -> Candidate:
    round_ = int(number(row["round"]))
    if round_ < 0:
        raise ValueError(f"round is {round_}, expected 0 or above")
    arch = run.space.check(ArchConfig(run.space_name, tuple(row["values"])))
    top1, costs = number(row["top1"]), numbers(row["costs"])
    return Candidate(arch, top1, costs, bool(row["feasible"]), round_, _number_or_none(row["predicted"]))


def _predictor(record: Mapping[str, Any]) -> PredictorFacts:
    return PredictorFacts(
        kind=str(record["kind"]),
        kendall_tau=_number_or_none(record["kendall_tau"]),
        macs_tau=_number_or_none(record["macs_tau"]),
        held_out=tuple((number(pair["predicted"]), number(pair["measured"])) for pair in record["held_out"]),
    )


def _number_or_none(value: object) -> float | None:
    return None if value is None else number(value)
