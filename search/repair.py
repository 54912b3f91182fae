"""Repair: architectures that miss a limit take choices from one that meets it, as few as will do."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from ofa.space import Population, SearchSpace
from search.strategies import Repair


def repairer(
    space: SearchSpace, violation: Callable[[Population], NDArray[np.float64]], feasible: Population, rng: np.random.Generator
) -> Repair:
    """Return a repair for limits.

    Every row that misses a limit is paired with one that meets it. Its choices are put into random order, and the shortest
    beginning of that order whose choices, taken from the partner, meet the limits is found by bisection. All choices together
    are the partner itself, so that an answer always exists and log2(dimensions) rounds of array arithmetic find one. What comes
    out lies close below the limit, which is where the most accurate networks are.

    Args:
        violation: (n, dimensions) -> (n,), 0 = all limits are met.
        feasible: (m, dimensions), m >= 1, architectures that meet the limits.
    """

    def repair(population: Population, toward: Population | None = None) -> Population:
        broken = np.flatnonzero(violation(population) > 0)
        if not len(broken):
            return population
        rows = population[broken]
        partners = feasible[rng.integers(len(feasible), size=len(rows))] if toward is None else toward[broken]
        order = rng.random(rows.shape, dtype=np.float32).argsort(axis=1).argsort(axis=1)
        low = np.zeros(len(rows), dtype=np.int64)  # so many choices do not suffice
        high = np.full(len(rows), rows.shape[1])  # so many do
        while (high - low > 1).any():
            middle = (low + high) // 2
            meets = violation(_taken(space, rows, partners, order, middle)) == 0
            high, low = np.where(meets, middle, high), np.where(meets, low, middle)
        repaired = population.copy()
        repaired[broken] = _taken(space, rows, partners, order, high)
        return repaired

    return repair


def _taken(
    space: SearchSpace, rows: Population, partners: Population, order: NDArray[np.int64], count: NDArray[np.int64]
) -> Population:
    return space.canonical(np.where(order < count[:, None], partners, rows))
