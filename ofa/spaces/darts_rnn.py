"""Recurrent cells of DARTS (Liu et al. 2019, arXiv 1806.09055): eight nodes, each with an earlier state and an activation."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from ofa.genotype import USUAL_FIRST, RecurrentGenotype
from ofa.recurrent_space import RecurrentSpace
from ofa.space import ArchConfig, Dimension, InvalidArchError

ACTIVATIONS = ("tanh", "relu", "sigmoid", "identity")


@dataclass(frozen=True)
class DartsRecurrentSpace(RecurrentSpace):
    """For node i = 1, 2, ... a state below i to read and an activation; the mean of all nodes is the hidden state."""

    name: str
    nodes: int = 8
    num_classes: int = 1  # not a classifier of images

    @property
    def dimensions(self) -> tuple[Dimension, ...]:
        """Two choices a node."""
        return tuple(self._dimensions())

    def _dimensions(self) -> Iterator[Dimension]:
        for node in range(1, self.nodes + 1):
            yield Dimension(f"node{node}.input", tuple(range(node)))
            yield Dimension(f"node{node}.op", ACTIVATIONS)

    def to_genotype(self, arch: ArchConfig) -> RecurrentGenotype:
        """Return the cell of a point."""
        values = self.check(arch).values
        edges = tuple((str(op), int(source)) for source, op in zip(values[::2], values[1::2], strict=True))
        return RecurrentGenotype(edges, tuple(range(1, self.nodes + 1)))

    def from_genotype(self, genotype: RecurrentGenotype) -> ArchConfig:
        """Return the point of a cell.

        Raises:
            InvalidArchError: if it has other nodes or activations, or does not hand on the mean of all nodes.
        """
        others = len(genotype.recurrent) != self.nodes or genotype.first != USUAL_FIRST
        if others or set(genotype.concat) != set(range(1, self.nodes + 1)):
            raise InvalidArchError(
                f"{self.name}: cell of {len(genotype.recurrent)} nodes after a {genotype.first} with the mean of states "
                f"{list(genotype.concat)}, expected {self.nodes} nodes after a {USUAL_FIRST} and the mean of all of them"
            )
        return self.check(ArchConfig(self.name, tuple(value for op, source in genotype.recurrent for value in (source, op))))


SPACE = DartsRecurrentSpace("darts_rnn")
