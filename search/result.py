"""What a search returns and writes: the best network, the front, all it measured, as JSON and CSV that read without this code."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deploy.export import CANDIDATE_SCHEMA
from ofa.artefacts import write_bytes, write_json
from ofa.run_dir import Run
from ofa.space import ArchConfig

FRONT_SCHEMA = "ofa.front/2"
OLD_FRONT_SCHEMAS = ("ofa.front/1",)  # said to be old rather than damaged
MOST_CANDIDATES = 10_000  # written; of the 300,000 that a table answers for, a file of 140 MB for each target would be left
UNIT_OF = {"latency": "latency_ms", "energy": "energy_mj", "memory": "memory_bytes", "size": "size_bytes"}


@dataclass(frozen=True)
class Candidate:
    """A measured architecture. Costs by Limit.key: "macs", "params", "latency@<device>" in milliseconds."""

    arch: ArchConfig
    top1: float  # on validation images, or by whatever told the accuracy; a score that is no share of 1 is shown as such
    costs: dict[str, float]
    feasible: bool
    round: int = 0  # 0 = measured for the design or known before, 1, 2, ... = the active round that asked for it
    predicted: float | None = None  # top1 as it was predicted before the measurement; None in round 0


@dataclass(frozen=True)
class SearchResult:
    """The outcome of a search."""

    path: Path  # folder where it was written
    best: Candidate
    candidates: tuple[Candidate, ...]  # all measured, with those of earlier searches of the run, in the order of measurement
    front: tuple[Candidate, ...]  # feasible ones that no other dominates, most accurate first
    limits: tuple[str, ...]
    feasibility: tuple[str, ...]  # `ranges` as lines of text
    predictor: dict[str, Any] | None  # kind, kendall_tau, macs_tau, held_out; None = the accuracy was not predicted
    new_evaluations: int
    weights_sha256: str | None  # that the accuracies belong to; None = they came from elsewhere
    devices: dict[str, Any]  # name -> DeviceSpec fields, of the limits: they need not be ones that ship
    anchors: dict[str, Any]  # name -> arch and latency_ms of a network of the device's table, to tell its speed later
    objectives: tuple[str, ...] = ("max top1",)  # e.g. ("max top1", "min latency@pi4")
    strategy: str = "evolution"
    accuracy: str = "supernet"  # what told the accuracy: "supernet", "table acc.csv", ...
    evals: int = 0  # networks that the search judged, with those known before
    ranges: tuple[dict[str, Any], ...] = ()  # for each limit: limit, minimum, median, maximum, share of the space that fits
    history: tuple[dict[str, Any], ...] = ()  # after each round: evaluations, best_top1, front_size, hypervolume (None = unknown)

    def describe_accuracy(self) -> str:
        """Say how accurate the best is, and who says so."""
        if self.accuracy == "supernet":
            return f"top-1 {self.best.top1:.4f} on validation images"
        if 0 <= self.best.top1 <= 1 and not self.accuracy.startswith("proxy:"):
            return f"top-1 {self.best.top1:.4f} by {self.accuracy}"
        return f"score {self.best.top1:.4g} by {self.accuracy}"

    def save(self, run: Run) -> None:
        """Write front.json, front.csv, best/arch.json and best/candidate.json.

        Of very many candidates every second, third, ... is written, besides the best and the front.
        """
        write_json(
            self.path / "front.json",
            {
                "schema": FRONT_SCHEMA,
                "space": run.space.name,
                "objectives": list(self.objectives),
                "limits": list(self.limits),
                "strategy": self.strategy,
                "accuracy": self.accuracy,
                "evals": self.evals,
                "new_evaluations": self.new_evaluations,
                "ranges": list(self.ranges),
                "feasibility": list(self.feasibility),
                "predictor": self.predictor,
                "history": list(self.history),
                "best": candidate_row(self.best),
                "front": [candidate_row(c) for c in self.front],
                "num_candidates": len(self.candidates),
                "candidates": [candidate_row(c) for c in self._kept()],
            },
            sealed=True,
        )
        self._save_front_csv(run)
        write_json(self.path / "best" / "arch.json", run.space.to_json(self.best.arch), sealed=True)
        write_json(
            self.path / "best" / "candidate.json",
            {
                "schema": CANDIDATE_SCHEMA,
                "arch": run.space.to_json(self.best.arch)["values"],
                "weights_sha256": self.weights_sha256,
                "limits": list(self.limits),
                "predicted": self.best.costs,
                **({"top1_validation": self.best.top1} if self.accuracy == "supernet" else {}),
                "devices": self.devices,
                "anchors": self.anchors,
            },
            sealed=True,
        )

    def _kept(self) -> list[Candidate]:
        step = -(-len(self.candidates) // MOST_CANDIDATES) or 1
        matter = {candidate.arch for candidate in (self.best, *self.front)}
        return [c for i, c in enumerate(self.candidates) if i % step == 0 or c.arch in matter]

    def _save_front_csv(self, run: Run) -> None:
        """Write a row a network of the front: every choice by name, top1, and every cost with its unit."""
        keys = cost_keys(self.front)
        header = [*(d.name for d in run.space.dimensions), "top1", *map(cost_column, keys)]
        write_csv(
            self.path / "front.csv", header, ([*c.arch.values, c.top1, *(c.costs.get(k, "") for k in keys)] for c in self.front)
        )


def candidate_row(candidate: Candidate) -> dict[str, Any]:
    """Return a candidate as JSON."""
    return {
        "values": list(candidate.arch.values),
        "top1": candidate.top1,
        "costs": candidate.costs,
        "feasible": candidate.feasible,
        "round": candidate.round,
        "predicted": candidate.predicted,
    }


def cost_keys(candidates: Iterable[Candidate]) -> list[str]:
    """Return the costs that some candidate has, in order of appearance."""
    return list(dict.fromkeys(key for candidate in candidates for key in candidate.costs))


def cost_column(key: str) -> str:
    """Return a cost's name with its unit: "latency@pi4" becomes "latency_ms@pi4", "macs" stays."""
    quantity, at, where = key.partition("@")
    return UNIT_OF.get(quantity, quantity) + at + where


def write_csv(path: Path, header: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Write a table atomically as UTF-8 with a line a row."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([header, *rows])
    write_bytes(path, text.getvalue().encode())
