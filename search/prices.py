"""What networks cost in a search: which model prices a limit, its upper bound, and the extremes of a space."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeGuard

import numpy as np
from numpy.typing import NDArray

from deploy.limits import Limit
from latency.cost import AdditiveCost, CostModel, CountCost, MemoryCost, SizeCost
from latency.energy_cost import EnergyCost
from latency.formats.by_size import TableBySize
from latency.freshness import require_usable
from latency.open import open_latency
from latency.predictor import LatencyPredictor
from latency.table import LatencyTable
from ofa.errors import OfaError
from ofa.run_dir import Run
from ofa.space import Population, SearchSpace
from search.cheapest import cheapest, cost_tables

SAMPLES = 20_000


def extremes_of_sum(model: CostModel, space: SearchSpace) -> Population | None:
    """Return the cheapest network and the most expensive one, (2, dimensions), exactly; None if it is no sum over blocks."""
    if not is_sum(model):
        return None
    tables = cost_tables(space, model)
    # of blocks without a price a network is neither the cheapest nor the most expensive one
    turned = [(columns, np.where(np.isinf(table), np.inf, -table)) for columns, table in tables]
    ends = [cheapest(space, some) for some in (tables, turned)]
    return np.concatenate([row for _, row in filter(None, ends)]) if all(ends) else None


def most(model: CostModel, space: SearchSpace) -> float:
    """Return what the most expensive network costs: exactly for sums and small spaces, else the most that draws have found."""
    rows = extremes_of_sum(model, space)
    if rows is None:
        if space.size() <= SAMPLES:
            rows = space.everything()
        else:
            rows = np.concatenate([space.encode([space.largest]), space.sample(np.random.default_rng(0), SAMPLES)])
    values = upper(model, rows)
    return float(values[np.isfinite(values)].max(initial=0.0)) or np.inf


def is_sum(model: CostModel) -> TypeGuard[AdditiveCost]:
    """Tell whether a cost is a sum over blocks, with what every network costs besides."""
    return isinstance(model, CountCost | SizeCost) or (isinstance(model, LatencyTable) and not isinstance(model, TableBySize))


def margin_of(model: CostModel) -> float:
    """Return by which factor limits are held tighter than a cost is predicted."""
    return 1 + (model.margin or 0.0) if isinstance(model, LatencyTable) else 1.0


def price(model: CostModel, population: Population) -> NDArray[np.float64]:
    """Price architectures, NaN where a table does not hold all of their blocks, (n,)."""
    return model.price(population) if isinstance(model, LatencyTable | EnergyCost) else model.predict(population)


def upper(model: CostModel, population: Population) -> NDArray[np.float64]:
    """Return what a limit is held against: the upper bound of a measured cost, (n,); infinite where it is unknown."""
    if isinstance(model, LatencyTable | LatencyPredictor | EnergyCost):
        return model.upper(population)
    return np.nan_to_num(model.predict(population), nan=np.inf, posinf=np.inf)


def counted(space: SearchSpace) -> tuple[str, ...]:
    """Return the quantities that are counted block by block in a space."""
    if not space.slots:
        return ()
    return ("macs", "params", "bitops") if any(spec.weight_bits for spec in space.all_blocks) else ("macs", "params")


def cost_model(run: Run, limit: Limit, known: Mapping[str, CostModel] | None = None, *, asked: str = "") -> CostModel:
    """Return what prices a limit's quantity in a run.

    Args:
        known: further cost models by Limit.key.
        asked: what the user wrote, for errors; "" = the limit.
    Raises:
        OfaError: for a device that the run has no usable table of.
    """
    asked = asked or f"limit {str(limit)!r}"
    if known and limit.key in known:
        return known[limit.key]
    if not run.space.slots and limit.quantity in ("macs", "params", "bitops", "memory", "size"):
        raise OfaError(
            f"{asked}: {run.space.name} is known by its choices alone, its {limit.quantity} cannot be counted; "
            "give a table of accuracies that has a column of them"
        )
    if limit.quantity == "bitops" and "bitops" not in counted(run.space):
        raise OfaError(f"{asked}: no block of {run.space.name} has bits of its own; leave the limit out")
    if limit.quantity in ("macs", "params", "bitops"):
        return CountCost(limit.quantity, run.space)
    if limit.quantity == "memory":
        return MemoryCost(run.space, limit.precision or "fp32")
    if limit.quantity == "size":
        return SizeCost(run.space, limit.precision or "fp32")
    path = run.latency_path(str(limit.device))
    if not path.exists():
        on_devices = [key.partition("@")[2] for key in known or {} if key.startswith(f"{limit.quantity}@")]
        have = sorted({*(p.stem for p in path.parent.glob("*.json")), *on_devices})
        tables = f"tables of this run: {', '.join(have)}" if have else "this run has no table yet"
        raise OfaError(
            f"{asked}: no latency table of device {limit.device!r}; {tables}; "
            f"measure it: ofa profile {run.path} --device {limit.device}"
        )
    model = open_latency(path, run.space)
    if isinstance(model, LatencyTable):
        require_usable(model, path)
        return EnergyCost(model) if limit.quantity == "energy" else model
    if limit.quantity == "energy":
        raise OfaError(f"{asked}: {path} was fitted to latencies and holds no energy; limit latency@{limit.device}")
    return model
