"""The spaces of recurrent cells: whose point a cell is, and the cell of a file."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from typing import Any

from ofa.formats import enas
from ofa.formats.enas_rnn import LENGTH, rnn_arch
from ofa.genotype import RecurrentGenotype
from ofa.recurrent_space import RecurrentSpace
from ofa.space import ArchConfig, InvalidArchError
from ofa.spaces import darts_rnn, enas_rnn, get_space, nas_rl_rnn
from ofa.tree_genotype import TreeGenotype, is_tree, parse_tree

NAMES = ("darts_rnn", "enas_rnn", "nas_rl_rnn")


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


def is_recurrent_arc(text: str) -> bool:
    """Whether a text is a recurrent cell as ENAS writes it: 23 integers."""
    return enas.is_arc(text) and len(enas.parse_arc(text)) == LENGTH


def cell_of_text(text: str) -> RecurrentGenotype | TreeGenotype | None:
    """Return the cell of a text that is a tree or an arc of ENAS; None if it is neither.

    Raises:
        OfaError: if it is one, but wrong.
    """
    if is_tree(text):
        return parse_tree(text)
    if is_recurrent_arc(text):
        return enas_rnn.SPACE.to_genotype(rnn_arch(enas_rnn.SPACE, enas.parse_arc(text)))
    return None


def cell_of_record(record: Mapping[str, Any]) -> RecurrentGenotype | TreeGenotype | None:
    """Return the cell of an arch.json; None if it is of another space.

    Raises:
        OfaError: if its choices are not those of its space.
    """
    name = str(record.get("space"))
    if name.partition(":")[0] not in NAMES:
        return None
    space = get_space(name)
    assert isinstance(space, RecurrentSpace)
    return space.to_genotype(space.from_json(record))
