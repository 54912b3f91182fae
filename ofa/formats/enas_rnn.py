"""Recurrent cells as arc strings of ENAS: the function of node 0, then for each node the one that it reads and its function.

    0  0 0  1 1  2 1  2 0  2 0  5 1  1 0  6 1  8 1  8 1  8 1

is the published cell; functions are numbered tanh, relu, identity, sigmoid. Source: the authors' code, as the README of
melodyguan/enas lists it. What other work calls ENAS' cell (`enas_rnn` of ofa.genotypes) is the same graph with nodes in another
order.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ofa.formats.enas import ArcError
from ofa.space import ArchConfig
from ofa.spaces.enas_rnn import EnasRecurrentSpace

LENGTH = 23


def rnn_arch(space: EnasRecurrentSpace, arc: Sequence[int]) -> ArchConfig:
    """Return the cell of an arc.

    Raises:
        ArcError: if it is too short, too long, or a number is none of those that it chooses from.
    """
    dimensions = space.dimensions
    if len(arc) != len(dimensions):
        raise ArcError(f"arc of {len(arc)} integers, expected {len(dimensions)} for {space.nodes} nodes")
    for index, dimension in zip(arc, dimensions, strict=True):
        if not 0 <= index < len(dimension.options):
            raise ArcError(f"arc: {dimension.name} is {index}, expected 0 to {len(dimension.options) - 1}")
    return space.decode(np.array([arc], dtype=np.int16))[0]


def rnn_arc(space: EnasRecurrentSpace, arch: ArchConfig) -> tuple[int, ...]:
    """Return the arc of a cell."""
    return tuple(int(index) for index in space.encode([arch])[0])
