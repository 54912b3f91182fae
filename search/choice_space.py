"""Spaces that are known by their choices alone: for tables of accuracies and for accuracies that others measure."""

from __future__ import annotations

from dataclasses import dataclass

from ofa.block_spec import BlockSpec
from ofa.errors import OfaError
from ofa.space import ArchConfig, Dimension, SearchSpace, Slot


@dataclass(frozen=True)
class ChoiceSpace(SearchSpace):
    """A space known by its choices alone, for a table of accuracies; no network can be built of it.

    Search, predictors and costs that are read from a table work as on any other space. MACs, parameters and everything else that
    is counted over blocks is unknown.
    """

    name: str
    dimensions: tuple[Dimension, ...] = ()  # the default only makes way for the field: the base class has a property here
    num_classes: int = 1000

    def __post_init__(self) -> None:
        if not self.dimensions:
            raise OfaError(f"space {self.name}: no dimensions, expected at least one choice")

    @property
    def slots(self) -> tuple[Slot, ...]:
        """No places for blocks."""
        return ()

    def blocks(self, arch: ArchConfig) -> dict[str, BlockSpec]:
        """Refuse: there are none.

        Raises:
            OfaError: always.
        """
        raise OfaError(f"space {self.name} is known by its choices alone: no network can be built of it, nor its MACs be counted")
