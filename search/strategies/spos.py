"""Evolution of Single Path One-Shot: generations of mutants and crossings of the ten best networks ever seen, and newcomers."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from ofa.errors import OfaError
from ofa.space import Population, SearchSpace
from search.pareto import require_single
from search.proposals import Proposals
from search.strategies import Repair

TRIES = 10  # draws for every child that is wanted, as in the release


class SinglePathEvolution:
    """Ask/tell evolution for one objective; nothing is proposed twice.

    The first generation is drawn at random. Of every later one, half are mutants of the best, half are children of two of them,
    each choice from either. A draw that misses a limit or was judged before is thrown away; where the draws do not suffice,
    random networks, repaired where they miss a limit, make up for them.

    Args:
        population: networks of a generation; None = the batch. Published: 50.
        generations: after which nothing more is asked for; None = it does not end. Published: 20.
        best: networks from which children come.
        mutation_probability: of every choice of a mutant, to be drawn anew.
    Source: Guo et al. 2020 (arXiv 1904.00420), section 3.4 and algorithm 1, with the numbers of the release.
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
        population: int | None = None,
        generations: int | None = None,
        best: int = 10,
        mutation_probability: float = 0.1,
    ) -> None:
        self.size = batch if population is None else population
        if self.size < 2 or best < 1 or (generations is not None and generations < 1):
            told = f"population {self.size}, generations {generations}, best {best}"
            raise OfaError(f"{told}: expected at least 2, 1 and 1")
        if not 0 < mutation_probability <= 1:
            raise OfaError(f"mutation_probability is {mutation_probability}, expected above 0, at most 1")
        self.space, self.rng, self.generations, self.num_best = space, rng, generations, best
        self.mutation_probability, self._repair = mutation_probability, repair
        self._proposals = Proposals(space, rng, start=start, repair=repair)
        self._seen = np.empty(0, dtype=np.uint64)  # keys of what was asked or told
        self._asked = 0  # generations
        self.best: Population = space.encode([])  # best first
        self._objectives: NDArray[np.float64] = np.empty(0)
        self._violation: NDArray[np.float64] = np.empty(0)

    def ask(self) -> Population:
        """Return the next generation; nothing after the last one."""
        if self.generations is not None and self._asked == self.generations:
            return self.space.encode([])
        self._asked += 1
        children = self.space.encode([])
        if len(self.best):
            half = self.size // 2
            mutants = self.space.mutate(self._parents(TRIES * half), self.rng, self.mutation_probability)
            children = self._legal(children, mutants, half)
            rest = TRIES * (self.size - half)
            crossed = self.space.crossover(self._parents(rest), self._parents(rest), self.rng)
            children = self._legal(children, crossed, self.size - half)
            self._note(children)
        newcomers = self._proposals.take(self.size - len(children), self._proposals.draw_uniform)
        self._note(newcomers)
        return np.concatenate([children, newcomers])

    def tell(self, population: Population, objectives: NDArray[np.float64], violation: NDArray[np.float64]) -> None:
        """Keep the best of all that was judged."""
        require_single("spos", objectives)
        self._note(self.space.canonical(population))
        everyone = np.concatenate([self.best, self.space.canonical(population)])
        objective = np.concatenate([self._objectives, objectives[:, 0]])
        violation = np.concatenate([self._violation, violation])
        order = np.lexsort((objective, violation))
        first = np.unique(self.space.keys(everyone[order]), return_index=True)[1]
        kept = order[np.sort(first)][: self.num_best]
        self.best, self._objectives, self._violation = everyone[kept], objective[kept], violation[kept]
        self._proposals.lenders = self.best[self._violation == 0]

    def _parents(self, n: int) -> Population:
        return self.best[self.rng.integers(len(self.best), size=n)]

    def _legal(self, found: Population, drawn: Population, most: int) -> Population:
        """Append the first of the drawn ones that are new and meet the limits on costs, so many at most."""
        if self._repair is not None:
            drawn = drawn[(self._repair(drawn) == drawn).all(1)]
        drawn = drawn[~np.isin(self.space.keys(drawn), self._seen)]
        return self.space.distinct(np.concatenate([found, drawn]))[: len(found) + most]

    def _note(self, population: Population) -> None:
        self._seen = np.union1d(self._seen, self.space.keys(population))
        self._proposals.note(population)


STRATEGY = SinglePathEvolution
