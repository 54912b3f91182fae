"""What a controller is rewarded for: accuracy, or accuracy against limits on costs (the rewards of search.rewards).

Costs are those of a search: counted over blocks, or read from a latency table, whose upper bound is held against the limit.
Spaces whose slots depend on few choices are priced a population at a time, by tables over those choices; in others, such as a
macro space where a layer may read any of those before it, each architecture is priced by its own blocks, once.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from deploy.limits import ON_DEVICE, Limit, parse_limit
from latency.cost import CostModel, CountCost, MemoryCost, SizeCost
from latency.energy_cost import EnergyCost
from latency.freshness import require_usable
from latency.open import LatencyModel, open_latency
from latency.table import LatencyTable
from latency.table_file import SCHEMA, read_table_file
from ofa.artefacts import MAX_JSON_BYTES, parse_object, read_bounded, sha256_of
from ofa.errors import OfaError
from ofa.progress import say
from ofa.space import ArchConfig, SearchSpace
from search.constraints import Constraints
from search.prices import counted, most, upper
from search.rewards import REWARDS, mnasnet_reward

MOST_KNOWN = 4096  # architectures whose costs are kept


@dataclass(frozen=True, eq=False)
class Objective:
    """Turns accuracies into rewards. Without a reward it is the accuracy itself."""

    space: SearchSpace
    reward: str | None  # a key of search.rewards.REWARDS
    limits: tuple[Limit, ...]  # the targets of the reward
    fingerprint: str | None  # of all that rewards depend on besides accuracy; None where that is all
    _latency: LatencyModel | None = None
    _models: dict[str, CostModel] = field(default_factory=dict)  # by Limit.key, where the space is tabulated
    _known: dict[ArchConfig, list[float]] = field(default_factory=dict)  # costs of architectures that were priced one by one

    def __call__(self, archs: Sequence[ArchConfig], top1: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the rewards, (n,), to be large.

        Args:
            archs: n architectures of the space.
            top1: (n,) accuracies, or any other score above zero that is to be large.
        Raises:
            MissingBlockError: naming a block that the latency table does not hold.
        """
        if self.reward is None:
            return top1
        alpha, beta = REWARDS[self.reward]
        targets = np.array([limit.bound for limit in self.limits])
        return mnasnet_reward(top1, self.costs(archs), targets, alpha=alpha, beta=beta)

    def costs(self, archs: Sequence[ArchConfig]) -> NDArray[np.float64]:
        """Return what is held against each limit, (n, limits), in the units of their bounds.

        Raises:
            MissingBlockError: naming a block that the latency table does not hold.
        """
        if self._models or not self.limits:
            return np.column_stack([_bound(model, archs) for model in self._models.values()] or [np.empty((len(archs), 0))])
        return np.array([self._priced(arch) for arch in archs]).reshape(len(archs), len(self.limits))

    def _priced(self, arch: ArchConfig) -> list[float]:
        """Price one architecture by its own blocks, once; of too many the oldest is forgotten."""
        if arch not in self._known:
            alone = self.space.restrict(arch)
            costs = [float(_bound(_cost_model(alone, limit, self._latency), [arch])[0]) for limit in self.limits]
            if len(self._known) >= MOST_KNOWN:
                del self._known[next(iter(self._known))]
            self._known[arch] = costs
        return self._known[arch]


def open_objective(
    space: SearchSpace, reward: str | None, where: Sequence[str], table: Path | None, *, price_now: bool = True
) -> Objective:
    """Open what a controller of a space is rewarded for.

    The smallest network is priced at once, so that what has no price is refused before anything is trained. Of spaces of many
    blocks that takes seconds, which rewards then do not take.

    Args:
        space: of the architectures that are priced, with the cells, channels and classes of the network that is to be paid for.
        reward: a key of search.rewards.REWARDS, or None for the accuracy itself.
        where: limits, the targets of the reward, e.g. "latency@pi4 <= 12ms" or "macs <= 300M"; with a table a latency need not
            name the device. In tabulated spaces also shares of what the largest network costs: "macs <= 60%".
        table: a latency table. It prices blocks, whatever space it was measured on.
        price_now: False = check the arguments alone, where the classes, and so the classifier, are not known yet.
    Raises:
        OfaError: for a reward without limits or limits without a reward, a limit on what is no cost or has no table, an unknown
            reward, a file that is no table, or a block of the smallest network that the table does not hold.
    """
    if reward is not None and reward not in REWARDS:
        raise OfaError(f"unknown reward {reward!r}; known: {', '.join(REWARDS)}")
    if reward is None and (where or table):
        given = f"limit {where[0]!r}" if where else f"table {table}"
        raise OfaError(f"{given}: is weighed against accuracy by a reward, and none is given; known: {', '.join(REWARDS)}")
    if reward is None:
        return Objective(space, None, (), None)
    if not where:
        raise OfaError(f"reward {reward!r}: needs limits on costs as its targets, e.g. --where 'macs <= 300M'")
    latency = open_table(table, space) if table else None
    tabulated = bool(space.slots) and space.is_tabulated

    def largest(limit: Limit) -> float:
        return most(_cost_model(space, limit, latency), space)

    limits = tuple(
        parse_limit(text, largest=largest if tabulated else None, device=latency.device if latency else None) for text in where
    )
    Constraints.of(space, limits, {})  # refuses two limits on one quantity
    if any(limit.quantity == "top1" for limit in limits):
        raise OfaError(f"reward {reward!r}: needs limits on costs as its targets, and none on accuracy")
    if latency and not any(limit.quantity in ON_DEVICE for limit in limits):
        raise OfaError(f"table {table}: no limit reads it; give one such as --where 'latency@{latency.device} <= 10ms'")
    priced = space if tabulated else space.restrict(space.smallest)  # which says that a space without blocks has no costs
    models = {limit.key: _cost_model(priced, limit, latency) for limit in limits}
    facts = [space.name, space.num_classes, reward, [str(limit) for limit in limits], sha256_of(table) if table else None]
    fingerprint = hashlib.sha256(repr(facts).encode()).hexdigest()
    objective = Objective(space, reward, limits, fingerprint, latency, models if tabulated else {})
    if price_now:
        say(f"pricing {space.name}: {', '.join(models)}")
        objective.costs([space.smallest])
    return objective


def _cost_model(space: SearchSpace, limit: Limit, latency: LatencyModel | None) -> CostModel:
    """Return what prices a limit's quantity.

    Raises:
        OfaError: for a device that the table is not of, or bits that no block has.
    """
    if limit.quantity == "bitops" and "bitops" not in counted(space):
        raise OfaError(f"limit {str(limit)!r}: no block of {space.name} has bits of its own; leave the limit out")
    if limit.quantity in ("macs", "params", "bitops"):
        return CountCost(limit.quantity, space)
    if limit.quantity == "memory":
        return MemoryCost(space, limit.precision or "fp32")
    if limit.quantity == "size":
        return SizeCost(space, limit.precision or "fp32")
    if latency is None or latency.device != limit.device:
        given = f"the table given is of {latency.device!r}" if latency else "no table is given"
        raise OfaError(f"limit {str(limit)!r}: no latency table of device {limit.device!r}; {given}; measure one: ofa profile")
    if space is not latency.space and not isinstance(latency, LatencyTable):
        raise OfaError(
            f"limit {str(limit)!r}: the predictor of {latency.device} takes no networks of {space.name}; measure blocks"
        )
    model = replace(latency, space=space) if isinstance(latency, LatencyTable) else latency
    if limit.quantity == "latency":
        return model
    if isinstance(model, LatencyTable):
        return EnergyCost(model)
    raise OfaError(
        f"limit {str(limit)!r}: the predictor of {latency.device} was fitted to latencies; limit latency@{limit.device}"
    )


def _bound(model: CostModel, archs: Sequence[ArchConfig]) -> NDArray[np.float64]:
    """Return what a limit is held against, (n,)."""
    rows = model.space.canonical(model.space.encode(archs))
    values = upper(model, rows)
    unknown = ~np.isfinite(values)
    if unknown.any():
        model.predict(rows[unknown][:1])  # says which block is missing
    return values


def open_table(path: Path, space: SearchSpace) -> LatencyModel:
    """Read what prices a device for a space; a table of blocks whatever space it was measured in.

    Raises:
        OfaError: if the file is missing, damaged, or was measured under other settings than the device has now.
    """
    what = "a latency table"
    if parse_object(read_bounded(path, what=what, limit=MAX_JSON_BYTES), path, what=what).get("schema") != SCHEMA:
        return open_latency(path, space)  # a predictor, timings by input size, or what is wrong with any other file
    table = LatencyTable.of_file(read_table_file(path), space, path)
    require_usable(table, path)
    return table
