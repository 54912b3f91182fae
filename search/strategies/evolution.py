"""Evolution with truncation selection on islands: the best quarter become parents, half of the children mutate, half are crossed.

A large batch is split into islands that breed by themselves. An island that finds nothing better for a while starts anew, from
random architectures or from a mixture of what earlier islands ended with: the landscape of a predictor under a limit has many
local optima, and one large population ends in one of them. Children that miss a limit are repaired with the choices of a parent;
without a repair they rank behind all that meet it, by how far they miss, so that no loop waits for a draw that may never come.
Source: Cai et al. 2020 (arXiv 1908.09791), section 3.3, and MIT's evolution finder; ranking by violation: Deb 2000.
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from ofa.space import Population, SearchSpace
from search.strategies import Repair

ISLAND = 128  # architectures of an island
PARENT_RATIO, MUTATION_RATIO = 0.25, 0.5
ELITE = 32  # architectures that an island leaves behind
MIXED = 4  # islands whose elites make a new one


class Evolution:
    """Ask/tell evolution; `population`, `objective` and `violation` hold the living, island by island, each best first."""

    multi_objective: ClassVar[bool] = False

    def __init__(
        self,
        space: SearchSpace,
        rng: np.random.Generator,
        *,
        batch: int = 200,
        start: Population | None = None,
        repair: Repair | None = None,
        islands: int | None = None,  # None = one for every ISLAND architectures of a batch
        patience: int = 20,  # batches without anything better before an island starts anew; a single island never does
        mutation_probability: float | None = None,  # of each choice; None = two choices of an architecture, at least 5 %
    ) -> None:
        self.space, self.rng, self.repair, self.patience = space, rng, repair, patience
        self.islands = islands or max(1, batch // ISLAND)
        self.size = max(2, batch // self.islands)
        self.mutation_probability = mutation_probability or max(0.05, 2 / len(space.dimensions))
        self.population: Population = np.empty((0, len(space.dimensions)), dtype=np.int16)
        self.objective: NDArray[np.float64] = np.empty(0)
        self.violation: NDArray[np.float64] = np.empty(0)
        self._island: NDArray[np.int64] = np.empty(0, dtype=np.int64)
        self._best = np.full((self.islands, 2), np.inf)  # violation and objective of each island's best
        self._age = np.zeros(self.islands, dtype=np.int64)  # batches since it got better
        self._elites: list[Population] = []
        self._asked: tuple[NDArray[np.uint64], NDArray[np.int64]] = (np.empty(0, np.uint64), np.empty(0, np.int64))
        self._start = start

    def ask(self) -> Population:
        """Return children of every island, and newcomers for those without inhabitants."""
        count = np.bincount(self._island, minlength=self.islands)
        settled = np.flatnonzero(count > 1)
        groups = [self._newcomers(int(i)) for i in np.flatnonzero(count <= 1)]
        if self._start is not None and len(self._start):
            groups.append((self._start, np.arange(len(self._start)) % self.islands))
            self._start = None
        if len(settled):
            groups.append(self._children(settled, count))
        rows = np.concatenate([rows for rows, _ in groups])
        island = np.concatenate([island for _, island in groups])
        keys, first = np.unique(self.space.keys(rows), return_index=True)
        self._asked = keys, island[first]
        return rows[np.sort(first)]

    def tell(self, population: Population, objectives: NDArray[np.float64], violation: NDArray[np.float64]) -> None:
        """Keep the best of every island; what nobody asked for is spread over them."""
        island = self._home_of(population)
        everyone = np.concatenate([self.population, population])
        objective = np.concatenate([self.objective, objectives[:, 0]])
        violation = np.concatenate([self.violation, violation])
        island = np.concatenate([self._island, island])
        keys = self.space.keys(everyone)
        order = np.lexsort((keys, island))
        twin = np.zeros(len(order), dtype=bool)
        twin[1:] = (keys[order][1:] == keys[order][:-1]) & (island[order][1:] == island[order][:-1])
        kept = order[~twin]
        kept = kept[np.lexsort((objective[kept], violation[kept], island[kept]))]
        rank = np.arange(len(kept)) - np.searchsorted(island[kept], island[kept])
        kept = kept[rank < self.size]
        self.population, self.objective = everyone[kept], objective[kept]
        self.violation, self._island = violation[kept], island[kept]
        self._leave_exhausted_islands()

    def _home_of(self, population: Population) -> NDArray[np.int64]:
        keys, homes = self._asked
        own = self.space.keys(population)
        if not len(keys):
            return np.arange(len(population)) % self.islands
        at = np.searchsorted(keys, own).clip(max=len(keys) - 1)
        return np.where(keys[at] == own, homes[at], np.arange(len(population)) % self.islands)

    def _newcomers(self, island: int) -> tuple[Population, NDArray[np.int64]]:
        if len(self._elites) >= MIXED and self.rng.random() < 0.5:
            chosen = self.rng.choice(len(self._elites), size=MIXED, replace=False)
            rows = np.concatenate([self._elites[i] for i in chosen])
        else:
            rows = self.space.sample(self.rng, 2 * self.size)
            rows = self.repair(rows) if self.repair else rows
        return rows, np.full(len(rows), island)

    def _children(self, settled: NDArray[np.int64], count: NDArray[np.int64]) -> tuple[Population, NDArray[np.int64]]:
        begins = np.searchsorted(self._island, settled)
        parents = np.maximum(2, np.round(PARENT_RATIO * count[settled]).astype(np.int64))
        home = np.repeat(np.arange(len(settled)), self.size)

        def parent() -> NDArray[np.int64]:
            return begins[home] + self.rng.integers(parents[home])

        mothers, fathers = self.population[parent()], self.population[parent()]
        mutants = np.tile(np.arange(self.size) < round(MUTATION_RATIO * self.size), len(settled))
        children = np.empty_like(mothers)
        children[mutants] = self.space.mutate(mothers[mutants], self.rng, self.mutation_probability)
        children[~mutants] = self.space.crossover(mothers[~mutants], fathers[~mutants], self.rng)
        if self.repair:
            lenders = parent()
            if (self.violation[lenders] == 0).all():
                children = self.repair(children, self.population[lenders])
            else:
                children = self.repair(children)
        return children, settled[home]

    def _leave_exhausted_islands(self) -> None:
        if self.islands == 1:
            return
        first = np.searchsorted(self._island, np.arange(self.islands))
        lived = np.flatnonzero(np.bincount(self._island, minlength=self.islands))
        for i in lived:
            best = np.array([self.violation[first[i]], self.objective[first[i]]])
            better = tuple(best) < tuple(self._best[i])
            self._age[i] = 0 if better else self._age[i] + 1
            if better:
                self._best[i] = best
        left = np.flatnonzero(self._age > self.patience)
        for i in left:
            mine = np.flatnonzero(self._island == i)
            self._elites.append(self.population[mine[:ELITE]])
        stays = ~np.isin(self._island, left)
        self.population, self.objective = self.population[stays], self.objective[stays]
        self.violation, self._island = self.violation[stays], self._island[stays]
        self._best[left], self._age[left] = np.inf, 0


STRATEGY = Evolution
