"""What searches of weights and architecture together write into their run directories, and read back.

nas/config.json      settings
nas/metrics.jsonl    a line an epoch: losses, accuracy on the images that the architecture is decided by, rewards
nas/alphas.jsonl     by gradients: a line an epoch, and one before the first: probabilities, what they decide for, its skips
nas/candidates.json  by a controller: what was drawn from it at the end, best first (candidates.py)
nas/step_NNNNNN/     checkpoints
arch.json            what was found; cells: genotype.txt, as the field writes them, and cells.svg; chains: chain.svg
arc.txt              ENAS: its tokens
"""

from __future__ import annotations

import json
import shlex
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from ofa.artefacts import ArtefactError, read_json, read_jsonl, write_bytes, write_json
from ofa.errors import OfaError
from ofa.run_dir import DataSource, Run, max_resolution
from ofa.space import ArchConfig, SearchSpace
from ofa.training.checkpoint import list_checkpoints
from search.cell_drawing import Cell, write_drawing

SCHEMA = "ofa.nas/1"
FOLDER, METRICS, ALPHAS = "nas", "metrics.jsonl", "alphas.jsonl"
GENOTYPE, DRAWING = "genotype.txt", "cells.svg"
ARC, CHAIN = "arc.txt", "chain.svg"
BY_CONTROLLER = ("enas", "nas_rl")  # methods that are rewarded
AUXILIARY_SIDE = 24  # px of the images, a quarter of which reaches the auxiliary classifier, that averages 5 x 5


class SearchError(OfaError):
    """A search of weights and architecture together cannot begin or go on."""


def open_or_create(out: Path, space: SearchSpace, source: DataSource, settings: Mapping[str, Any], *, resume: bool) -> Run:
    """Make a run directory, or open the one of a search that is to go on.

    A search that was stopped before its first checkpoint begins anew.

    Args:
        space: that what is found belongs to.
        settings: JSON values; `method` names the search.
    Raises:
        SearchError: if there is a search already and `resume` is not asked for, or it was begun with other settings.
    """
    folder = out / FOLDER
    if not list_checkpoints(folder):
        if (out / "run.json").exists() and not folder.exists():
            raise SearchError(f"{out}: is a run of another command; give another --out")
        # The folder stays, and comes before run.json: whenever this is killed, what is left is known to be of a search
        folder.mkdir(parents=True, exist_ok=True)
        for left_over in folder.iterdir():
            shutil.rmtree(left_over) if left_over.is_dir() else left_over.unlink()
        write_json(folder / "config.json", {"schema": SCHEMA, **settings})
        return Run.create(out, space, source, None)
    run = Run(out)
    if not resume:
        raise SearchError(f"{out}: already holds a search; add --resume auto to go on, or give another --out")
    if run.space_name != space.name:
        raise SearchError(f"{out}: is a run of space {run.space_name!r}, not {space.name!r}; give another --out")
    require_equal(out, "data's ", asdict(run.data), asdict(replace(source, source=run.data.source)))
    require_equal(out, "", read_json(folder / "config.json", schema=SCHEMA), settings)
    if source.source != run.data.source:
        run.move_data(source.source)  # the same images, elsewhere
    return run


def require_no_run(out: Path) -> None:
    """Refuse to search in a folder that another command wrote to, or that holds anything else than a search.

    For searches that are no runs, as they have no images; what they find would replace arch.json.

    Raises:
        SearchError: naming the folder.
    """
    if (out / "run.json").exists():
        raise SearchError(f"{out}: is a run of another command; give another --out")
    begun = (out / FOLDER / "config.json").exists()
    if not begun and out.exists() and any(path.name != FOLDER for path in out.iterdir()):
        raise SearchError(f"{out}: is not empty and holds no search; give another --out")


def require_equal(out: Path, what: str, begun: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Refuse to go on with other settings.

    Raises:
        SearchError: naming the first setting that differs.
    """
    written = json.loads(json.dumps(now))  # as it would be read back: tuples are lists there
    found = json.loads(json.dumps(begun))
    for name, value in written.items():
        if found.get(name) != value:
            raise SearchError(
                f"{out}: {what}{name} is {value!r}, but the search began with {found.get(name)!r}; use that, or another --out"
            )


def write_found(out: Path, text: str, cells: tuple[Cell, ...], space: SearchSpace, arch: ArchConfig) -> None:
    """Write what a search has found: genotype.txt, cells.svg and arch.json."""
    write_bytes(out / GENOTYPE, f"{text}\n".encode())
    write_drawing(out / DRAWING, cells)
    write_json(out / "arch.json", space.to_json(arch), sealed=True)


def train_command(run: Run) -> str:
    """Return a command that trains what a search of images has found, in a network as large as those of the literature.

    Where costs were rewarded it is the very network that was priced, with the channels that the search was given.
    ENAS drops operations with a probability that grows with the depth, to 0.4 in the last cell; 0.2 is about its mean.
    """
    side = max_resolution(run.whole_space)
    argv = ["ofa", "train", "--arch", str(run.path / "arch.json"), "--data", run.data.source, "--out", f"{run.path}-trained"]
    large = {
        "darts": ["--cells", "20", "--channels", "36", "--drop-path", "0.2"],
        "enas_micro": ["--cells", "17", "--channels", "36", "--drop-path", "0.2", "--dropout", "0.2"],
        "enas_macro": ["--channels", "96", "--dropout", "0.5"],
    }
    space = run.space_name.partition(":")[0]
    options = large.get(space, [])
    searched = read_json(run.path / FOLDER / "config.json", schema=SCHEMA) if options else {}
    if searched.get("reward") or searched.get("final_channels"):
        options = [*options[: (at := options.index("--channels"))], *options[at + 2 :]]  # as arch.json says
    argv += options
    if space in ("darts", "enas_micro"):
        argv += ["--cutout", str(side // 2)]
        argv += ["--auxiliary", "0.4"] if side >= AUXILIARY_SIDE else []
    return shlex.join(argv)


@dataclass(frozen=True, slots=True)
class Decided:
    """Where the alphas stood after an epoch; 0 = before the first."""

    epoch: int
    probabilities: dict[str, list[list[float]]]  # cell -> edges x operations
    skips: dict[str, int]  # cell -> skips, derived without a limit to them
    genotype: str


@dataclass(frozen=True, slots=True)
class SearchRecord:
    """A search read back."""

    config: dict[str, Any]
    operations: list[str]
    edges: dict[str, list[tuple[int, int]]]  # cell -> (to, from) of each row of probabilities
    decided: list[Decided]
    metrics: list[dict[str, Any]]
    genotype: str | None  # None: it has not ended, or finds no cells
    has_ended: bool

    @property
    def method(self) -> str:
        return str(self.config.get("method"))

    @property
    def is_by_controller(self) -> bool:
        """Whether a controller was rewarded; else alphas had gradients."""
        return self.method in BY_CONTROLLER


def read_search(run: Path) -> SearchRecord | None:
    """Read the search of a run directory; None if it has none.

    Raises:
        ArtefactError: if its files are damaged.
    """
    folder = run / FOLDER
    if not (folder / "config.json").exists():
        return None
    config = read_json(folder / "config.json", schema=SCHEMA)
    found = run / GENOTYPE
    try:
        operations = [str(name) for name in config.get("operations", [])]
        edges = {str(cell): [(int(to), int(source)) for to, source in rows] for cell, rows in config.get("edges", {}).items()}
        decided = [_decided(line, edges, len(operations)) for line in read_jsonl(folder / ALPHAS)]
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ArtefactError(f"{folder}: damaged ({type(error).__name__}: {error}); remove {ALPHAS} to go on without it") from None
    text = found.read_text(errors="replace").strip()[:20_000] if found.exists() else None
    has_ended = (run / "arch.json").exists()
    return SearchRecord(config, operations, edges, decided, list(read_jsonl(folder / METRICS)), text, has_ended)


def _decided(line: Mapping[str, Any], edges: Mapping[str, list[tuple[int, int]]], operations: int) -> Decided:
    probabilities = {cell: [[float(p) for p in row] for row in line["probabilities"][cell]] for cell in edges}
    for cell, rows in probabilities.items():
        if len(rows) != len(edges[cell]) or any(len(row) != operations for row in rows):
            raise ValueError(f"epoch {line['epoch']!r} has other probabilities than {len(edges[cell])} x {operations}")
    skips = {str(cell): int(count) for cell, count in line["skips"].items()}
    return Decided(int(line["epoch"]), probabilities, skips, str(line["genotype"]))
