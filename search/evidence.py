"""The networks that a run chose and what proves them: its exports, read back and judged."""

from __future__ import annotations

import os
import shlex
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from deploy.bundle import open_bundle
from deploy.integrity import MANIFEST
from deploy.limits import Limit, parse_limit
from ofa.artefacts import ArtefactError
from ofa.run_dir import Run
from ofa.space import ArchConfig
from search.bundles import Export, Proof, read_export
from search.reading import reading
from search.wording import Source, source


@dataclass(frozen=True)
class Network:
    """A network that was chosen: exported, or the best of a search that still waits for it."""

    name: str
    path: Path
    arch: ArchConfig
    limits: tuple[Limit, ...]
    predicted: Mapping[str, float]  # by Limit.key
    top1_validation: float | None
    source: Source  # of top1_validation
    export: Export | None
    verdict: str  # pass, fail or open
    reason: str
    command: str  # what to run next; "" = nothing

    @property
    def proof(self) -> Proof | None:
        return self.export.proof if self.export else None


@dataclass(frozen=True)
class Unusable:
    """An export that tells nothing about a network of the run."""

    name: str
    reason: str
    damaged: bool  # or else it is whole, but of another space


class ForeignError(ArtefactError):
    """An export is of no network of the run."""


def read_exports(run: Run) -> tuple[list[Network], list[Unusable]]:
    """Read the exports of a run: those in its folder, and elsewhere where run.json says so and they still are.

    A damaged one spoils none of the others: it is returned with the reason. Equal names are told apart by their folders.
    """
    inside = sorted((run.path / "export").glob("*"))
    elsewhere = [Path(os.path.normpath(run.path / name)) for name in run.record.get("exports", [])]
    folders = list({path.resolve(): path for path in [*elsewhere, *inside] if _is_export(path)}.values())
    networks: list[Network] = []
    unusable: list[Unusable] = []
    for folder, name in zip(folders, _names(run, folders), strict=True):
        try:
            networks.append(_exported(run, folder, name))
        except ArtefactError as error:
            unusable.append(Unusable(name, str(error), damaged=not isinstance(error, ForeignError)))
    return networks, unusable


def _is_export(folder: Path) -> bool:
    return any((folder / name).exists() for name in ("model.json", MANIFEST))


def _names(run: Run, folders: Iterable[Path]) -> list[str]:
    """Name exports after their folders, as briefly as tells them apart."""
    folders = list(folders)
    times = Counter(folder.name for folder in folders)
    return [folder.name if times[folder.name] == 1 else os.path.relpath(folder, run.path) for folder in folders]


def _exported(run: Run, folder: Path, name: str) -> Network:
    """Read one export.

    Raises:
        ArtefactError: if a part of it is missing, damaged, or of another space.
    """
    bundle = open_bundle(folder)
    record = bundle.record
    if record["space"] != run.space_name:
        what = "of no space" if record["space"] is None else f"of the space {record['space']}"
        raise ForeignError(f"holds a network {what}, this run is of {run.space_name}")
    export = read_export(bundle)
    verdict, reason = _verdict(export.proof, record["sha256"])
    stale = export.proof is None or export.proof.sha256 != record["sha256"]
    with reading(folder / "model.json"):
        return Network(
            name=name,
            path=folder,
            arch=run.space.from_values(record["arch"]),
            limits=export.proof.limits if export.proof else tuple(parse_limit(text) for text in record["limits"]),
            predicted=record["predicted"],
            top1_validation=record.get("top1_validation"),
            source=source("supernet"),  # it has weights, which were measured on images
            export=export,
            verdict=verdict,
            reason=reason,
            command=f"ofa verify {shlex.quote(str(folder / 'model.onnx'))}" if stale else "",
        )


def _verdict(proof: Proof | None, digest: str) -> tuple[str, str]:
    """Say whether a verification holds for the file whose SHA-256 is `digest`, and why."""
    if proof is None:
        return "open", "not verified yet"
    if proof.sha256 != digest:
        return "fail", "model.onnx changed after it was verified"
    failed = [check.name for check in proof.checks if not check.ok]
    return ("fail", ", ".join(failed)) if failed else ("pass", f"all {len(proof.checks)} checks")
