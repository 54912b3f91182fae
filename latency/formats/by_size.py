"""A latency table whose origin timed every block anew for each input size of the network.

A block at the end of a network has the same physical size at several input sizes (7 px at 208 and at 224), so it comes with
several times, some per mille apart. A table of physical blocks would have to choose; this one keeps them all.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from latency.table import BlockCost, LatencyTable
from latency.table_file import DeviceName, Entry, validated
from ofa.artefacts import ArtefactError, read_json, write_json
from ofa.block_spec import BlockSpec
from ofa.errors import OfaError
from ofa.space import ArchConfig, Population, SearchSpace

SCHEMA = "ofa.latency_by_size/1"
Entries = Mapping[BlockSpec, float]


@dataclass(frozen=True)
class TableBySize(LatencyTable):
    """Latency in milliseconds: at an input size with times of its own their sum, elsewhere the table of all blocks' means."""

    sizes: Mapping[int, Entries] = field(default_factory=dict)  # input pixels -> milliseconds of each block timed there

    @classmethod
    def of_sizes(
        cls, space: SearchSpace, device: str, sizes: Mapping[int, Entries], provenance: Mapping[str, Any]
    ) -> LatencyTable:
        """Return a plain table if no block has two times, else one by size."""
        times: dict[BlockSpec, list[float]] = {}
        for entries in sizes.values():
            for spec, ms in entries.items():
                times.setdefault(spec, []).append(ms)
        means = {spec: sum(found) / len(found) for spec, found in times.items()}
        if all(len(set(found)) == 1 for found in times.values()):
            return LatencyTable(space, device, means, provenance=provenance)
        return cls(space, device, means, provenance=provenance, sizes=sizes)

    def price(self, population: Population) -> NDArray[np.float64]:
        """Predict every architecture with the times of its own input size, NaN where a block is unknown, (n,) ms."""
        column = self.space.column["resolution"]
        sides = np.array(self.space.dimensions[column].options)[population[:, column]]
        found = np.empty(len(population))
        others = ~np.isin(sides, list(self.tables))
        found[others] = super().price(population[others])
        for side, table in self.tables.items():
            found[sides == side] = table.price(population[sides == side])
        return found

    def explain(self, arch: ArchConfig) -> list[BlockCost]:
        """Return where the time goes, block by block."""
        table = self.tables.get(self.space.resolution(arch))
        return super().explain(arch) if table is None else table.explain(arch)

    @cached_property
    def tables(self) -> dict[int, LatencyTable]:
        """The table of each size that has times of its own."""
        return {side: LatencyTable(self.space, self.device, {**self.entries, **own}) for side, own in self.sizes.items()}

    def save(self, path: Path) -> None:
        """Write the times of each size as JSON, readable without this code."""
        sizes = [
            {"resolution": side, "entries": [{"block": spec.to_dict(), "ms": ms} for spec, ms in entries.items()]}
            for side, entries in self.sizes.items()
        ]
        origin = {"space": self.space.name, "device": self.device, "provenance": dict(self.provenance)}
        write_json(path, {"schema": SCHEMA, **origin, "sizes": sizes}, sealed=True)

    @classmethod
    def load(cls, path: Path, space: SearchSpace) -> LatencyTable:
        """Read what `save` wrote.

        Raises:
            ArtefactError: if the file is missing, damaged, of another space, or holds a value that is no latency.
        """
        value = validated(_File, read_json(path, schema=SCHEMA), path)
        if value.space != space.name:
            raise ArtefactError(
                f"{path}: is a table of space {value.space!r}, expected {space.name!r}; import one for this space"
            )
        try:
            sizes = {
                size.resolution: {BlockSpec.from_dict(entry.block): entry.ms for entry in size.entries} for size in value.sizes
            }
        except OfaError as error:
            raise ArtefactError(f"{path}: {error}") from None
        if sum(map(len, sizes.values())) < sum(len(size.entries) for size in value.sizes):
            raise ArtefactError(f"{path}: holds a size or a block of it twice; the table is damaged")
        return cls.of_sizes(space, value.device, sizes, value.provenance)


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class _Size(_Part):
    resolution: Annotated[int, Field(ge=1)]
    entries: list[Entry] = Field(min_length=1)


class _File(_Part):
    schema_: Literal["ofa.latency_by_size/1"] = Field(alias="schema")
    space: str
    device: DeviceName
    sizes: list[_Size] = Field(min_length=1)
    provenance: dict[str, Any] = {}
