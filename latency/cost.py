"""What a network costs: one interface for multiply-adds, parameters and latency.

A cost model turns a population into numbers by adding up one value a block; what blocks count is in ofa.counts.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from ofa.counts import macs, params
from ofa.space import ArchConfig, Population, SearchSpace


class CostModel(Protocol):
    """Anything that prices architectures."""

    @property
    def quantity(self) -> str:
        """One of "macs", "params" and "latency"."""
        ...

    @property
    def space(self) -> SearchSpace:
        """The space whose architectures are priced."""
        ...

    def __call__(self, arch: ArchConfig) -> float: ...

    def predict(self, population: Population) -> NDArray[np.float64]:
        """Return the cost of every architecture, (n,)."""
        ...


@dataclass(frozen=True)
class CountCost:
    """Multiply-adds of convolutions and linear layers for one image, or parameters of the extracted network."""

    quantity: str  # "macs" or "params"
    space: SearchSpace

    def __call__(self, arch: ArchConfig) -> float:
        return float(self.predict(self.space.encode([arch]))[0])

    def predict(self, population: Population) -> NDArray[np.float64]:
        """Return the count of every architecture, (n,)."""
        count = {"macs": macs, "params": params}[self.quantity]
        return count(self.space, population).astype(np.float64)
