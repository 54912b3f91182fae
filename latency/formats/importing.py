"""Import timings: from a file of one of FORMATS to a cost model of a device."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np

from deploy.device import DEVICE_NAME
from latency.formats.mit_lut import import_mit_lut
from latency.formats.timings_csv import import_timings_csv
from latency.formats.ultra96 import import_ultra96
from latency.open import LatencyModel
from latency.table import LatencyTable, MissingBlockError
from ofa.errors import OfaError
from ofa.progress import say
from ofa.space import SearchSpace

IMPORTERS: dict[str, Callable[[Path, SearchSpace, str], LatencyModel]] = {
    "mit_ofa": import_mit_lut,
    "ultra96": import_ultra96,
    "csv": import_timings_csv,
}
FORMATS = tuple(IMPORTERS)
SAMPLES = 4096


def import_timings(path: Path, format: str, space: SearchSpace, device: str) -> LatencyModel:
    """Return the cost model that a file of timings gives for a space, named `device`; milliseconds.

    Raises:
        OfaError: for an unknown format or a bad name; ArtefactError if the file is not what its format says.
        MissingBlockError: if the file's block times price no network of the space.
    """
    if format not in IMPORTERS:
        raise OfaError(f"format {format!r}: expected one of {', '.join(FORMATS)}")
    if not re.fullmatch(DEVICE_NAME, device):
        raise OfaError(
            f"device name {device!r}: expected letters, digits, '_', '.' and '-', beginning with one of the first three"
        )
    model = IMPORTERS[format](Path(path), space, device)
    if isinstance(model, LatencyTable):
        _tell_coverage(model, Path(path))
    return model


def _tell_coverage(table: LatencyTable, source: Path) -> None:
    """Say which part of the space a table prices; refuse one that prices none of it."""
    space = table.space
    drawn = np.concatenate([space.sample(np.random.default_rng(0), SAMPLES), space.encode([space.smallest, space.largest])])
    gaps = np.isnan(table.block_values[space.block_ids(drawn)]).sum(1)
    if not gaps.any():
        return
    if gaps.all():
        try:
            table.predict(drawn[[gaps.argmin()]])  # names a block that does not fit, rather than a size that is missing
        except MissingBlockError as error:
            raise MissingBlockError(f"{source}: prices no network of {space.name}: {error}") from None
    sides = [space.resolution(arch) for arch in space.decode(drawn[gaps == 0])]
    sizes = f"input sizes {min(sides)} to {max(sides)} px" if min(sides) < max(sides) else f"input size {min(sides)} px"
    share = f"{(gaps == 0).mean():.0%} of {space.name}"
    say(f"note: {source.name} prices {share}, {sizes}; networks with blocks that it does not hold are an error")
