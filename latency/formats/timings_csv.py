"""Timings of whole networks as CSV: `latency_ms`, and either one column for each dimension of the space, or `arch`.

`arch` holds the JSON of an architecture, {"resolution": 224, "stage1.depth": 2, ...} or all of an arch.json. In a column of its
own a choice without effect, such as the kernel size of a block that the stage is too shallow for, may be anything, or empty. A
network that stands there several times counts once, with the mean of its times.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from latency.formats.reading import milliseconds, option_index, read_text
from latency.predictor import LatencyPredictor, fit_latency
from ofa.artefacts import ArtefactError
from ofa.errors import OfaError
from ofa.progress import say
from ofa.space import InvalidArchError, Population, SearchSpace

LATENCY, ARCH = "latency_ms", "arch"


def import_timings_csv(path: Path, space: SearchSpace, device: str) -> LatencyPredictor:
    """Return a predictor fitted to timed networks.

    Raises:
        ArtefactError: naming the row and the column that is wrong; OfaError for too few networks.
    """
    population, measured = read_timings_csv(path, space)
    try:
        model = fit_latency(space, device, population, measured, provenance={"source": path.name, "format": "csv"})
    except OfaError as error:
        raise ArtefactError(f"{path}: {error}") from None
    say(f"{path.name}: {len(measured)} networks; of several kinds of model, {model.kind} predicts held-out ones best")
    return model


def read_timings_csv(path: Path, space: SearchSpace) -> tuple[Population, NDArray[np.float64]]:
    """Return the distinct networks of a file, (n, dimensions) canonical, and their milliseconds, (n,).

    Raises:
        ArtefactError: naming the row and the column that is wrong.
    """
    reader = csv.reader(io.StringIO(read_text(path)), strict=True)
    try:
        rows = [(reader.line_num, [cell.strip() for cell in row]) for row in reader if any(cell.strip() for cell in row)]
    except csv.Error as error:
        raise ArtefactError(f"{path}: row {reader.line_num}: not CSV ({error})") from None
    if not rows:
        raise ArtefactError(f"{path}: is empty, expected a line of column names and one for each timed network")
    (_, header), *rows = rows
    columns = _columns(header, space, path)
    numbers = [number for number, _ in rows]
    for number, row in rows:
        if len(row) != len(header):
            raise ArtefactError(f"{path}: row {number} has {len(row)} cells, expected {len(header)} as the first row has")
    times = np.array([_time(row[columns[LATENCY]], f"{path}: row {number}, {LATENCY}") for number, row in rows])
    if ARCH in columns:
        archs = [_from_json(row[columns[ARCH]], space, f"{path}: row {number}, {ARCH}") for number, row in rows]
        population = np.concatenate([space.encode([]), *archs])
    else:
        cells = [[row[columns[dimension.name]] for dimension in space.dimensions] for _, row in rows]
        population = _from_cells(cells, numbers, space, path)
    networks, which, counts = np.unique(space.canonical(population), axis=0, return_inverse=True, return_counts=True)
    if len(networks) < len(times):
        say(f"note: {path.name} holds {len(times)} timings of {len(networks)} networks; those of one are averaged")
    return networks, np.bincount(which.reshape(-1), times) / counts


def _columns(header: Sequence[str], space: SearchSpace, path: Path) -> dict[str, int]:
    twice = next((name for name in header if header.count(name) > 1), None)
    if twice is not None:
        raise ArtefactError(f"{path}: column {twice!r} stands twice")
    wanted = [LATENCY, ARCH] if ARCH in header else [LATENCY, *(dimension.name for dimension in space.dimensions)]
    missing = [name for name in wanted if name not in header]
    if missing:
        raise ArtefactError(
            f"{path}: no column {missing[0]!r} ({len(missing)} missing); expected {LATENCY} and either {ARCH} or one column "
            f"for each dimension of {space.name}, with commas between; it has: {', '.join(header)[:80]}"
        )
    ignored = [name for name in header if name not in wanted]
    if ignored:
        say(f"note: {path.name}: not used: {', '.join(ignored)[:200]}")
    return {name: header.index(name) for name in wanted}


def _time(cell: str, where: str) -> float:
    try:
        return milliseconds(float(cell), where)
    except ValueError as error:
        if isinstance(error, ArtefactError):
            raise
        raise ArtefactError(f"{where} = {cell[:40]!r}: expected milliseconds, above 0") from None


def _from_json(cell: str, space: SearchSpace, where: str) -> Population:
    try:
        value = json.loads(cell)
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise ArtefactError(f"{where} = {cell[:40]!r}: expected a JSON object, dimension: value")
    try:
        return space.encode([space.from_json(value) if "schema" in value else space.from_values(value)])
    except InvalidArchError as error:
        raise ArtefactError(f"{where}: {error}") from None


def _from_cells(cells: Sequence[Sequence[str]], numbers: Sequence[int], space: SearchSpace, path: Path) -> Population:
    codes = [[option_index(dimension, cell) for dimension, cell in zip(space.dimensions, row, strict=True)] for row in cells]
    population = np.array(codes, dtype=np.int16).reshape(len(cells), len(space.dimensions))
    wrong = np.argwhere((population < 0) & space.active(np.maximum(population, 0)))
    if len(wrong):
        row, column = wrong[0].tolist()
        dimension = space.dimensions[column]
        legal = ", ".join(map(str, dimension.options))
        raise ArtefactError(
            f"{path}: row {numbers[row]}, {dimension.name} = {cells[row][column][:40]!r}: expected one of: {legal}"
        )
    return np.maximum(population, 0)
