"""Open whatever prices a device: each file of a run's latency/ names its schema."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from latency.formats import by_size
from latency.predictor import SCHEMA as PREDICTOR
from latency.predictor import LatencyPredictor
from latency.table import LatencyTable
from ofa.artefacts import MAX_JSON_BYTES
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
    return load(path, space)


def _schema(path: Path) -> str:
    try:
        value = json.loads(path.read_bytes()) if path.stat().st_size <= MAX_JSON_BYTES else None
    except (OSError, ValueError, RecursionError):
        return ""
    return str(value.get("schema")) if isinstance(value, dict) else ""
