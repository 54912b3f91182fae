"""Proposals that do not repeat themselves: what a strategy remembers, and how it comes to an end in a small space."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from ofa.space import Population, SearchSpace
from search.moves import change_one

TRIES = 5  # at drawing something new, before the next way is taken
ENUMERABLE = 200_000  # networks of a space that is written down as a whole when draws hardly find anything new


class Proposals:
    """Hands out architectures that were neither handed out nor noted before.

    Asked for new ones it tries, in this order and each a bounded number of times: what it was given to start with, the caller's
    way of drawing, the same with more and more further changes (the neighbourhood of the best is soon known), uniform draws, and,
    where the space is small, the list of all its networks. What is missing then does not exist (or is not found, in a large space
    whose repair leaves next to nothing): fewer are returned, at last none.
    """

    def __init__(
        self,
        space: SearchSpace,
        rng: np.random.Generator,
        *,
        start: Population | None = None,
        repair: Callable[[Population], Population] | None = None,
    ) -> None:
        self.space, self.rng, self._repair = space, rng, repair
        # A number for every network where 64 bits hold the space. Else a sum of random odd multiples: among a million networks
        # two share theirs in one of 30 million searches, which then leaves one network out.
        options = [int(n) for n in space.num_options]
        if math.prod(options) < 2**64:
            self._factors = np.array([math.prod(options[c + 1 :]) for c in range(len(options))], np.uint64)
        else:
            self._factors = np.random.default_rng(0).integers(2**63, size=len(options), dtype=np.uint64) * np.uint64(
                2
            ) + np.uint64(1)
        self._known = np.empty(0, dtype=np.uint64)  # sorted
        self._start = space.encode([]) if start is None else start
        self._rest: Population | None = None  # of a small space: what was not known when it was last looked through

    def keys(self, population: Population) -> NDArray[np.uint64]:
        """Return a number for every canonical architecture, (n,); equal rows have equal numbers."""
        return (population.astype(np.uint64) * self._factors).sum(1, dtype=np.uint64)

    def note(self, population: Population) -> None:
        """Remember canonical architectures, so that they are not handed out."""
        keys = np.unique(self.keys(population))
        place = np.searchsorted(self._known, keys)
        new = ~self._stand_at(keys, place)
        self._known = np.insert(self._known, place[new], keys[new])

    def take(self, n: int, draw: Callable[[int], Population]) -> Population:
        """Return up to n new architectures, canonical and distinct.

        Args:
            draw: number -> that many architectures, known ones perhaps among them.
        """
        found = self.space.encode([])
        if len(self._start):
            found, self._start = self._add(found, self._start[:n]), self._start[n:]
        for attempt in range(3 * TRIES):
            if len(found) < n:
                drawn = draw(n - len(found)) if attempt < 2 * TRIES else self.draw_uniform(n - len(found))
                for _ in range(min(attempt, 2 * TRIES - 1) - TRIES + 1):
                    drawn = change_one(self.space, drawn, self.rng)
                found = self._add(found, drawn)
        if len(found) < n and self.space.size() <= ENUMERABLE:
            rest = self.rng.permutation(enumerate_space(self.space)) if self._rest is None else self._rest
            self._rest = self._add(self.space.encode([]), rest)
            found = self._add(found, self._rest)[:n]
        self.note(found)
        return found

    def draw_uniform(self, n: int) -> Population:
        """Draw every choice uniformly."""
        return self.space.sample(self.rng, n)

    def _add(self, found: Population, drawn: Population) -> Population:
        """Append what is new among the drawn ones, repaired, in their order."""
        repaired = drawn if self._repair is None else self._repair(drawn)
        rows = np.concatenate([found, self.space.canonical(repaired)])
        keys = self.keys(rows)
        first = np.unique(keys, return_index=True)[1]
        new = np.zeros(len(rows), dtype=bool)
        new[first] = True
        return rows[new & ~self._stand_at(keys, np.searchsorted(self._known, keys))]

    def _stand_at(self, keys: NDArray[np.uint64], place: NDArray[np.intp]) -> NDArray[np.bool_]:
        if not len(self._known):
            return np.zeros(len(keys), dtype=bool)
        return self._known[np.minimum(place, len(self._known) - 1)] == keys


def enumerate_space(space: SearchSpace) -> Population:
    """Return all networks of a space, (space.size(), dimensions), canonical. For small spaces only."""
    rows = np.zeros((1, len(space.dimensions)), dtype=np.int16)
    for column, options in enumerate(space.num_options.tolist()):
        # dimensions stand after those that they require, so whether this one has an effect is known by now
        branching = np.where(space.active(rows)[:, column], options, 1)
        rows = np.repeat(rows, branching, axis=0)
        rows[:, column] = np.arange(len(rows)) - np.repeat(np.cumsum(branching) - branching, branching)
    return rows
