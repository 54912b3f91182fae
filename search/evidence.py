"""What a run's searches, exports and verifications left behind, read back and judged: the facts of a report."""

from __future__ import annotations

import math
import shlex
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deploy.export import MODEL_SCHEMA
from deploy.limits import Limit, parse_limit
from deploy.timing import Latency
from deploy.verify import REPORT_SCHEMA, Check
from ofa.artefacts import ArtefactError, read_json, sha256_of
from ofa.errors import OfaError
from ofa.run_dir import Run
from ofa.space import ArchConfig
from search.menu import MENU_SCHEMA
from search.result import FRONT_SCHEMA, OLD_FRONT_SCHEMAS, Candidate


@dataclass(frozen=True)
class PredictorFacts:
    """What is known of the predictor that a search relied on."""

    kind: str
    kendall_tau: float | None  # on held-out networks; None = unknown
    macs_tau: float | None  # of ranking the same networks by MACs alone
    held_out: tuple[tuple[float, float], ...]  # (predicted, measured) top-1, each predicted by a model fitted without it


@dataclass(frozen=True)
class Round:
    """The state of a search after a round; None = unknown."""

    evaluations: int
    best_top1: float | None
    front_size: int
    hypervolume: float | None


@dataclass(frozen=True)
class Search:
    """A front.json."""

    name: str
    path: Path
    objectives: tuple[str, ...]
    limits: tuple[Limit, ...]
    strategy: str
    accuracy: str
    evals: int
    new_evaluations: int
    ranges: tuple[Mapping[str, Any], ...]  # limit: Limit; minimum, median, maximum, share: numbers
    feasibility: tuple[str, ...]
    candidates: tuple[Candidate, ...]  # every measured network, in the order of measurement
    front: tuple[Candidate, ...]
    best: Candidate
    predictor: PredictorFacts | None
    history: tuple[Round, ...]

    @property
    def top1(self) -> dict[ArchConfig, float]:
        """Top-1 of every measured network."""
        return {candidate.arch: candidate.top1 for candidate in (*self.candidates, self.best)}

    @property
    def cost_keys(self) -> list[str]:
        """The costs that it limits or minimises."""
        minimised = [text.partition(" ")[2].strip() for text in self.objectives if text.startswith("min ")]
        return list(dict.fromkeys([*(limit.key for limit in self.limits), *minimised]))


@dataclass(frozen=True)
class OldSearch:
    """A front.json that an older version wrote."""

    name: str
    path: Path
    command: str  # that makes it anew


@dataclass(frozen=True)
class MenuRow:
    """What one target of a search with several targets gets."""

    name: str
    limits: tuple[Limit, ...]
    best: Candidate | None
    reason: str  # why there is none


@dataclass(frozen=True)
class Proof:
    """A verification.json."""

    sha256: str
    limits: tuple[Limit, ...]
    checks: tuple[Check, ...]
    top1: float
    top1_interval: tuple[float, float]
    test_images: int
    latency: Mapping[str, Latency]
    host: Mapping[str, str]


@dataclass(frozen=True)
class Network:
    """A network that was chosen: exported, or the best of a search that still waits for it."""

    name: str
    path: Path
    arch: ArchConfig
    limits: tuple[Limit, ...]
    predicted: Mapping[str, float]  # by Limit.key
    top1_validation: float | None
    size_bytes: int | None
    proof: Proof | None
    verdict: str  # pass, fail or open
    reason: str
    command: str  # what to run next; "" = nothing


def read_searches(run: Run) -> list[Search]:
    """Read the searches of a run, the untagged one first; those of an older version are left out (`read_old_searches`).

    Raises:
        ArtefactError: if a file is damaged or of another space.
    """
    return [_search(run, path) for path in _fronts(run) if _old(path) is None]


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


def read_menu(run: Run) -> list[MenuRow]:
    """Read the menu of a search with several targets; empty if there was none.

    Raises:
        ArtefactError: if the file is damaged or of another space.
    """
    path = run.path / "search" / "menu.json"
    if not path.exists():
        return []
    record = read_json(path, schema=MENU_SCHEMA)
    with reading(path):
        _check_space(run, record)
        return [
            MenuRow(
                name=str(row["name"]),
                limits=tuple(parse_limit(text) for text in row["limits"]),
                best=None if row["best"] is None else _candidate(run, row["best"]),
                reason=str(row["reason"]),
            )
            for row in record["targets"]
        ]


def read_exports(run: Run) -> list[Network]:
    """Read the exported networks: those in the run's folder, and elsewhere where run.json says so and they still are.

    Raises:
        ArtefactError: if a file is damaged or of another space.
    """
    inside = sorted(path.parent for path in (run.path / "export").glob("*/model.json"))
    elsewhere = [run.path / name for name in run.record.get("exports", [])]
    folders = {folder.resolve(): folder for folder in [*elsewhere, *inside]}
    return [_exported(run, folder) for folder in folders.values() if (folder / "model.json").exists()]


def best_of(run: Run, search: Search) -> Network:
    """Return the network that a search chose, as one that is not exported yet."""
    best = search.path.parent / "best"
    return Network(
        name=search.name,
        path=best,
        arch=search.best.arch,
        limits=search.limits,
        predicted=search.best.costs,
        top1_validation=search.best.top1,
        size_bytes=None,
        proof=None,
        verdict="open",
        reason="not exported yet",
        command=f"ofa export {shlex.quote(str(best))} -o {shlex.quote(str(run.path / 'export' / search.name))}",
    )


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turn what a file lacks into an error that names the file."""
    try:
        yield
    except ArtefactError:
        raise
    except OfaError as error:
        raise ArtefactError(f"{path}: {error}") from None
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ArtefactError(f"{path}: incomplete or damaged ({type(error).__name__}: {error})") from None


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
            objectives=tuple(str(text) for text in record["objectives"]),
            limits=tuple(parse_limit(text) for text in record["limits"]),
            strategy=str(record["strategy"]),
            accuracy=str(record["accuracy"]),
            evals=int(record["evals"]),
            new_evaluations=int(record["new_evaluations"]),
            ranges=tuple(_range(row) for row in record["ranges"]),
            feasibility=tuple(str(line) for line in record["feasibility"]),
            candidates=tuple(_candidate(run, row) for row in record["candidates"]),
            front=tuple(_candidate(run, row) for row in record["front"]),
            best=_candidate(run, record["best"]),
            predictor=None if record["predictor"] is None else _predictor(record["predictor"]),
            history=tuple(
                Round(
                    int(_number(row["evaluations"])),
                    _number_or_none(row["best_top1"]),
                    int(_number(row["front_size"])),
                    _number_or_none(row["hypervolume"]),
                )
                for row in record["history"]
            ),
        )


def _range(row: Mapping[str, Any]) -> dict[str, Any]:
    return {"limit": parse_limit(row["limit"])} | {name: _number(row[name]) for name in ("minimum", "median", "maximum", "share")}


def _candidate(run: Run, row: Mapping[str, Any]) -> Candidate:
    round_ = int(_number(row["round"]))
    if round_ < 0:
        raise ValueError(f"round is {round_}, expected 0 or above")
    arch = run.space.check(ArchConfig(run.space_name, tuple(row["values"])))
    top1, costs, predicted = _number(row["top1"]), _numbers(row["costs"]), _number_or_none(row["predicted"])
    return Candidate(arch, top1, costs, bool(row["feasible"]), round_, predicted)


def _predictor(record: Mapping[str, Any]) -> PredictorFacts:
    return PredictorFacts(
        kind=str(record["kind"]),
        kendall_tau=_number_or_none(record["kendall_tau"]),
        macs_tau=_number_or_none(record["macs_tau"]),
        held_out=tuple((_number(pair["predicted"]), _number(pair["measured"])) for pair in record["held_out"]),
    )


def _number_or_none(value: object) -> float | None:
    return None if value is None else _number(value)


def _number(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError(f"{value!r} is not a number")
    return float(value)


def _numbers(value: Mapping[str, object]) -> dict[str, float]:
    return {str(name): _number(item) for name, item in value.items()}


def _exported(run: Run, folder: Path) -> Network:
    proof_path, model = folder / "verification.json", folder / "model.onnx"
    record = read_json(folder / "model.json", schema=MODEL_SCHEMA)
    proof = _proof(proof_path) if proof_path.exists() else None
    digest = sha256_of(model) if model.exists() else ""
    verdict, reason = _verdict(proof, digest)
    with reading(folder / "model.json"):
        return Network(
            name=folder.name,
            path=folder,
            arch=run.space.from_values(record["arch"]),
            limits=proof.limits if proof else tuple(parse_limit(text) for text in record.get("limits", [])),
            predicted=_numbers(record.get("predicted", {})),
            top1_validation=_number(record["top1_validation"]) if "top1_validation" in record else None,
            size_bytes=int(record["size_bytes"]),
            proof=proof,
            verdict=verdict,
            reason=reason,
            command=f"ofa verify {shlex.quote(str(model))}" if digest and (proof is None or proof.sha256 != digest) else "",
        )


def _proof(path: Path) -> Proof:
    record = read_json(path, schema=REPORT_SCHEMA)
    with reading(path):
        low, high = record["top1_interval"]
        return Proof(
            sha256=str(record["sha256"]),
            limits=tuple(parse_limit(text) for text in record["limits"]),
            checks=tuple(Check(**check) for check in record["checks"]),
            top1=_number(record["top1"]),
            top1_interval=(_number(low), _number(high)),
            test_images=int(record["test_images"]),
            latency={str(device): Latency(**found) for device, found in record["latency"].items()},
            host=dict(record["host"]),
        )


def _verdict(proof: Proof | None, digest: str) -> tuple[str, str]:
    """Say whether a verification holds for the file whose SHA-256 is `digest` ("" = no file), and why."""
    if not digest:
        return "fail", "model.onnx is missing"
    if proof is None:
        return "open", "not verified yet"
    if proof.sha256 != digest:
        return "fail", "model.onnx changed after it was verified"
    failed = [check.name for check in proof.checks if not check.ok]
    return ("fail", ", ".join(failed)) if failed else ("pass", f"all {len(proof.checks)} checks")
