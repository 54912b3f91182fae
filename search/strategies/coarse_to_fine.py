"""Coarse to fine: first networks that are alike throughout, then changes around the best of them, finer and finer."""

from __future__ import annotations

import re
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from ofa.errors import OfaError
from ofa.space import Population, SearchSpace
from search.moves import change, free_choices
from search.pareto import constrained_fronts, require_single
from search.proposals import Proposals
from search.strategies import Repair


class CoarseToFine:
    """Ask/tell coarse-to-fine selection for one objective; `population` holds the best so far, the best first.

    Coarse: in a network of the grid all choices of one sort (`sort_of`: kernel_size, depth, resolution, ...) take the same
    relative option. The grid is asked for in random order, spread over as many batches as it fills. A grid of more than
    `grid` networks is thinned evenly: the sort with the most levels loses one, its ends remain, until the grid is small enough.

    Fine: the best that meet the limits are changed. After every 4 * parents proposals fewer choices change, down to one, and
    numbers move less far, down to the next option.

    Args:
        grid: most networks of the coarse grid.
        parents: best networks that are changed.
        rate: share of choices that change at first.
        decay: of the rate and of the reach, for each step.
    Source: Yu et al. 2020 (arXiv 2003.11142, BigNAS), section 3.3. The paper's grid is chosen by hand for its space; the schedule
        is ours, since the paper gives none.
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
        grid: int = 400,
        parents: int = 10,
        rate: float = 0.3,
        decay: float = 0.7,
    ) -> None:
        if grid < 1 or parents < 1 or not 0 < rate <= 1 or not 0 < decay <= 1:
            raise OfaError(
                f"grid {grid}, parents {parents}, rate {rate}, decay {decay}: expected at least 1 twice, then shares above 0"
            )
        self.space, self.rng, self._batch = space, rng, batch
        self._parents, self._rate, self._decay = parents, rate, decay
        coarse = rng.permutation(coarse_grid(space, grid))
        self._proposals = Proposals(space, rng, start=coarse if start is None else np.concatenate([start, coarse]), repair=repair)
        self._fine = 0  # architectures proposed after the grid
        self._numeric = np.array([not any(isinstance(value, str) for value in d.options) for d in space.dimensions])
        self.population: Population = space.encode([])
        self._objectives: NDArray[np.float64] = np.empty((0, 1))
        self._violation: NDArray[np.float64] = np.empty(0)

    def ask(self) -> Population:
        """Return networks of the grid, and when it is used up, changes of the best."""
        return self._proposals.take(self._batch, self._changed if len(self.population) else self._proposals.draw_uniform)

    def tell(self, population: Population, objectives: NDArray[np.float64], violation: NDArray[np.float64]) -> None:
        """Keep the best."""
        require_single("coarse_to_fine", objectives)
        canonical = self.space.canonical(population)
        self._proposals.note(canonical)
        everyone = np.concatenate([canonical, self.population])  # the latest judgement of an architecture counts
        first = np.unique(self.space.keys(everyone), return_index=True)[1]
        everyone = everyone[first]
        objectives = np.concatenate([objectives, self._objectives])[first]
        violation = np.concatenate([violation, self._violation])[first]
        best = np.argsort(constrained_fronts(objectives, violation), kind="stable")[: self._parents]
        self.population, self._objectives, self._violation = everyone[best], objectives[best], violation[best]
        self._proposals.lenders = self.population[self._violation == 0]

    def _changed(self, n: int) -> Population:
        coarseness = self._decay ** (self._fine // (4 * self._parents))
        self._fine += n
        parents = self.population[self.rng.integers(len(self.population), size=n)]
        free = free_choices(self.space, parents)
        weight = np.where(free, self.rng.random(parents.shape), 2)
        # one at least, so that every proposal is a change
        chosen = free & ((weight < self._rate * coarseness) | (weight == weight.min(1, keepdims=True)))
        last = self.space.num_options - 1
        # one at least: after 80,000 proposals the coarseness is 0 to the last bit
        reach = np.where(self._numeric, np.maximum(np.ceil(last * coarseness), 1), last).astype(np.int64)
        return change(self.space, parents, chosen, self.rng, reach=reach)


def sort_of(name: str) -> str:
    """Return what sort of choice a dimension is: "stage3.block1.kernel_size" is a kernel_size, "edge4" an edge."""
    return re.sub(r"[\d_]+$", "", name.rpartition(".")[2]) or name


def coarse_grid(space: SearchSpace, limit: int) -> Population:
    """Return at most `limit` networks in which all choices of one sort take the same relative option, canonical.

    Levels of a sort are as many as the most options of its dimensions; one with fewer takes the nearest.
    """
    sorts = [sort_of(d.name) for d in space.dimensions]
    names = list(dict.fromkeys(sorts))
    options = space.num_options
    levels = np.array([max(n for n, s in zip(options, sorts, strict=True) if s == name) for name in names], dtype=np.int64)
    while np.prod(levels.astype(np.float64)) > limit:
        levels[levels.argmax()] -= 1
    mesh = np.meshgrid(*(np.linspace(0, 1, n) if n > 1 else np.array([0.5]) for n in levels), indexing="ij")
    shares = np.stack([axis.ravel() for axis in mesh], axis=1)  # (networks, sorts), each in [0, 1]
    rows = np.rint(shares[:, [names.index(s) for s in sorts]] * (options - 1)).astype(np.int16)
    return np.unique(space.canonical(rows), axis=0)


STRATEGY = CoarseToFine
