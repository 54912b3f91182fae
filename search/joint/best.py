"""The best children of a search that trains each from scratch: nas/best/1/arch.json, nas/best/2/arch.json, ..."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from ofa.artefacts import write_json
from ofa.space import ArchConfig, SearchSpace
from search.joint.record import FOLDER

BEST = "best"
KEPT = 5


def best_folders(run: Path) -> list[Path]:
    """Return the folders of the best children, the very best first; folders with other names are somebody else's."""
    folders = [folder for folder in (run / FOLDER / BEST).glob("*") if folder.name.isdecimal() and folder.is_dir()]
    return sorted(folders, key=lambda folder: int(folder.name))


def write_best(run: Path, space: SearchSpace, archs: Sequence[ArchConfig]) -> None:
    """Write the best children, the very best first, and remove those that an earlier run of the search wrote."""
    for folder in best_folders(run):
        (folder / "arch.json").unlink(missing_ok=True)
        with suppress(OSError):  # something of somebody else's is in it
            folder.rmdir()
    for place, arch in enumerate(archs, 1):
        write_json(run / FOLDER / BEST / str(place) / "arch.json", space.to_json(arch), sealed=True)
