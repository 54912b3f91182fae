"""Limits on a population: how far it misses them, how much of the space fits, and what is the nearest that would."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from deploy.limits import Limit, format_value, parse_limit
from latency.cost import CostModel
from ofa.errors import OfaError
from ofa.run_dir import Run
from ofa.space import Population, SearchSpace
from search.cheapest import exclude_each_other
from search.optimise import Found, exhaust, optimise
from search.prices import SAMPLES, cost_model, extremes_of_sum, is_sum, margin_of, most, upper
from search.strategies.evolution import Evolution
from search.tabular import TabularCost

EVALUATIONS = 8_000  # of a search for what meets the limits; smaller spaces are looked through
ENOUGH = 20  # random networks that meet the limits, so that no others need to be looked for
UNKNOWN = 1e300  # ranks behind every price


class InfeasibleError(OfaError):
    """No architecture of the space meets the limits."""

    exit_code = 3


@dataclass(frozen=True, slots=True)
class Range:
    """Values of one cost over the space, and the share of uniform draws that a limit allows; of a table, over its networks."""

    limit: Limit
    minimum: float
    median: float
    maximum: float
    share: float

    def __str__(self) -> str:
        values = (format_value(self.limit.quantity, v) for v in (self.minimum, self.median, self.maximum))
        return f"{self.limit}: min {next(values)}, median {next(values)}, max {next(values)}; {self.share:.1%} of the space fits"


@dataclass(frozen=True)
class Constraints:
    """Limits with the cost models that judge them.

    Latency is judged by the table's upper bound (prediction plus margin), so that what is found also measures below its limit.
    """

    space: SearchSpace
    limits: tuple[Limit, ...]
    costs: Mapping[str, CostModel]  # by Limit.key; none for a limit on top1

    @classmethod
    def for_run(cls, run: Run, texts: Sequence[str], known: Mapping[str, CostModel] | None = None) -> Constraints:
        """Read limits and the tables they need; "macs <= 60%" is a share of what the largest network costs.

        Args:
            known: further cost models by Limit.key, such as those of a table of accuracies.
        Raises:
            OfaError: for a limit that cannot be read, a device without a table, or two limits on one quantity.
        """
        costs: dict[str, CostModel] = {}

        def largest(limit: Limit) -> float:
            model = costs.setdefault(limit.key, cost_model(run, limit, known))
            return most(model, run.space)

        limits = tuple(parse_limit(text, largest=largest) for text in texts)
        for limit in limits:
            if limit.quantity != "top1" and limit.key not in costs:
                costs[limit.key] = cost_model(run, limit, known)
        return cls.of(run.space, limits, costs)

    @classmethod
    def of(cls, space: SearchSpace, limits: Sequence[Limit], costs: Mapping[str, CostModel]) -> Constraints:
        """Make constraints of limits that were read.

        Raises:
            OfaError: for two limits on one quantity, since one of them would say nothing.
        """
        keys = [limit.key for limit in limits]
        twice = next((limit for limit in limits if keys.count(limit.key) > 1), None)
        if twice is not None:
            given = "; ".join(str(limit) for limit in limits if limit.key == twice.key)
            raise OfaError(f"limits {given}: {twice.key} is limited {keys.count(twice.key)} times, expected once")
        return cls(space, tuple(limits), costs)

    @property
    def cost_limits(self) -> tuple[Limit, ...]:
        return tuple(limit for limit in self.limits if limit.quantity != "top1")

    @property
    def least_top1(self) -> float:
        """Accuracy that is asked for; 0 = none."""
        return next((limit.bound for limit in self.limits if limit.quantity == "top1"), 0.0)

    def violation(self, population: Population) -> NDArray[np.float64]:
        """Return the sum over cost limits of the relative excess, (n,); 0 = all are met, infinite where a cost is unknown."""
        total = np.zeros(len(population))
        for limit in self.cost_limits:
            total += np.maximum(0, self.values(limit, population) / limit.bound - 1)
        return total

    def shortfall(self, top1: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return by how much accuracies miss the limit on top1, as a share of it, (n,); 0 = met."""
        if not self.least_top1:
            return np.zeros(len(top1))
        return np.maximum(0, 1 - np.nan_to_num(top1, nan=0.0) / self.least_top1)

    def values(self, limit: Limit, population: Population) -> NDArray[np.float64]:
        """Return the values that a limit is held against, (n,); infinite where they are unknown."""
        return upper(self.costs[limit.key], population)

    @cached_property
    def ranges(self) -> tuple[Range, ...]:
        """How each cost limit lies in the space."""
        uniform = self._uniform
        ends = self.space.encode([self.space.smallest, self.space.largest])
        found = []
        for limit in self.cost_limits:
            model = self.costs[limit.key]
            drawn = model.rows.population if isinstance(model, TabularCost) else uniform
            values = self.values(limit, drawn)
            extremes = self.values(limit, np.concatenate([ends, self._extremes(limit)]))
            share = float(np.mean([limit.allows(v) for v in values])) if len(values) else 0.0
            everything = np.concatenate([values, extremes])
            known = everything[np.isfinite(everything)]
            if not len(known):
                model.predict(drawn[:1])  # says which block is not priced
                raise OfaError(f"{limit}: nothing in {self.space.name} is priced by its table")
            median = float(np.median(values[np.isfinite(values)])) if np.isfinite(values).any() else float(known.min())
            found.append(Range(limit, float(known.min()), median, float(known.max()), share))
        return tuple(found)

    def joint_share(self) -> float:
        """Share of uniform draws, or of all networks that can be listed, that meet all cost limits."""
        drawn = self._uniform if self._listed is None else self._listed
        return float((self.violation(drawn) == 0).mean())

    @cached_property
    def _listed(self) -> Population | None:
        """All networks that may meet the limits, where they can be listed: those of a table of costs, or of a small space."""
        tables = [model.rows for model in self.costs.values() if isinstance(model, TabularCost) and len(model.rows)]
        if tables:
            return min(tables, key=len).population
        return self.space.everything() if self.space.size() <= EVALUATIONS else None

    def require_feasible(self) -> Population:
        """Return some architectures that meet all cost limits.

        Raises:
            InfeasibleError: naming the nearest feasible value of a limit that nothing meets, or, where each can be met but not
                all together, what the nearest architecture needs.
        """
        if not self.cost_limits:
            return self.space.sample(np.random.default_rng(0), 200)
        for found in self.ranges:
            if found.minimum > found.limit.bound:
                # rounded up, so that the value printed can be used as it stands
                nearest = format_value(found.limit.quantity, found.minimum * 1.005)
                raise InfeasibleError(
                    f"nothing in {self.space.name} meets {found.limit}; nearest feasible value: {found.limit.key} <= {nearest}"
                )
        drawn = self.space.distinct(self._uniform)
        fitting = drawn[self.violation(drawn) == 0]
        if len(fitting) >= ENOUGH:
            return fitting[:200]
        nearest_ones = self._evolve(self.violation)
        if nearest_ones.objectives[0, 0] > 0:
            nearest_arch = nearest_ones.population[:1]
            needs = ", ".join(
                f"{limit.key} <= {format_value(limit.quantity, float(self.values(limit, nearest_arch)[0]) * 1.005)}"
                for limit in self.cost_limits
            )
            nothing = "nothing" if self._listed is not None or self._proven_to_clash() else "nothing that was found"
            raise InfeasibleError(
                f"{nothing} in {self.space.name} meets all of {'; '.join(map(str, self.cost_limits))}; nearest feasible: {needs}"
            )
        return nearest_ones.population[nearest_ones.objectives[:, 0] == 0]

    @cached_property
    def _uniform(self) -> Population:
        return self.space.sample(np.random.default_rng(0), SAMPLES)

    def _extremes(self, limit: Limit) -> Population:
        """Return the cheapest network and the most expensive one: exactly for a sum over blocks, else the cheapest as evolved."""
        ends = extremes_of_sum(self.costs[limit.key], self.space)
        if ends is not None:
            return ends
        return self._evolve(lambda population: self.values(limit, population)).population[:1]

    def _proven_to_clash(self) -> bool:
        """Tell whether it is proven that no network meets all limits."""
        priced = [(self.costs[limit.key], limit.bound / margin_of(self.costs[limit.key])) for limit in self.cost_limits]
        sums = [(model, bound) for model, bound in priced if is_sum(model) and bound > model.offset]
        return len(sums) > 1 and exclude_each_other(self.space, sums)

    def _evolve(self, minimised: Callable[[Population], NDArray[np.float64]]) -> Found:
        """Return the architectures with the smallest values, the smallest first."""

        def judge(population: Population) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
            values = minimised(population)
            return np.nan_to_num(values, posinf=UNKNOWN)[:, None], np.zeros(len(population))

        if self._listed is not None:
            return exhaust(self.space, judge, most=200, population=self._listed)
        start = self.space.encode([self.space.smallest, self.space.largest])
        strategy = Evolution(self.space, np.random.default_rng(0), batch=200, start=start, islands=1)
        return optimise(self.space, judge, strategy, evaluations=EVALUATIONS, most=200)
