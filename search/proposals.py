"""Proposals that do not repeat themselves: what a strategy remembers, and how it comes to an end in a small space."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from ofa.space import Population, SearchSpace
from search.moves import change_one
from search.strategies import Repair

TRIES = 5  # at drawing something new, before the next way is taken
LISTED = 200_000  # networks of a space that is written down as a whole when draws hardly find anything new


class Proposals:
    """Hands out architectures that were neither handed out nor noted before, and that meet the limits if a repair is given.

    Asked for new ones it tries, in this order and each a bounded number of times: what it was given to start with, the caller's
    way of drawing, the same with more and more further changes (the neighbourhood of the best is soon known), uniform draws, and,
    where the space is small, the list of all its networks. What is missing then does not exist (or is not found, in a large space
    whose repair leaves next to nothing): fewer are returned, at last none.

    `lenders` are architectures that meet the limits, from which a repair takes choices; the better they are, the better what
    comes out. None = those that the repair knows of.
    """

    def __init__(
        self,
        space: SearchSpace,
        rng: np.random.Generator,
        *,
        start: Population | None = None,
        repair: Repair | None = None,
    ) -> None:
        self.space, self.rng, self._repair = space, rng, repair
        self.lenders: Population | None = None
        self._known = np.empty(0, dtype=np.uint64)  # keys, sorted
        self._start = space.encode([]) if start is None else start
        self._rest: Population | None = None  # of a small space: what was not known when it was last looked through

    def note(self, population: Population) -> None:
        """Remember canonical architectures, so that they are not handed out."""
        keys = np.unique(self.space.keys(population))
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
        if len(found) < n and self.space.size() <= LISTED:
            rest = self.rng.permutation(self.space.everything()) if self._rest is None else self._rest
            self._rest = self._add(self.space.encode([]), rest)
            found = self._add(found, self._rest)[:n]
        self.note(found)
        return found

    def draw_uniform(self, n: int) -> Population:
        """Draw every choice uniformly."""
        return self.space.sample(self.rng, n)

    def _add(self, found: Population, drawn: Population) -> Population:
        """Append what is new among the drawn ones, repaired, in their order."""
        rows = self.space.canonical(drawn)
        if self._repair:
            rows = self._repair(rows, self._some_lenders(len(rows)))
        rows = self.space.distinct(np.concatenate([found, rows]))
        keys = self.space.keys(rows)
        return rows[~self._stand_at(keys, np.searchsorted(self._known, keys))]

    def _some_lenders(self, n: int) -> Population | None:
        if self.lenders is None or not len(self.lenders):
            return None
        return self.lenders[self.rng.integers(len(self.lenders), size=n)]

    def _stand_at(self, keys: NDArray[np.uint64], place: NDArray[np.intp]) -> NDArray[np.bool_]:
        if not len(self._known):
            return np.zeros(len(keys), dtype=bool)
        return self._known[np.minimum(place, len(self._known) - 1)] == keys
