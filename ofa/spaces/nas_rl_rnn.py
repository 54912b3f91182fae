"""Recurrent cells of NAS with reinforcement learning: trees (Zoph and Le 2016, arXiv 1611.01578, section 3.4 and appendix A).

For every node how it combines two tensors and an activation, leaves first and the root last; then how the last cell state is
injected, which leaf is the new cell state, and into which the last one is injected: the order in which the paper's controller
predicts them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from ofa.recurrent_space import RecurrentSpace
from ofa.space import ArchConfig, Dimension, InvalidArchError
from ofa.tree_genotype import COMBINATIONS, TREE_ACTIVATIONS, TreeGenotype

BASE = 8


@dataclass(frozen=True)
class TreeSpace(RecurrentSpace):
    """Trees of one number of leaves, a power of two."""

    base: int = BASE
    num_classes: int = 1  # not a classifier of images

    def __post_init__(self) -> None:
        if self.base < 2 or self.base & (self.base - 1):
            raise InvalidArchError(f"nas_rl_rnn: base is {self.base}, expected 2, 4, 8, ...")

    @property
    def name(self) -> str:  # type: ignore[override]
        """Base name, and the number of leaves where it is another: "nas_rl_rnn:base=2"."""
        return "nas_rl_rnn" if self.base == BASE else f"nas_rl_rnn:base={self.base}"

    @property
    def dimensions(self) -> tuple[Dimension, ...]:
        """Two choices a node, and four for the cell state."""
        return tuple(self._dimensions())

    def _dimensions(self) -> Iterator[Dimension]:
        for step in (*(f"node{node}" for node in range(2 * self.base - 1)), "inject"):
            yield Dimension(f"{step}.combine", COMBINATIONS)
            yield Dimension(f"{step}.activation", TREE_ACTIVATIONS)
        for place in ("cell.leaf", "inject.leaf"):
            yield Dimension(place, tuple(range(self.base)))

    def with_numbers(self, **numbers: int | str) -> TreeSpace:
        """Return trees of another number of leaves, at most 64.

        Raises:
            InvalidArchError: for other numbers.
        """
        base = numbers.get("base", self.base)
        if set(numbers) - {"base"} or not isinstance(base, int) or base > 64:
            raise InvalidArchError(f"nas_rl_rnn: has no {numbers}, expected base=2, 4, ... 64")
        return TreeSpace(base, self.num_classes)

    def to_genotype(self, arch: ArchConfig) -> TreeGenotype:
        """Return the tree of a point."""
        *steps, cell_leaf, inject_leaf = self.check(arch).values
        *nodes, inject = ((str(combine), str(act)) for combine, act in zip(steps[::2], steps[1::2], strict=True))
        return TreeGenotype(tuple(nodes), inject, int(inject_leaf), int(cell_leaf))

    def from_genotype(self, genotype: TreeGenotype) -> ArchConfig:
        """Return the point of a tree.

        Raises:
            InvalidArchError: if it has another number of leaves.
        """
        if genotype.base != self.base:
            raise InvalidArchError(f"{self.name}: tree of {genotype.base} leaves, expected {self.base}")
        steps = (choice for step in (*genotype.nodes, genotype.inject) for choice in step)
        return self.check(ArchConfig(self.name, (*steps, genotype.cell_leaf, genotype.inject_leaf)))


SPACE = TreeSpace()
