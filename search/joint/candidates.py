"""The end of a search by a controller: architectures drawn from it, each measured, the best of which is found.

nas/candidates.json    the ranking, best first
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from ofa.artefacts import ArtefactError, read_json, write_json

SCHEMA = "ofa.nas_candidates/1"
CANDIDATES = "candidates.json"


@dataclass(frozen=True, slots=True)
class Candidate:
    """An architecture that was drawn at the end."""

    arc: str  # its tokens, as ENAS writes them
    top1: float  # with the shared weights, in [0, 1]
    reward: float  # what the ranking goes by; top1 unless costs matter
    drawn: int  # how often
    macs: int  # of the network that is to be trained, of one image
    params: int


def write_candidates(folder: Path, ranked: Sequence[Candidate], *, images: int, held_out_top1: float, held_out: int) -> None:
    """Write a ranking.

    Args:
        images: on which accuracies were measured.
        held_out_top1: accuracy of the best on images that nothing was chosen by, in [0, 1]; the shared weights are the same.
        held_out: the number of those images.
    """
    measured = {"images": images, "held_out_top1": held_out_top1, "held_out": held_out}
    write_json(folder / CANDIDATES, {"schema": SCHEMA, **measured, "candidates": [asdict(c) for c in ranked]})


def read_held_out(folder: Path) -> tuple[float, int] | None:
    """Return the best one's accuracy on images that nothing was chosen by, and their number; None where it was not measured."""
    path = folder / CANDIDATES
    record = read_json(path, schema=SCHEMA) if path.exists() else {}
    top1, number = record.get("held_out_top1"), record.get("held_out")
    return (float(top1), number) if isinstance(top1, int | float) and isinstance(number, int) else None


def read_candidates(folder: Path) -> tuple[list[Candidate], int]:
    """Return a ranking and the number of images that it was measured on; nothing and 0 before a search has ended.

    Raises:
        ArtefactError: if the file is damaged.
    """
    path = folder / CANDIDATES
    if not path.exists():
        return [], 0
    record = read_json(path, schema=SCHEMA)
    try:
        found = [
            Candidate(
                str(row["arc"]),
                float(row["top1"]),
                float(row["reward"]),
                int(row["drawn"]),
                int(row["macs"]),
                int(row["params"]),
            )
            for row in record["candidates"]
        ]
        return found, int(record["images"])
    except (KeyError, TypeError, ValueError) as error:
        raise ArtefactError(f"{path}: damaged ({type(error).__name__}: {error}); search again with --resume auto") from None
