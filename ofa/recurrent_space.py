"""Spaces of recurrent cells: choices alone, without images, blocks and hence latency tables; cells are trained on text.

A row of a population matrix, the indices of the chosen options, is what a controller writes: a token for every dimension.
"""

from __future__ import annotations

from abc import abstractmethod

from ofa.block_spec import BlockSpec
from ofa.errors import OfaError
from ofa.genotype import RecurrentGenotype
from ofa.space import ArchConfig, SearchSpace, Slot
from ofa.tree_genotype import TreeGenotype


class RecurrentSpace(SearchSpace):
    """A space any point of which is a recurrent cell."""

    @property
    def slots(self) -> tuple[Slot, ...]:
        """No places for blocks."""
        return ()

    def blocks(self, arch: ArchConfig) -> dict[str, BlockSpec]:
        """Refuse: there are none.

        Raises:
            OfaError: always.
        """
        raise OfaError(f"space {self.name}: recurrent cells have no blocks; train one with: ofa train-text")

    @abstractmethod
    def to_genotype(self, arch: ArchConfig) -> RecurrentGenotype | TreeGenotype:
        """Return the cell of a point."""
