"""NSGA-II: a population that spreads along the Pareto front under the limits."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from ofa.errors import OfaError
from ofa.space import Population, SearchSpace
from search.moves import change_some, cross
from search.pareto import constrained_fronts, crowding
from search.proposals import Proposals
from search.strategies import Repair


class NSGA2:
    """Ask/tell NSGA-II for any number of objectives; `population` holds the survivors, the best first.

    Choices are categories, so crossover is uniform and mutation draws another option. Children are always new, so that no
    evaluation is spent twice; a child that equals a parent says nothing about the front.

    Args:
        population_size: parents that survive; children are as many as the batch. None = twice the batch, between 20 and 100:
            a search of a few hundred measured networks needs generations more than it needs parents.
        crossover: share of children with two parents; the others are mutated only.
    Source: Deb et al. 2002 (IEEE TEVC 6(2)), with the constrained domination of its section VI; mutation rate one choice with an
        effect on average, as there.
    """

    multi_objective: ClassVar[bool] = True

    def __init__(
        self,
        space: SearchSpace,
        rng: np.random.Generator,
        *,
        batch: int = 200,
        start: Population | None = None,
        repair: Repair | None = None,
        population_size: int | None = None,
        crossover: float = 0.9,
    ) -> None:
        population_size = min(max(2 * batch, 20), 100) if population_size is None else population_size
        if population_size < 2 or not 0 <= crossover <= 1:
            raise OfaError(
                f"population_size {population_size}, crossover {crossover}: expected at least 2, and a share between 0 and 1"
            )
        self.space, self.rng, self._batch = space, rng, batch
        self.population_size, self._crossover = population_size, crossover
        self._proposals = Proposals(space, rng, start=start, repair=repair)
        self.population: Population = space.encode([])
        self.objectives: NDArray[np.float64] = np.empty((0, 0))
        self.violation: NDArray[np.float64] = np.empty(0)

    def ask(self) -> Population:
        """Return children of the survivors; random architectures until there are enough of them."""
        if len(self.population) < self.population_size:
            return self._proposals.take(self._batch, self._proposals.draw_uniform)
        return self._proposals.take(self._batch, self._children)

    def tell(self, population: Population, objectives: NDArray[np.float64], violation: NDArray[np.float64]) -> None:
        """Keep the best of parents and judged ones: by front, and within the last front those with most room around them."""
        canonical = self.space.canonical(population)
        self._proposals.note(canonical)
        everyone = np.concatenate([canonical, self.population])  # the latest judgement of an architecture counts
        first = np.unique(self.space.keys(everyone), return_index=True)[1]
        everyone = everyone[first]
        objectives = np.concatenate([objectives, self.objectives.reshape(-1, objectives.shape[1])])[first]
        violation = np.concatenate([violation, self.violation])[first]
        ranks = constrained_fronts(objectives, violation)
        room = crowding(np.nan_to_num(objectives), ranks)
        best = np.lexsort((-room, ranks))[: self.population_size]
        self.population, self.objectives, self.violation = everyone[best], objectives[best], violation[best]
        self._proposals.lenders = self.population[self.violation == 0]

    def _children(self, n: int) -> Population:
        first, second = (self.population[self._winners(n)] for _ in range(2))
        single = self.rng.random((n, 1)) >= self._crossover
        crossed = cross(self.space, first, np.where(single, first, second), self.rng)
        return change_some(self.space, crossed, self.rng)

    def _winners(self, n: int) -> NDArray[np.int64]:
        """Binary tournaments; the population stands in order of rank and crowding, so the smaller index wins."""
        return self.rng.integers(len(self.population), size=(n, 2)).min(1)


STRATEGY = NSGA2
