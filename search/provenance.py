"""Where a report's numbers come from: commands, machines, files with their SHA-256."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Mapping
from pathlib import Path

from latency.open import LatencyModel
from ofa.artefacts import sha256_of
from ofa.run_dir import Run
from ofa.training.checkpoint import list_checkpoints
from search.evidence import Network
from search.past_records import Search
from search.reading import reading

PROVING = ("model.onnx", "model.json", "verify.json", "bench.json")  # of an export


def history(run: Run) -> list[tuple[str, str, float]]:
    """Return (command, when it finished, seconds) of the commands that were run."""
    with reading(run.path / "run.json"):
        commands = run.record.get("commands", [])
        return [(shlex.join(command["argv"]), str(command["finished"]), float(command["seconds"])) for command in commands]


def hosts(run: Run, tables: Iterable[LatencyModel], networks: Iterable[Network]) -> list[tuple[str, list[str]]]:
    """Return (machine with its versions, what was done there), each machine once."""
    work = [(command.get("host"), "commands") for command in run.record.get("commands", [])]
    work += [(table.provenance.get("host"), f"latency table {table.device}") for table in tables]
    exports = [(network.name, network.export) for network in networks if network.export]
    work += [(export.proof.host, f"verification of {name}") for name, export in exports if export.proof]
    work += [(export.bench.host, f"timing of {name}") for name, export in exports if export.bench]
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


def digests(run: Run, searches: Iterable[Search], networks: Iterable[Network]) -> list[tuple[str, str]]:
    """Return (path, SHA-256) of the files that the report rests on."""
    weights = [checkpoint.path / "model.safetensors" for checkpoint in list_checkpoints(run.supernet_dir)[-1:]]
    tables = sorted((run.path / "latency").glob("*.json"))
    found = [(path, sha256_of(path)) for path in [*weights, *tables, *(s.path for s in searches)] if path.exists()]
    for network in networks:
        known = network.export.digests if network.export else {}
        found += [(network.path / name, known[name]) for name in PROVING if name in known]
    return [(_relative(path, run), digest) for path, digest in found]


def _relative(path: Path, run: Run) -> str:
    return path.relative_to(run.path).as_posix() if path.is_relative_to(run.path) else str(path)
