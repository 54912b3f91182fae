"""Recurrent cells of ENAS (Pham et al. 2018, arXiv 1802.03268, section 2.1): twelve nodes, the first of which reads the token.

The other nodes read one earlier node each, through a highway connection; the mean of the loose ends, nodes that none reads, is
the new hidden state. Options stand in ENAS' order, so that their indices are the integers of its arcs (ofa.formats.enas_rnn).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from ofa.genotype import Edge, RecurrentGenotype
from ofa.recurrent_space import RecurrentSpace
from ofa.space import ArchConfig, Dimension, InvalidArchError

FUNCTIONS = ("tanh", "relu", "identity", "sigmoid")
NODES, MAX_NODES = 12, 64


@dataclass(frozen=True)
class EnasRecurrentSpace(RecurrentSpace):
    """A function for node 0, then for each node an earlier one to read and a function."""

    nodes: int = NODES
    num_classes: int = 1  # not a classifier of images

    @property
    def name(self) -> str:  # type: ignore[override]
        """Base name, and the number of nodes where it is another: "enas_rnn:nodes=4"."""
        return "enas_rnn" if self.nodes == NODES else f"enas_rnn:nodes={self.nodes}"

    @property
    def dimensions(self) -> tuple[Dimension, ...]:
        """One choice for node 0, two for each other."""
        return tuple(self._dimensions())

    def _dimensions(self) -> Iterator[Dimension]:
        yield Dimension("node0.op", FUNCTIONS)
        for node in range(1, self.nodes):
            yield Dimension(f"node{node}.input", tuple(range(node)))
            yield Dimension(f"node{node}.op", FUNCTIONS)

    def with_numbers(self, **numbers: int | str) -> EnasRecurrentSpace:
        """Return cells of another number of nodes, at least 2.

        Raises:
            InvalidArchError: for other numbers.
        """
        nodes = numbers.get("nodes", self.nodes)
        if set(numbers) - {"nodes"} or not isinstance(nodes, int) or not 2 <= nodes <= MAX_NODES:
            raise InvalidArchError(f"enas_rnn: has no {numbers}, expected nodes=2 to nodes={MAX_NODES}")
        return EnasRecurrentSpace(nodes, self.num_classes)

    def to_genotype(self, arch: ArchConfig) -> RecurrentGenotype:
        """Return the cell of a point."""
        first, *rest = self.check(arch).values
        edges = tuple((str(op), int(source)) for source, op in zip(rest[::2], rest[1::2], strict=True))
        return RecurrentGenotype(edges, loose_ends(edges), str(first))

    def from_genotype(self, genotype: RecurrentGenotype) -> ArchConfig:
        """Return the point of a cell.

        Raises:
            InvalidArchError: if it has other nodes or functions, or does not hand on the mean of its loose ends.
        """
        if len(genotype.recurrent) != self.nodes - 1 or set(genotype.concat) != set(loose_ends(genotype.recurrent)):
            raise InvalidArchError(
                f"{self.name}: cell of {len(genotype.recurrent) + 1} nodes with the mean of {list(genotype.concat)}, expected "
                f"{self.nodes} nodes and the mean of those that none reads, {list(loose_ends(genotype.recurrent))}"
            )
        rest = (value for op, source in genotype.recurrent for value in (source, op))
        return self.check(ArchConfig(self.name, (genotype.first, *rest)))


def loose_ends(edges: Sequence[Edge]) -> tuple[int, ...]:
    """Return the nodes that none reads, in order."""
    read = {source for _, source in edges}
    return tuple(node for node in range(len(edges) + 1) if node not in read)


SPACE = EnasRecurrentSpace()
