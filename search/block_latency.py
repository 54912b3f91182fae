"""Milliseconds block by block: what each block of a network takes on a device, as its latency table has it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from latency.open import LatencyModel
from latency.table import LatencyTable
from ofa.errors import OfaError
from ofa.space import ArchConfig


@dataclass(frozen=True)
class BlockLatency:
    """Where a network's predicted latency on a device goes."""

    device: str
    blocks_ms: Mapping[str, float]  # by block, in execution order; a calibration may bring one below zero
    interpolated: frozenset[str]  # blocks that were timed at other input sizes only
    rest_ms: float  # what every network takes besides its blocks
    scale: float = 1.0  # from ms to the unit that it is shown in
    unit: str = "ms"

    @property
    def total_ms(self) -> float:
        return sum(self.blocks_ms.values()) + self.rest_ms

    @property
    def has_negative(self) -> bool:
        return min(self.blocks_ms.values()) < 0

    def in_unit(self, longest_ms: float) -> BlockLatency:
        """Choose a unit in which blocks up to `longest_ms` have few digits."""
        return replace(self, scale=1e3, unit="µs") if longest_ms < 0.1 else self


def block_latency(arch: ArchConfig, tables: Iterable[LatencyModel]) -> tuple[list[BlockLatency], list[str]]:
    """Take a network's latency apart on every device that can be, and say in sentences which cannot, and why."""
    found, notes = [], []
    for table in tables:
        if not isinstance(table, LatencyTable):
            notes.append(f"Latency on {table.device} is predicted of whole networks, so it cannot be told block by block.")
            continue
        try:
            parts = table.explain(arch)
        except OfaError as error:
            notes.append(f"Latency block by block is not known: {error}.")
            continue
        own = {part.name: part.latency_ms for part in parts}
        guessed = frozenset(part.name for part in parts if part.interpolated)
        found.append(BlockLatency(table.device, own, guessed, table.offset))
    return found, notes
