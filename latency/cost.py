"""What a network costs: one interface for multiply-adds, parameters, memory, file size, latency and energy.

A cost model turns a population into numbers by looking up one value a block. Most costs add these values up; memory takes the
largest. What blocks count is in ofa.counts and deploy.footprint.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import ClassVar, Protocol

import numpy as np
from numpy.typing import NDArray

from deploy.footprint import block_file_bytes, block_peak, frame_file_bytes
from deploy.limits import PRECISIONS
from ofa.counts import block_bitops, block_counts, block_macs, block_params
from ofa.space import ArchConfig, Population, SearchSpace

JOINT_ENTRIES = 8192  # of a table for several slots, which must stay in the nearest caches
CHUNK = 4096  # architectures priced at a time, for the same reason


class CostModel(Protocol):
    """Anything that prices architectures."""

    @property
    def quantity(self) -> str:
        """What is priced, a key of deploy.limits.UNITS; its units are those of a limit's bound."""
        ...

    @property
    def space(self) -> SearchSpace:
        """The space whose architectures are priced."""
        ...

    def __call__(self, arch: ArchConfig) -> float: ...

    def predict(self, population: Population) -> NDArray[np.float64]:
        """Return the cost of every architecture, (n,)."""
        ...


class AdditiveCost(CostModel, Protocol):
    """A cost that is a sum over blocks: offset + the sum of the blocks' values."""

    @property
    def block_values(self) -> NDArray[np.float64]:
        """Value of every block of the space, (blocks + 1,); the last is 0, since index -1 stands for no block."""
        ...

    @property
    def offset(self) -> float:
        """What every network costs besides its blocks."""
        ...


@dataclass(frozen=True)
class CountCost:
    """Multiply-adds of convolutions and linear layers or bit operations for one image, or parameters of the extracted network."""

    quantity: str  # "macs", "bitops" or "params"
    space: SearchSpace
    offset: ClassVar[float] = 0.0

    @property
    def block_values(self) -> NDArray[np.float64]:
        count = {"macs": block_macs, "bitops": block_bitops, "params": block_params}[self.quantity]
        return block_counts(self.space, count).astype(np.float64)

    def __call__(self, arch: ArchConfig) -> float:
        return float(self.predict(self.space.encode([arch]))[0])

    def predict(self, population: Population) -> NDArray[np.float64]:
        """Return the count of every architecture, (n,)."""
        return additive(self.space, self.block_values, population)


@dataclass(frozen=True)
class SizeCost:
    """Size of the exported model.onnx in bytes (deploy.footprint)."""

    space: SearchSpace
    precision: str = "fp32"  # a key of deploy.limits.PRECISIONS
    quantity: ClassVar[str] = "size"

    @property
    def block_values(self) -> NDArray[np.float64]:
        return block_counts(self.space, FILE_BYTES[self.precision]).astype(np.float64)

    @property
    def offset(self) -> float:
        return float(frame_file_bytes(self.space))

    def __call__(self, arch: ArchConfig) -> float:
        return float(self.predict(self.space.encode([arch]))[0])

    def predict(self, population: Population) -> NDArray[np.float64]:
        """Return the size of every architecture's file, (n,) bytes."""
        return additive(self.space, self.block_values, population) + self.offset


@dataclass(frozen=True)
class MemoryCost:
    """Largest memory for the activations of one image in bytes (deploy.footprint); a maximum over blocks, no sum.

    Of cells an upper bound: what waits to be read depends on the whole cell.
    """

    space: SearchSpace
    precision: str = "fp32"  # of activations, a key of deploy.limits.PRECISIONS
    quantity: ClassVar[str] = "memory"

    def __call__(self, arch: ArchConfig) -> float:
        return float(self.predict(self.space.encode([arch]))[0])

    def predict(self, population: Population) -> NDArray[np.float64]:
        """Return the peak of every architecture, (n,) bytes."""
        waiting = np.array([slot.waiting for slot in self.space.slots])
        ids = self.space.block_ids(population)
        peaks = np.where(ids < 0, 0, block_counts(self.space, block_peak)[ids] + waiting).max(1)
        return peaks * float(PRECISIONS[self.precision])


FILE_BYTES = {precision: partial(block_file_bytes, precision=precision) for precision in PRECISIONS}


def additive(space: SearchSpace, block_values: NDArray[np.float64], population: Population) -> NDArray[np.float64]:
    """Return the sum of their blocks' values for every architecture, (n,).

    Equal to block_values[space.block_ids(population)].sum(1) but some times faster: values are looked up directly, for several
    slots at a time, and the population is turned so that one choice of many architectures lies together.

    Args:
        block_values: as in AdditiveCost.
    """
    tables = joint_tables(space, block_values)
    totals = np.zeros(len(population))
    for start in range(0, len(population), CHUNK):
        choices = np.ascontiguousarray(population[start : start + CHUNK].T, np.int32)  # (dimensions, architectures)
        for columns, table in tables:
            index = np.zeros(choices.shape[1], np.int32)
            for column, options in zip(columns, table.shape, strict=True):
                index *= options
                index += choices[column]
            totals[start : start + CHUNK] += table.ravel().take(index)
    return totals


Tables = list[tuple[tuple[int, ...], NDArray[np.float64]]]


def joint_tables(space: SearchSpace, block_values: NDArray[np.float64]) -> Tables:
    """Return tables of values that add up to a network's, each with the columns of the population that index it.

    Slots share a table as long as it stays small; columns of one option index none, as arrays have 64 axes at most and a network
    alone may have more choices than that. Tables are kept for the next call.

    Args:
        block_values: as in AdditiveCost.
    """
    return _joint_tables(space, block_values.astype(np.float64).tobytes())


@lru_cache(maxsize=16)
def _joint_tables(space: SearchSpace, block_values: bytes) -> Tables:
    values, options = np.frombuffer(block_values), space.num_options.tolist()
    groups: list[list[tuple[tuple[int, ...], NDArray[np.int32]]]] = []
    for slot in space.slot_tables:
        fits = (group for group in groups if math.prod(options[c] for c in _columns([*group, slot])) <= JOINT_ENTRIES)
        group = next(fits, None)
        if group is None:
            groups.append([slot])
        else:
            group.append(slot)
    tables = []
    for group in groups:
        axes = [c for c in _columns(group) if options[c] > 1]
        grid = dict(zip(axes, np.ix_(*(range(options[c]) for c in axes)), strict=True))
        table = sum(values[ids[tuple(grid.get(c, 0) for c in columns)]] for columns, ids in group)
        tables.append((tuple(axes), np.array(table, order="C")))
    return tables


def _columns(slots: Iterable[tuple[tuple[int, ...], NDArray[np.int32]]]) -> list[int]:
    return sorted({column for columns, _ in slots for column in columns})
