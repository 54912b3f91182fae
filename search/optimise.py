"""Search where judging is cheap: a strategy, and objectives that price a whole population at a time."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ofa.space import Population, SearchSpace
from search.pareto import non_dominated
from search.strategies import Strategy

Judge = Callable[[Population], tuple[NDArray[np.float64], NDArray[np.float64]]]  # -> objectives (n, m), violation (n,)
CHUNK = 8192  # networks judged at a time
MOST_ASKED = 3  # times as many as evaluations, with repetitions: then a strategy has converged


@dataclass(frozen=True)
class Found:
    """The best of what was judged: with one objective the best first, with more the front alone."""

    population: Population  # (n, dimensions), distinct
    objectives: NDArray[np.float64]  # (n, m), all to be small
    violation: NDArray[np.float64]  # (n,)
    evaluations: int  # distinct architectures that were judged for it

    def joined(self, other: Found) -> Found:
        """Return both, without order; `other` is the later one."""
        return Found(
            np.concatenate([self.population, other.population]),
            np.concatenate([self.objectives, other.objectives]),
            np.concatenate([self.violation, other.violation]),
            other.evaluations,
        )

    def best(self, space: SearchSpace, most: int) -> Found:
        """Return at most so many distinct ones: those that meet the limits before others, then by their objectives.

        Of a front that is longer, some are chosen that are spread over it.
        """
        kept = np.unique(space.keys(self.population), return_index=True)[1]
        if self.objectives.shape[1] > 1:
            kept = kept[self.violation[kept] == self.violation[kept].min()]
            kept = kept[non_dominated(self.objectives[kept])]
            kept = kept[_spread(self.objectives[kept], most)]
        kept = kept[np.lexsort((self.objectives[kept, 0], self.violation[kept]))][:most]
        return Found(self.population[kept], self.objectives[kept], self.violation[kept], self.evaluations)


def optimise(
    space: SearchSpace,
    judge: Judge,
    strategy: Strategy,
    *,
    evaluations: int,
    most: int = 512,
    on_batch: Callable[[Found], bool] | None = None,
) -> Found:
    """Let a strategy search until its evaluations are spent, it asks for little new, or `on_batch` says stop.

    An architecture is judged once: of what a converging strategy asks, half was asked before, and is answered from memory.

    Args:
        judge: objectives and violation of a population.
        evaluations: architectures to judge at most.
        most: architectures to return at most.
        on_batch: called after every batch with what was found so far; returns whether to go on.
    """
    memory = _Memory(space, judge)
    found: Found | None = None
    asked_rows = 0
    while memory.judged < evaluations and asked_rows < MOST_ASKED * evaluations:
        asked = strategy.ask()
        asked_rows += len(asked)
        asked, objectives, violation = memory.verdict(asked, evaluations - memory.judged)
        if not len(asked):
            break
        strategy.tell(asked, objectives, violation)
        batch = Found(asked, objectives, violation, memory.judged)
        found = batch if found is None else found.joined(batch)
        if len(found.population) > 8 * most or on_batch:
            found = found.best(space, most)
        if on_batch and not on_batch(found):
            break
    if found is None:
        raise ValueError(f"evaluations is {evaluations}, expected at least 1, and a strategy that asks something")
    return found.best(space, most)


def exhaust(space: SearchSpace, judge: Judge, *, most: int = 512, population: Population | None = None) -> Found:
    """Judge every network of a small space, or of a population: what is best there is proven to be."""
    everything = space.everything() if population is None else population
    found: Found | None = None
    for start in range(0, len(everything), CHUNK):
        rows = everything[start : start + CHUNK]
        part = Found(rows, *judge(rows), start + len(rows))
        found = (part if found is None else found.joined(part)).best(space, most)
    assert found is not None  # there is a network
    return found


def _spread(points: NDArray[np.float64], most: int) -> NDArray[np.int64]:
    """Choose rows far from each other: the best of every column, then always the one farthest from those that were chosen."""
    if len(points) <= most:
        return np.arange(len(points))
    low, high = points.min(0), points.max(0)
    scaled = (points - low) / np.where(high > low, high - low, 1.0)
    chosen = list(dict.fromkeys(scaled.argmin(0).tolist()))[:most]
    distance = np.min([((scaled - scaled[i]) ** 2).sum(1) for i in chosen], axis=0)
    while len(chosen) < most:
        chosen.append(int(distance.argmax()))
        distance = np.minimum(distance, ((scaled - scaled[chosen[-1]]) ** 2).sum(1))
    return np.array(chosen)


class _Memory:
    """Judges what it was not asked before."""

    def __init__(self, space: SearchSpace, judge: Judge) -> None:
        self.space, self.judge = space, judge
        self._index: dict[int, int] = {}
        self._values: NDArray[np.float64] = np.empty((0, 0))  # (capacity, m + 1): objectives, violation

    @property
    def judged(self) -> int:
        return len(self._index)

    def verdict(self, asked: Population, most: int) -> tuple[Population, NDArray[np.float64], NDArray[np.float64]]:
        """Return rows with their objectives and violation; of new ones `most` at most, others are left out."""
        asked = self.space.distinct(asked)
        keys = self.space.keys(asked).tolist()
        at = np.fromiter((self._index.get(key, -1) for key in keys), dtype=np.int64, count=len(keys))
        new = np.flatnonzero(at < 0)[:most]
        if len(new):
            objectives, violation = self.judge(asked[new])
            self._grow(len(new), objectives.shape[1] + 1)
            at[new] = np.arange(self.judged, self.judged + len(new))
            self._values[at[new]] = np.column_stack([objectives, violation])
            self._index.update((keys[i], int(at[i])) for i in new.tolist())
        answered = at >= 0
        values = self._values[at[answered]]
        return asked[answered], values[:, :-1], values[:, -1]

    def _grow(self, more: int, columns: int) -> None:
        if self.judged + more > len(self._values):
            grown = np.empty((2 * (self.judged + more), columns))
            grown[: self.judged] = self._values[: self.judged] if self.judged else 0
            self._values = grown
