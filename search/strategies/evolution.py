"""Evolution with truncation selection: the best quarter become parents, half of the children mutate, half are crossed.

Infeasible architectures are not thrown away and redrawn: they rank behind every feasible one, by how far they miss the limits,
so that the population moves towards a narrow feasible region, and no loop waits for a draw that may never come.
Source: Cai et al. 2020 (arXiv 1908.09791), section 3.3 and MIT's evolution finder; ranking by violation: Deb 2000.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ofa.space import Population, SearchSpace


@dataclass(frozen=True, slots=True, kw_only=True)
class EvolutionConfig:
    """Sizes and rates of an evolution."""

    population_size: int = 200
    generations: int = 60
    parent_ratio: float = 0.25
    mutation_ratio: float = 0.5
    mutation_probability: float = 0.1


class Evolution:
    """Ask/tell evolution; `population`, `score` and `violation` hold the current one, best first."""

    def __init__(
        self, space: SearchSpace, rng: np.random.Generator, config: EvolutionConfig, start: Population | None = None
    ) -> None:
        self.space, self.rng, self.config = space, rng, config
        drawn = space.sample(rng, config.population_size)
        self._next = drawn if start is None else np.concatenate([start, drawn])
        self.population: Population = self._next[:0]
        self.score: NDArray[np.float64] = np.empty(0)
        self.violation: NDArray[np.float64] = np.empty(0)

    def ask(self) -> Population:
        """Return the architectures to judge next."""
        return self._next

    def tell(self, population: Population, score: NDArray[np.float64], violation: NDArray[np.float64]) -> None:
        """Keep the best of all seen and breed the next generation from them."""
        everyone = np.concatenate([self.population, population])
        everyone, first = np.unique(everyone, axis=0, return_index=True)
        score, violation = np.concatenate([self.score, score])[first], np.concatenate([self.violation, violation])[first]
        best = np.lexsort((-score, violation))[: self.config.population_size]
        self.population, self.score, self.violation = everyone[best], score[best], violation[best]
        self._next = self._children()

    def _children(self) -> Population:
        config, rng = self.config, self.rng
        parents = self.population[: max(2, round(config.parent_ratio * len(self.population)))]
        mutants = round(config.mutation_ratio * config.population_size)
        crossed = config.population_size - mutants
        mutated = self.space.mutate(parents[rng.integers(len(parents), size=mutants)], rng, config.mutation_probability)
        mothers, fathers = (parents[rng.integers(len(parents), size=crossed)] for _ in range(2))
        return np.concatenate([mutated, self.space.crossover(mothers, fathers, rng)])
