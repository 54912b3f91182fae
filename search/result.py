"""What a search returns and writes: the best network and the front, as JSON that reads without this code."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deploy.export import CANDIDATE_SCHEMA
from ofa.artefacts import write_json
from ofa.run_dir import Run
from ofa.space import ArchConfig

FRONT_SCHEMA = "ofa.front/1"


@dataclass(frozen=True)
class Candidate:
    """A measured architecture. Costs by key: "macs", "params", "latency@<device>" in milliseconds."""

    arch: ArchConfig
    top1: float  # on validation images
    costs: dict[str, float]
    feasible: bool


@dataclass(frozen=True)
class SearchResult:
    """The outcome of a search."""

    path: Path  # where it was written
    best: Candidate
    candidates: tuple[Candidate, ...]  # all measured, with those of earlier searches of the run
    front: tuple[Candidate, ...]  # feasible ones that no other dominates, most accurate first
    limits: tuple[str, ...]
    feasibility: tuple[str, ...]
    predictor: dict[str, Any]
    new_evaluations: int
    weights_sha256: str | None  # that the accuracies belong to; None = they came from elsewhere
    devices: dict[str, Any]  # name -> DeviceSpec fields, of the limits: they need not be ones that ship

    def save(self, run: Run) -> None:
        """Write front.json, best/arch.json and best/candidate.json."""
        write_json(
            self.path / "front.json",
            {
                "schema": FRONT_SCHEMA,
                "space": run.space.name,
                "limits": list(self.limits),
                "feasibility": list(self.feasibility),
                "predictor": self.predictor,
                "new_evaluations": self.new_evaluations,
                "best": self._row(self.best),
                "front": [self._row(c) for c in self.front],
                "candidates": [self._row(c) for c in self.candidates],
            },
        )
        write_json(self.path / "best" / "arch.json", run.space.to_json(self.best.arch))
        write_json(
            self.path / "best" / "candidate.json",
            {
                "schema": CANDIDATE_SCHEMA,
                "arch": run.space.to_json(self.best.arch)["values"],
                "weights_sha256": self.weights_sha256,
                "limits": list(self.limits),
                "predicted": self.best.costs,
                "top1_validation": self.best.top1,
                "devices": self.devices,
            },
        )

    @staticmethod
    def _row(candidate: Candidate) -> dict[str, Any]:
        return {
            "values": list(candidate.arch.values),
            "top1": candidate.top1,
            "costs": candidate.costs,
            "feasible": candidate.feasible,
        }
