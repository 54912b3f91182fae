"""What a run's exports and verifications left behind, read back and judged."""

from __future__ import annotations

import math
import shlex
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from deploy.bundle import MODEL_SCHEMA
from deploy.checks import Check
from deploy.limits import Limit, parse_limit
from deploy.timing import Latency
from deploy.verify import REPORT_SCHEMA
from ofa.artefacts import ArtefactError, read_json, sha256_of
from ofa.errors import OfaError
from ofa.run_dir import Run
from ofa.space import ArchConfig


@dataclass(frozen=True)
class Proof:
    """A verify.json."""

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


def read_exports(run: Run) -> list[Network]:
    """Read the exported networks: those in the run's folder, and elsewhere where run.json says so and they still are.

    Raises:
        ArtefactError: if a file is damaged or of another space.
    """
    inside = sorted(path.parent for path in (run.path / "export").glob("*/model.json"))
    elsewhere = [run.path / name for name in run.record.get("exports", [])]
    folders = {folder.resolve(): folder for folder in [*elsewhere, *inside]}
    return [_exported(run, folder) for folder in folders.values() if (folder / "model.json").exists()]


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


def number(value: object) -> float:
    """Return a finite number; ValueError for anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError(f"{value!r} is not a number")
    return float(value)


def numbers(value: Mapping[str, object]) -> dict[str, float]:
    """Return name -> finite number; ValueError for anything else."""
    return {str(name): number(item) for name, item in value.items()}


def _exported(run: Run, folder: Path) -> Network:
    proof_path, model = folder / "verify.json", folder / "model.onnx"
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
            predicted=numbers(record.get("predicted", {})),
            top1_validation=number(record["top1_validation"]) if "top1_validation" in record else None,
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
            top1=number(record["top1"]),
            top1_interval=(number(low), number(high)),
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
