"""Latency tables: a measured time for every block of a space, fitted to whole networks, with a statement of its own error.

The keys are blocks as numbers (BlockSpec), so a table serves every space that is built of them. A block that was timed at other
input sizes only is interpolated in area between the nearest two; beyond them, and for any other block, there is an error.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from latency.calibration import Calibration, FitError, block_design
from latency.cost import additive
from latency.table_file import SCHEMA, TableFile, read_table_file
from ofa.artefacts import ArtefactError, write_json
from ofa.block_spec import BlockSpec
from ofa.errors import OfaError
from ofa.space import ArchConfig, Population, SearchSpace

Pairs = tuple[tuple[float, float], ...]


class MissingBlockError(OfaError):
    """A table has no entry for a block, and none to interpolate it from."""


@dataclass(frozen=True, slots=True)
class BlockCost:
    """A block's part of a network's latency."""

    name: str
    spec: BlockSpec
    latency_ms: float
    interpolated: bool


@dataclass(frozen=True)
class LatencyTable:
    """Latency of one device in milliseconds per batch; a cost model."""

    space: SearchSpace
    device: str
    entries: Mapping[BlockSpec, float]  # milliseconds of a block run alone
    calibration: Calibration = field(default_factory=Calibration)
    margin: float | None = None  # nine networks in ten measure within prediction * (1 +- margin)
    error: FitError | None = None  # of this table, on networks that it was not fitted to
    macs_error: FitError | None = None  # of a line fitted to MACs alone on the same networks
    validation: Pairs = ()  # (predicted, measured) ms of the networks that `error` is about
    failed: Mapping[BlockSpec, str] = field(default_factory=dict)  # blocks that the device could not run, and why
    energy: Mapping[str, Any] | None = None  # a line from ms to mJ (latency.energy_cost), where the machine has a meter
    provenance: Mapping[str, Any] = field(default_factory=dict)  # where it comes from; "device", "runtime", "host" if measured
    quantity: ClassVar[str] = "latency"

    def __call__(self, arch: ArchConfig) -> float:
        """Predict one architecture's latency in milliseconds."""
        return float(self.predict(self.space.encode([arch]))[0])

    def predict(self, population: Population) -> NDArray[np.float64]:
        """Predict the latency of every architecture in milliseconds, (n,).

        Raises:
            MissingBlockError: naming a block that is not in the table, and those nearest to it.
        """
        found = self.price(population)
        if np.isnan(found).any():
            self._explain_missing(population[np.isnan(found)][:1])
        return found

    def price(self, population: Population) -> NDArray[np.float64]:
        """Predict like `predict`, with NaN for architectures that hold an unknown block, (n,) ms."""
        return additive(self.space, self.block_values, population) + self.offset

    def interval(self, population: Population) -> NDArray[np.float64]:
        """Return between which values nine architectures in ten measure, (n, 2) ms.

        Raises:
            OfaError: if the table's origin says nothing about its error.
        """
        if self.margin is None:
            why = self.provenance.get("no_error") or "it was imported"
            raise OfaError(f"table of {self.device} states no error, so its predictions have no interval; {why}")
        return self.predict(population)[:, None] * [max(0.0, 1 - self.margin), 1 + self.margin]

    def upper(self, population: Population) -> NDArray[np.float64]:
        """Return what 95 % of networks measure at most, (n,) ms: infinity for an architecture that holds an unknown block.

        Where the table states no error, imported or of one network, it is the prediction itself.
        """
        found = self.price(population)
        return np.where(np.isnan(found), np.inf, found * (1 + (self.margin or 0.0)))

    def explain(self, arch: ArchConfig) -> list[BlockCost]:
        """Return where the time goes, block by block; with `offset` they add up to the prediction."""
        self(arch)  # raises if a block is missing
        ids = {spec: i for i, spec in enumerate(self.space.all_blocks)}
        blocks = self.space.blocks(arch).items()
        return [BlockCost(name, s, float(self.block_values[ids[s]]), s not in self.entries) for name, s in blocks]

    @property
    def offset(self) -> float:
        """Milliseconds that every network costs besides its blocks."""
        return self.calibration.offset_ms

    @cached_property
    def block_values(self) -> NDArray[np.float64]:
        """Milliseconds that each of the space's blocks adds to a network, NaN where unknown; one more entry, 0, for no block."""
        alone = [self.time_alone(spec) for spec in self.space.all_blocks]
        design = block_design(self.space.all_blocks, [np.nan if ms is None else ms for ms in alone])
        return np.append(self.calibration.predict(design) - self.calibration.offset_ms, 0.0)

    @property
    def is_of_one(self) -> bool:
        """Whether a single network was measured: it fixes one factor, and says nothing about the error on others."""
        return self.provenance.get("no_error") is not None

    def time_alone(self, spec: BlockSpec) -> float | None:
        """Return the milliseconds of a block run alone, interpolated in area if need be; None = unknown."""
        if spec in self.entries:
            return self.entries[spec]
        areas, times = self._families.get(replace(spec, resolution=0), ((), ()))
        if not areas or not areas[0] < spec.resolution**2 < areas[-1]:
            return None
        return float(np.interp(spec.resolution**2, areas, times))

    @cached_property
    def _families(self) -> dict[BlockSpec, tuple[tuple[int, ...], tuple[float, ...]]]:
        """Blocks that differ in resolution only: their areas, and times in the same order."""
        families: dict[BlockSpec, list[tuple[int, float]]] = {}
        for spec, ms in self.entries.items():
            families.setdefault(replace(spec, resolution=0), []).append((spec.resolution**2, ms))
        sorted_families = {family: sorted(points) for family, points in families.items()}
        return {f: (tuple(area for area, _ in points), tuple(ms for _, ms in points)) for f, points in sorted_families.items()}

    def is_interpolated(self, population: Population) -> NDArray[np.bool_]:
        """Whether some block of an architecture was not timed itself, (n,)."""
        not_timed = np.array([spec not in self.entries for spec in self.space.all_blocks] + [False])
        return np.asarray(not_timed[self.space.block_ids(population)].any(1))

    def _explain_missing(self, population: Population) -> None:
        blocks = self.space.blocks(self.space.decode(population)[0]).values()
        missing = next(spec for spec in blocks if self.time_alone(spec) is None)
        raise MissingBlockError(describe_missing(missing, self.entries, self.failed, self.device, remedy=self._remedy()))

    def _remedy(self) -> str:
        if self.is_of_one:
            return f"it is the table of one network, another needs its own: ofa profile RUN --device {self.device}"
        if "command" in self.provenance:
            return f"add what is missing: {self.provenance['command']}"
        return "it was imported and prices no other blocks; limit the space to those, or measure a device of your own"

    # -- the file ------------------------------------------------------------------------------------------------------

    def save(self, path: Path) -> None:
        """Write the table as JSON, readable without this code."""
        write_json(
            path,
            {
                "schema": SCHEMA,
                "space": self.space.name,
                "device": self.device,
                "calibration": asdict(self.calibration),
                "margin": self.margin,
                "error": asdict(self.error) if self.error else None,
                "macs_error": asdict(self.macs_error) if self.macs_error else None,
                "validation": [{"predicted_ms": p, "measured_ms": m} for p, m in self.validation],
                "energy": self.energy,
                "failed": [{"block": spec.to_dict(), "why": why} for spec, why in self.failed.items()],
                "provenance": dict(self.provenance),
                "entries": [{"block": spec.to_dict(), "ms": ms} for spec, ms in self.entries.items()],
            },
            sealed=True,
        )

    @classmethod
    def load(cls, path: Path, space: SearchSpace) -> LatencyTable:
        """Read a table.

        Raises:
            ArtefactError: if the file is missing, damaged, of another space, or holds a value that is no latency.
        """
        value = read_table_file(path)
        if value.space != space.name:
            raise ArtefactError(
                f"{path}: is a table of space {value.space!r}, expected {space.name!r}; measure this one: ofa profile"
            )
        return cls.of_file(value, space, path)

    @classmethod
    def of_file(cls, value: TableFile, space: SearchSpace, source: Path) -> LatencyTable:
        """Make a table for a space of what a file holds, whatever space that was measured on: blocks are blocks."""
        try:
            entries = {BlockSpec.from_dict(entry.block): entry.ms for entry in value.entries}
            failed = {BlockSpec.from_dict(entry.block): entry.why for entry in value.failed}
        except OfaError as error:
            raise ArtefactError(f"{source}: {error}") from None
        if len(entries) < len(value.entries):
            raise ArtefactError(f"{source}: holds a block twice; the table is damaged")
        return cls(
            space,
            value.device,
            entries,
            Calibration(**value.calibration.model_dump()),
            value.margin,
            FitError(**value.error.model_dump()) if value.error else None,
            FitError(**value.macs_error.model_dump()) if value.macs_error else None,
            tuple((pair.predicted_ms, pair.measured_ms) for pair in value.validation),
            failed,
            value.energy.model_dump() if value.energy else None,
            value.provenance.model_dump(exclude_unset=True),
        )


def describe_missing(
    missing: BlockSpec, entries: Collection[BlockSpec], failed: Mapping[BlockSpec, str], device: str, *, remedy: str
) -> str:
    """Say in one line which block a table lacks, which are nearest to it, and how to add it."""
    if missing in failed:
        return f"{device} could not run the block {missing} ({failed[missing]}); limit the space to what it runs"
    names = [f.name for f in fields(BlockSpec)]

    def distance(other: BlockSpec) -> tuple[int, float]:
        differ = [name for name in names if getattr(other, name) != getattr(missing, name)]
        return len(differ), sum(
            abs(getattr(other, n) - getattr(missing, n)) for n in differ if not isinstance(getattr(other, n), str)
        )

    same_kind = sorted((spec for spec in entries if spec.kind == missing.kind), key=distance)[:3]
    nearest = f"; nearest: {'; '.join(map(str, same_kind))}" if same_kind else ""
    return f"table of {device} has no entry for {missing}{nearest}; {remedy}"
