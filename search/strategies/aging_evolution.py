"""Aging (regularised) evolution: the best of a small sample is mutated, and the oldest dies, however good it is."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from ofa.errors import OfaError
from ofa.space import Population, SearchSpace
from search.moves import change_one
from search.pareto import constrained_fronts, require_single
from search.proposals import Proposals
from search.strategies import Repair


class AgingEvolution:
    """Ask/tell aging evolution for one objective.

    With batch=1 it is the published rule, but that an architecture judged before is not proposed again. A larger batch are
    children of the same population, which then die in the order in which they were told.

    Args:
        population_size: architectures alive; None = the batch, but at least 10. The first ones are drawn at random, so it has to
            be a small part of the budget, as a batch is: of 100 evaluations the published 100 would leave none.
        sample_size: architectures that compete to become a parent, drawn with replacement; None = half of the population, but
            at most 25.
    Source: Real et al. 2019 (arXiv 1802.01548), algorithm 1. Its experiments have P = 100 and S = 25; for the smaller populations
        here, half of them compete: within 100 evaluations that leads further than a quarter.
    """

    multi_objective: ClassVar[bool] = False

    def __init__(
        self,
        space: SearchSpace,
        rng: np.random.Generator,
        *,
        batch: int = 200,
        start: Population | None = None,
        repair: Repair | None = None,
        population_size: int | None = None,
        sample_size: int | None = None,
    ) -> None:
        population_size = max(10, batch) if population_size is None else population_size
        sample_size = min(25, max(2, population_size // 2)) if sample_size is None else sample_size
        if population_size < 1 or sample_size < 1:
            raise OfaError(f"population_size {population_size}, sample_size {sample_size}: expected at least 1 each")
        self.population_size, self.sample_size = population_size, sample_size
        self.space, self.rng, self._batch = space, rng, batch
        self._proposals = Proposals(space, rng, start=start, repair=repair)
        self.population: Population = space.encode([])  # oldest first
        self._objectives: NDArray[np.float64] = np.empty((0, 1))
        self._violation: NDArray[np.float64] = np.empty(0)

    def ask(self) -> Population:
        """Return children of tournament winners; random architectures until the population is complete."""
        if len(self.population) < self.population_size:
            return self._proposals.take(self._batch, self._proposals.draw_uniform)
        ranks = constrained_fronts(self._objectives, self._violation)
        return self._proposals.take(self._batch, lambda n: change_one(self.space, self._winners(n, ranks), self.rng))

    def tell(self, population: Population, objectives: NDArray[np.float64], violation: NDArray[np.float64]) -> None:
        """Let the judged ones live and the oldest die."""
        require_single("aging_evolution", objectives)
        canonical = self.space.canonical(population)
        self._proposals.note(canonical)
        self.population = np.concatenate([self.population, canonical])[-self.population_size :]
        self._objectives = np.concatenate([self._objectives, objectives])[-self.population_size :]
        self._violation = np.concatenate([self._violation, violation])[-self.population_size :]
        self._proposals.lenders = self.population[self._violation == 0]

    def _winners(self, n: int, ranks: NDArray[np.int64]) -> Population:
        sampled = self.rng.integers(len(ranks), size=(n, self.sample_size))
        return self.population[np.take_along_axis(sampled, ranks[sampled].argmin(1)[:, None], 1)[:, 0]]


STRATEGY = AgingEvolution
