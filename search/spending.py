"""What a limit is spent on: a network's cost stage by stage, drawn beside others on one scale.

Only costs that are sums over blocks can be taken apart: latency and energy of a table, MACs, parameters, file size. A latency
that is predicted of whole networks, and memory, which is a maximum, cannot.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from latency.cost import AdditiveCost
from latency.energy_cost import EnergyCost
from latency.table import LatencyTable
from ofa.errors import OfaError
from ofa.space import ArchConfig, SearchSpace, Value

OVERHEAD = "overhead"  # what a network costs besides its blocks


@dataclass(frozen=True, slots=True)
class Spending:
    """Where one network's cost goes, in the cost's own unit."""

    name: str
    parts: Mapping[str, float]  # stage -> its share of the total, in execution order; the overhead last. May be below zero
    margin: float = 0.0  # added to the total before it is held against a limit
    limit: float | None = None

    @property
    def total(self) -> float:
        return sum(self.parts.values())


def stages(space: SearchSpace) -> dict[str, str]:
    """Return slot name -> stage: "stem", the elastic stages by the name that their slots begin with, and "head".

    Where a space has no elastic stages, slots are grouped by what their names begin with; so are fixed ones between two stages.
    """
    elastic = [i for i, slot in enumerate(space.slots) if slot.stage]
    found = {}
    for i, slot in enumerate(space.slots):
        own = slot.name.partition("_")[0]
        found[slot.name] = own if not elastic or elastic[0] <= i <= elastic[-1] else "stem" if i < elastic[0] else "head"
    return found


def spend(name: str, model: AdditiveCost | EnergyCost | LatencyTable, arch: ArchConfig, limit: float | None = None) -> Spending:
    """Take a network's cost apart.

    Args:
        name: of the network.
        model: the cost.
        arch: the network.
        limit: what the cost, with its margin, is held against.
    Raises:
        OfaError: if a table does not hold one of the network's blocks, or its prediction is not above zero.
    """
    total = model(arch)
    if total <= 0:  # a calibration that was fitted to other networks can say so
        raise OfaError(f"{name} is predicted to cost {total:.3g}")
    values = _block_costs(model, arch)
    margin = 0.0
    if isinstance(model, LatencyTable | EnergyCost):
        margin = float(model.upper(model.space.encode([arch]))[0]) - total
    parts: dict[str, float] = {}
    for block, stage in stages(model.space).items():
        if block in values:
            parts[stage] = parts.get(stage, 0.0) + values[block]
    rest = total - sum(parts.values())
    if abs(rest) > 1e-9 * abs(total):
        parts[OVERHEAD] = rest
    return Spending(name, parts, margin, limit)


def _block_costs(model: AdditiveCost | EnergyCost | LatencyTable, arch: ArchConfig) -> dict[str, float]:
    """Return block name -> its part of the cost."""
    if isinstance(model, EnergyCost):
        assert model.table.energy is not None  # or else there were no EnergyCost
        return {block.name: float(model.table.energy["watts"]) * block.latency_ms for block in model.table.explain(arch)}
    if isinstance(model, LatencyTable):
        return {block.name: block.latency_ms for block in model.explain(arch)}
    ids = model.space.block_ids(model.space.encode([arch]))[0]
    return {slot.name: float(model.block_values[i]) for slot, i in zip(model.space.slots, ids, strict=True) if i >= 0}


def stage_choices(space: SearchSpace, arch: ArchConfig) -> dict[str, dict[str, tuple[Value, ...]]]:
    """Return stage -> kind of choice -> the values chosen there, in order; choices without effect are left out.

    Choices outside the elastic stages count to the stem if they stand before all of these, else to the head.
    """
    elastic = set(stages(space).values()) - {"stem", "head"}
    active = space.active(space.encode([arch]))[0]
    found: dict[str, dict[str, tuple[Value, ...]]] = {}
    stage = "stem"
    for dimension, value, counts in zip(space.dimensions, arch.values, active, strict=True):
        first, _, _ = dimension.name.partition(".")
        if first in elastic:
            stage = first
        elif stage != "stem":
            stage = "head"
        if counts:
            kinds = found.setdefault(stage, {})
            kind = dimension.name.rpartition(".")[2].replace("_", " ")
            kinds[kind] = (*kinds.get(kind, ()), value)
    return found
