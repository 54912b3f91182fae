"""Open whatever prices a device: each file of a run's latency/ names its schema."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from latency.formats import by_size
from latency.predictor import SCHEMA as PREDICTOR
from latency.predictor import LatencyPredictor
from latency.table import LatencyTable
from ofa.artefacts import MAX_JSON_BYTES, ArtefactError, read_bounded
from ofa.space import SearchSpace

LatencyModel = LatencyTable | LatencyPredictor
Loader = Callable[[Path, SearchSpace], LatencyModel]
LOADERS: dict[str, Loader] = {by_size.SCHEMA: by_size.TableBySize.load, PREDICTOR: LatencyPredictor.load}


def open_latency(path: Path, space: SearchSpace) -> LatencyModel:
    """Read a device's cost model.

    Raises:
        ArtefactError: if the file is missing, damaged, or of another space.
    """
    load = LOADERS.get(_schema(path), LatencyTable.load)  # which says what is wrong with any other file
    model = load(path, space)
    if model.device != path.stem:
        raise ArtefactError(f"{path}: is the table of {model.device!r}; name the file after it, or it after the file")
    return model


def _schema(path: Path) -> str:
    try:
        value = json.loads(read_bounded(path, what="a latency table", limit=MAX_JSON_BYTES))
    except (ValueError, RecursionError, MemoryError):
        return ""
    return str(value.get("schema")) if isinstance(value, dict) else ""
