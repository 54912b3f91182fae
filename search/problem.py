"""A search problem: where to look, what must hold, what is wanted."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from latency.cost import CostModel
from ofa.space import Population, SearchSpace
from ofa.subspace import SubSpace
from search.constraints import Constraints
from search.objectives import Objective
from search.optimise import Judge, optimise
from search.prices import most, price
from search.repair import repairer
from search.rewards import REWARDS, mnasnet_reward
from search.strategies import Repair, Strategy, get_strategy

Accuracy = Callable[[Population], NDArray[np.float64]]  # (n, dimensions) -> (n,), NaN where unknown
SAMPLES = 6_000
SCARCE = 0.01  # share of usable draws below which they are too few to judge options by
TELLING = 10  # usable draws that an option should have by chance: without any, it is not usable (probability 5e-5)


@dataclass(frozen=True)
class Problem:
    """One target of a search. Populations are of `space`; strategies work on `field`, its usable part."""

    name: str  # of the target; "" = the only one
    constraints: Constraints
    objectives: tuple[Objective, ...]
    costs: Mapping[str, CostModel]  # by Objective.key, of objectives to be small
    field: SubSpace
    feasible: Population  # some architectures that meet the limits on costs, (m, dimensions) of `field`, m >= 1
    reward: str | None = None  # a key of search.rewards.REWARDS: limits are targets, and one number judges all

    @classmethod
    def of(
        cls,
        name: str,
        constraints: Constraints,
        objectives: tuple[Objective, ...],
        costs: Mapping[str, CostModel],
        *,
        accuracy: Accuracy | None = None,
        reward: str | None = None,
    ) -> Problem:
        """Find out where to look.

        Args:
            accuracy: if it is a table or predictor that does not know the whole space, options that it knows nothing of are
                left out, as are those that no cost model prices.
        Raises:
            InfeasibleError: if nothing meets the limits on costs.
        """
        space = constraints.space
        start = None if reward else constraints.require_feasible()

        def usable(population: Population) -> NDArray[np.bool_]:
            known = np.isfinite(constraints.violation(population))
            for model in costs.values():
                known &= np.isfinite(price(model, population))
            return known if accuracy is None else known & np.isfinite(accuracy(population))

        field = usable_part(space, usable)
        if start is None:
            return cls(name, constraints, objectives, costs, field, field.encode([field.smallest, field.largest]), reward)
        feasible = field.narrow(start)
        if not len(feasible):  # what meets the limits most easily is not usable
            feasible = _meeting(field, constraints)
        if not len(feasible):  # nor, as it seems, is anything that meets them
            field, feasible = SubSpace(space, {}), start
        return cls(name, constraints, objectives, costs, field, feasible, reward)

    @property
    def space(self) -> SearchSpace:
        return self.constraints.space

    def ceiling(self, key: str, model: CostModel) -> float:
        """Return what the most expensive network of the space costs, computed once a cost."""
        if key not in self._ceilings:
            self._ceilings[key] = most(model, self.space)
        return self._ceilings[key]

    @cached_property
    def _ceilings(self) -> dict[str, float]:
        return {}

    def values(self, population: Population, top1: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the objectives, all to be small, (n, m); of a reward there is one. NaN where something is unknown."""
        if self.reward:
            return -self._rewards(population, top1)[:, None]
        columns = [-top1 if o.maximize else price(self.costs[o.key], population) for o in self.objectives]
        return np.column_stack(columns)

    def violation(self, population: Population, top1: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return by how much the limits are missed, with that on accuracy, (n,); 0 = met. Of a reward nothing is missed.

        Infinite where the accuracy, or a cost that is limited or wanted small, is unknown.
        """
        return self._violation(population, top1, self.values(population, top1))

    def judge(self, accuracy: Accuracy) -> Judge:
        """Return what judges populations of `field` for a strategy."""

        def verdict(population: Population) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
            rows = self.field.widen(population)
            top1 = accuracy(rows)
            values = self.values(rows, top1)
            return np.where(np.isfinite(values), values, 0.0), self._violation(rows, top1, values)

        return verdict

    def strategy(self, name: str, rng: np.random.Generator, *, batch: int, start: Population | None = None) -> Strategy:
        """Start a strategy on `field`; `start` holds further architectures of it to begin with."""
        begin = self.feasible[:batch] if start is None else np.concatenate([start, self.feasible])[:batch]
        return get_strategy(name)(self.field, rng, batch=batch, start=begin, repair=self.repair(rng))

    def repair(self, rng: np.random.Generator) -> Repair | None:
        """Return what makes architectures of `field` meet the limits on costs; None where there are none to be met."""

        def violation(population: Population) -> NDArray[np.float64]:
            return self.constraints.violation(self.field.widen(population))

        if self.reward or not self.constraints.cost_limits:
            return None
        return repairer(self.field, violation, self.feasible, rng)

    def _violation(self, population: Population, top1: NDArray[np.float64], values: NDArray[np.float64]) -> NDArray[np.float64]:
        missed = 0.0 if self.reward else self.constraints.violation(population) + self.constraints.shortfall(top1)
        return np.where(np.isfinite(top1) & np.isfinite(values).all(1), missed, np.inf)

    def _rewards(self, population: Population, top1: NDArray[np.float64]) -> NDArray[np.float64]:
        assert self.reward is not None
        limits = self.constraints.cost_limits
        costs = np.column_stack([self.constraints.values(limit, population) for limit in limits])
        alpha, beta = REWARDS[self.reward]
        found = np.full(len(population), -np.inf)
        known = np.isfinite(costs).all(1)
        targets = np.array([limit.bound for limit in limits])
        found[known] = mnasnet_reward(top1[known], costs[known], targets, alpha=alpha, beta=beta)
        return found


def usable_part(space: SearchSpace, usable: Callable[[Population], NDArray[np.bool_]]) -> SubSpace:
    """Return the space without the options that no usable architecture has, as far as random draws can tell.

    Where few draws are usable, they say little about options, and architectures that resemble them are drawn instead.
    """
    rng = np.random.default_rng(1)
    drawn = space.sample(rng, SAMPLES)
    good = usable(drawn)
    for _ in range(3):
        if 0 < good.mean() < SCARCE:
            parents = drawn[good]
            chosen = parents[rng.integers(len(parents), size=SAMPLES)]
            drawn = np.concatenate([parents, space.mutate(chosen, rng, 2 / len(space.dimensions))])
            good = usable(drawn)
    active = space.active(drawn)
    options = {}
    for column, dimension in enumerate(space.dimensions):
        tried = np.bincount(drawn[active[:, column], column], minlength=len(dimension.options))
        fine = np.bincount(drawn[good & active[:, column], column], minlength=len(dimension.options))
        expected = tried * good.mean()
        kept = [v for v, n, m in zip(dimension.options, expected, fine, strict=True) if m or n < TELLING]
        options[dimension.name] = kept or list(dimension.options)
    return SubSpace(space, options if good.any() else {})


def _meeting(field: SubSpace, constraints: Constraints) -> Population:
    """Return architectures of `field` that meet the limits on costs, as many as a short search finds."""

    def judge(population: Population) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        return np.zeros((len(population), 1)), constraints.violation(field.widen(population))

    start = field.encode([field.smallest, field.largest])
    strategy = get_strategy("evolution")(field, np.random.default_rng(0), batch=200, start=start)
    found = optimise(field, judge, strategy, evaluations=8_000, most=200)
    return found.population[found.violation == 0]
