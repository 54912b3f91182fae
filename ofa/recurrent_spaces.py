"""Which space of recurrent cells a cell is a point of."""

from __future__ import annotations

import contextlib

from ofa.genotype import RecurrentGenotype
from ofa.recurrent_space import RecurrentSpace
from ofa.space import ArchConfig, InvalidArchError
from ofa.spaces import darts_rnn, enas_rnn, nas_rl_rnn
from ofa.tree_genotype import TreeGenotype


def find_point(genotype: RecurrentGenotype | TreeGenotype) -> tuple[RecurrentSpace, ArchConfig] | None:
    """Return the first space of ours that has such a cell, and its point; None if none has."""
    if isinstance(genotype, TreeGenotype):
        trees = nas_rl_rnn.SPACE.with_numbers(base=genotype.base)
        return trees, trees.from_genotype(genotype)
    spaces: list[darts_rnn.DartsRecurrentSpace | enas_rnn.EnasRecurrentSpace] = [darts_rnn.SPACE]
    if len(genotype.recurrent) < enas_rnn.MAX_NODES:
        spaces.append(enas_rnn.SPACE.with_numbers(nodes=len(genotype.recurrent) + 1))
    for space in spaces:
        with contextlib.suppress(InvalidArchError):
            return space, space.from_genotype(genotype)
    return None
