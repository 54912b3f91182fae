"""Local search: many climbers, each moving to the best of its tried neighbours, all of them judged in one batch.

A climber that finds nothing better for a while goes elsewhere: half of them to a changed copy of the best known architecture
(iterated local search), half to a random place. Local search is a strong baseline on tables of accuracies.
Sources: White et al. 2021 (arXiv 2005.02960); Lourenço et al. 2003 (iterated local search).
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from ofa.errors import OfaError
from ofa.space import Population, SearchSpace
from search.moves import change_one, change_some
from search.pareto import require_single
from search.proposals import Proposals
from search.strategies import Repair


class LocalSearch:
    """Ask/tell local search; `climbers` hold where they stand, `objective` and `violation` how good that is.

    Args:
        num_climbers: None = one for every eight architectures of a batch.
        patience: batches without anything better before a climber leaves.
        kick: share of choices that change in a copy of the best.
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
        num_climbers: int | None = None,
        patience: int = 8,
        kick: float = 0.2,
    ) -> None:
        if patience < 1 or not 0 < kick <= 1 or (num_climbers is not None and num_climbers < 1):
            raise OfaError(
                f"num_climbers {num_climbers}, patience {patience}, kick {kick}: expected at least 1 twice, then a share above 0"
            )
        self.space, self.rng, self._batch, self._patience, self._kick = space, rng, batch, patience, kick
        self._num_climbers = num_climbers or max(1, batch // 8)
        self._proposals = Proposals(space, rng, start=start, repair=repair)
        self.climbers: Population = space.encode([])
        self.objective: NDArray[np.float64] = np.empty(0)
        self.violation: NDArray[np.float64] = np.empty(0)
        self._age: NDArray[np.int64] = np.empty(0, dtype=np.int64)

    def ask(self) -> Population:
        """Return neighbours of all climbers; random architectures until there are climbers."""
        if not len(self.climbers):
            return self._proposals.take(self._batch, self._proposals.draw_uniform)
        return self._proposals.take(self._batch, self._neighbours)

    def tell(self, population: Population, objectives: NDArray[np.float64], violation: NDArray[np.float64]) -> None:
        """Move every climber to the best of its neighbours, if that is better."""
        require_single("local", objectives)
        population, objective = self.space.canonical(population), objectives[:, 0]
        self._proposals.note(population)
        order = np.lexsort((objective, violation))
        if len(self.climbers) < self._num_climbers:
            new = order[: self._num_climbers - len(self.climbers)]
            self.climbers = np.concatenate([self.climbers, population[new]])
            self.objective = np.concatenate([self.objective, objective[new]])
            self.violation = np.concatenate([self.violation, violation[new]])
            self._age = np.zeros(len(self.climbers), dtype=np.int64)
        else:
            distance = (population[:, None] != self.climbers).sum(2)  # (n, climbers)
            self._age += 1
            home = distance.argmin(1)
            climbers, best = np.unique(home[order], return_index=True)
            best = order[best]
            better = (violation[best] < self.violation[climbers]) | (
                (violation[best] == self.violation[climbers]) & (objective[best] < self.objective[climbers])
            )
            moved, to = climbers[better], best[better]
            self.climbers[moved], self._age[moved] = population[to], 0
            self.objective[moved], self.violation[moved] = objective[to], violation[to]
        good = self.climbers[(self.violation == 0) & np.isfinite(self.objective)]
        self._proposals.lenders = good if len(good) else None
        self._leave()

    def _neighbours(self, n: int) -> Population:
        return change_one(self.space, self.climbers[np.arange(n) % len(self.climbers)], self.rng)

    def _leave(self) -> None:
        """Send climbers that are stuck elsewhere; the best one stays."""
        best = np.lexsort((self.objective, self.violation))[0]
        stuck = np.flatnonzero((self._age > self._patience) & (np.arange(len(self._age)) != best))
        if not len(stuck):
            return
        kicked = change_some(self.space, np.repeat(self.climbers[[best]], len(stuck), axis=0), self.rng, self._kick)
        random = self.space.sample(self.rng, len(stuck))
        self.climbers[stuck] = np.where(self.rng.random((len(stuck), 1)) < 0.5, kicked, random)
        self.objective[stuck], self.violation[stuck], self._age[stuck] = np.inf, np.inf, 0


STRATEGY = LocalSearch
