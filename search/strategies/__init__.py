"""Search strategies: a file each, ask/tell.

`ask()` returns a population to judge, `tell(population, score, violation)` takes the verdict: score is to be large, violation
is 0 where all limits are met and otherwise says by how much they are missed. The caller owns the evaluation.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from ofa.space import Population


class Strategy(Protocol):
    """Proposes architectures and learns from how they do."""

    def ask(self) -> Population: ...

    def tell(self, population: Population, score: NDArray[np.float64], violation: NDArray[np.float64]) -> None: ...
