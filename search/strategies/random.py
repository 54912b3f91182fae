"""Random search: uniform draws without repetition. What every other strategy must beat."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from ofa.space import Population, SearchSpace
from search.proposals import Proposals
from search.strategies import Repair


class Random:
    """Ask/tell random search; repaired draws where a repair is given."""

    multi_objective: ClassVar[bool] = True

    def __init__(
        self,
        space: SearchSpace,
        rng: np.random.Generator,
        *,
        batch: int = 200,
        start: Population | None = None,
        repair: Repair | None = None,
    ) -> None:
        self._batch, self._proposals = batch, Proposals(space, rng, start=start, repair=repair)

    def ask(self) -> Population:
        """Return architectures that were not asked for yet."""
        return self._proposals.take(self._batch, self._proposals.draw_uniform)

    def tell(self, population: Population, objectives: NDArray[np.float64], violation: NDArray[np.float64]) -> None:
        """Remember what was judged."""
        self._proposals.note(self._proposals.space.canonical(population))


STRATEGY = Random
