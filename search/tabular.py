"""Accuracy and costs of networks that somebody measured, from a table: one row a network, found by its choices.

As CSV: one column for each dimension of the space that has more than one option, `top1` (a share) or `top1_percent`, and if you
like what a network costs: `latency_ms@DEVICE`, `energy_mj@DEVICE`, `macs`, `params`. An empty cost is unknown. A choice without
effect, such as the kernel size of a block that the stage is too shallow for, may be anything, or empty.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from latency.formats.reading import option_index, read_text
from ofa.artefacts import ArtefactError
from ofa.errors import OfaError
from ofa.progress import say
from ofa.space import ArchConfig, Population, SearchSpace

DENSE_ROWS = 2**22  # up to which every row that a space can have has a place in an array, 32 MiB for a column
COSTS = {"latency_ms": "latency", "energy_mj": "energy", "macs": "macs", "params": "params"}  # column -> quantity
ACCURACY = {"top1": 1.0, "top1_percent": 0.01}


class TableRows:
    """Finds the rows of networks in a table; several columns share one."""

    def __init__(self, space: SearchSpace, population: Population) -> None:
        """Index the networks of a table.

        Args:
            population: (n, dimensions), distinct in canonical form.
        Raises:
            OfaError: if a network stands there twice.
        """
        self.space, self.population = space, space.canonical(population)
        keys = space.keys(self.population)
        order = np.argsort(keys, kind="stable")
        if (keys[order][1:] == keys[order][:-1]).any():
            raise OfaError(f"a table of {space.name} holds the same network twice, expected one row a network")
        self.dense = math.prod(space.num_options.tolist()) <= DENSE_ROWS  # then a key is the number that the choices write
        self._order, self._keys = order, keys[order]

    def __len__(self) -> int:
        return len(self.population)

    def find(self, population: Population) -> NDArray[np.int64]:
        """Return where networks stand, (n,); -1 = nowhere."""
        canonical = self.space.canonical(population)
        keys = self.space.keys(canonical)
        if self.dense:
            return self._places[keys.astype(np.int64)]
        if not len(self):
            return np.full(len(population), -1)
        rows = self._order[np.searchsorted(self._keys, keys).clip(max=len(self) - 1)]
        return np.where((self.population[rows] == canonical).all(1), rows, -1)  # a key may be another network's

    def spread(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return a column with NaN at its end, which is what index -1 finds."""
        return np.append(values.astype(np.float64), np.nan)

    @cached_property
    def _places(self) -> NDArray[np.int64]:
        places = np.full(math.prod(self.space.num_options.tolist()), -1)
        places[self._keys.astype(np.int64)] = self._order
        return places


class TabularAccuracy:
    """Top-1 from a table, NaN where it does not hold a network: cheap, so that a search asks it directly."""

    def __init__(self, rows: TableRows, top1: NDArray[np.float64], costs: Mapping[str, TabularCost] | None = None) -> None:
        """Hold a column of a table, (n,), and what else the table knows: costs by TabularCost.key."""
        self.rows, self.space, self._values = rows, rows.space, rows.spread(top1)
        self.costs = dict(costs or {})

    def __call__(self, archs: Sequence[ArchConfig]) -> NDArray[np.float64]:
        """Return top-1, (n,)."""
        return self.predict(self.space.encode(archs))

    def predict(self, population: Population) -> NDArray[np.float64]:
        """Return top-1, (n,)."""
        return self._values[self.rows.find(population)]


class TabularCost:
    """A cost from a table, NaN where it does not hold a network."""

    def __init__(self, quantity: str, rows: TableRows, values: NDArray[np.float64], *, device: str | None = None) -> None:
        """Hold a column of a table.

        Args:
            quantity: a key of deploy.limits.UNITS.
            values: (n,), in the units of a limit's bound.
            device: that was measured, for quantities that depend on one.
        """
        self.quantity, self.device, self.rows, self.space = quantity, device, rows, rows.space
        self._values = rows.spread(values)

    @property
    def key(self) -> str:
        """The name that limits and results have for it, e.g. "latency@pi4"."""
        return f"{self.quantity}@{self.device}" if self.device else self.quantity

    def __call__(self, arch: ArchConfig) -> float:
        return float(self.predict(self.space.encode([arch]))[0])

    def predict(self, population: Population) -> NDArray[np.float64]:
        """Return the cost of every architecture, (n,)."""
        return self._values[self.rows.find(population)]


def read_accuracy_csv(path: Path, space: SearchSpace) -> TabularAccuracy:
    """Read a table of networks.

    Raises:
        ArtefactError: naming the line and the column that is wrong.
    """
    header, lines, cells = _read_cells(path)
    columns = _columns(path, header, space)
    population = _population(path, lines, cells, columns, space)
    numbers = {name: _numbers(path, lines, name, [row[columns[name]] for row in cells]) for name in columns if _is_number(name)}
    keep = _one_a_network(path, lines, space.keys(population), numbers)
    rows = TableRows(space, population[keep])
    accuracy = next(numbers[name] * scale for name, scale in ACCURACY.items() if name in numbers)
    costs = {}
    for name, values in numbers.items():
        column, _, device = name.partition("@")
        if column in COSTS:
            cost = TabularCost(COSTS[column], rows, values[keep], device=device or None)
            costs[cost.key] = cost
    return TabularAccuracy(rows, accuracy[keep], costs)


def _read_cells(path: Path) -> tuple[list[str], NDArray[np.int64], list[list[str]]]:
    """Return the column names, the line number of every row, and the rows."""
    if not path.exists():
        raise ArtefactError(f"{path}: no such file, expected a table of networks and their accuracy")
    reader = csv.reader(io.StringIO(read_text(path)), strict=True)
    try:
        rows = [(reader.line_num, [cell.strip() for cell in row]) for row in reader if any(cell.strip() for cell in row)]
    except csv.Error as error:
        raise ArtefactError(f"{path}: line {reader.line_num}: not CSV ({error})") from None
    if not rows:
        raise ArtefactError(f"{path}: is empty, expected a line of column names and one for each network")
    (_, header), *rows = rows
    wrong = next(((number, row) for number, row in rows if len(row) != len(header)), None)
    if wrong:
        raise ArtefactError(f"{path}: line {wrong[0]} has {len(wrong[1])} cells, expected {len(header)} as the first line has")
    return header, np.array([number for number, _ in rows], dtype=np.int64), [row for _, row in rows]


def _is_number(name: str) -> bool:
    """Whether a column holds accuracies or costs."""
    column, at, device = name.partition("@")
    on_device = column in ("latency_ms", "energy_mj")
    return name in ACCURACY or (column in COSTS and bool(at) == on_device and bool(device) == on_device)


def _columns(path: Path, header: Sequence[str], space: SearchSpace) -> dict[str, int]:
    twice = next((name for name in header if header.count(name) > 1), None)
    if twice is not None:
        raise ArtefactError(f"{path}: column {twice!r} stands twice")
    missing = [d.name for d in space.dimensions if d.name not in header and len(d.options) > 1]
    if missing:
        raise ArtefactError(
            f"{path}: no column {missing[0]!r} ({len(missing)} missing), expected one for each dimension of {space.name}, with "
            f"commas between; it has: {', '.join(header)[:80]}"
        )
    if sum(name in ACCURACY for name in header) != 1:
        raise ArtefactError(f"{path}: expected one column {' or '.join(ACCURACY)}; it has: {', '.join(header)[:80]}")
    used = [name for name in header if name in space.column or _is_number(name)]
    ignored = [name for name in header if name not in used]
    if ignored:
        say(f"note: {path.name}: not used: {', '.join(ignored)[:200]}")
    return {name: header.index(name) for name in used}


def _population(
    path: Path, lines: NDArray[np.int64], cells: Sequence[Sequence[str]], columns: Mapping[str, int], space: SearchSpace
) -> Population:
    codes = np.empty((len(cells), len(space.dimensions)), dtype=np.int16)
    for c, dimension in enumerate(space.dimensions):
        if dimension.name not in columns:  # there is nothing to choose
            codes[:, c] = 0
            continue
        texts, index = np.unique([row[columns[dimension.name]] for row in cells] or [""], return_inverse=True)
        codes[:, c] = np.array([option_index(dimension, text) for text in texts.tolist()], dtype=np.int16)[index][: len(cells)]
    wrong = np.argwhere((codes < 0) & space.active(np.maximum(codes, 0)))
    if len(wrong):
        row, column = wrong[0].tolist()
        dimension = space.dimensions[column]
        cell = cells[row][columns[dimension.name]]
        legal = ", ".join(map(str, dimension.options))
        raise ArtefactError(f"{path}: line {lines[row]}, {dimension.name} = {cell[:40]!r}: expected one of: {legal}")
    return space.canonical(np.maximum(codes, 0))


def _numbers(path: Path, lines: NDArray[np.int64], name: str, cells: Sequence[str]) -> NDArray[np.float64]:
    """Read a column of accuracies or costs; an empty cost is NaN."""
    largest = 1 / ACCURACY[name] if name in ACCURACY else math.inf
    values = np.empty(len(cells))
    for i, cell in enumerate(cells):
        try:
            values[i] = math.nan if not cell and name not in ACCURACY else float(cell)
            fine = not cell or (0 <= values[i] <= largest if name in ACCURACY else 0 < values[i] < math.inf)
        except ValueError:
            fine = False
        if not fine:
            wanted = f"a number from 0 to {largest:g}" if name in ACCURACY else "a number above 0, or nothing"
            raise ArtefactError(f"{path}: line {lines[i]}, {name} = {cell[:40]!r}: expected {wanted}")
    return values


def _one_a_network(
    path: Path, lines: NDArray[np.int64], keys: NDArray[np.uint64], numbers: Mapping[str, NDArray[np.float64]]
) -> NDArray[np.int64]:
    """Return the first row of every network; rows that repeat one must say the same."""
    _, first, which = np.unique(keys, return_index=True, return_inverse=True)
    original = first[which.reshape(-1)]
    for name, values in numbers.items():
        differs = (values != values[original]) & ~(np.isnan(values) & np.isnan(values[original]))
        if differs.any():
            row = int(differs.argmax())
            raise ArtefactError(
                f"{path}: line {lines[row]}, {name} = {values[row]:g}: line {lines[original[row]]} says "
                f"{values[original[row]]:g} of the same network"
            )
    return np.sort(first)
