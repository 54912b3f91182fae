"""Cells that are trees as text: what every node combines its two inputs with, its activation, and where the cell state goes.

A tree of base b has the leaves 0 to b - 1, then the nodes above them level by level, two neighbours below each; the last is the
root. Written `Tree(nodes=[('add', 'tanh'), ...], inject=('add', 'relu'), inject_leaf=0, cell_leaf=1)`; parsed, not evaluated.
Source: Zoph and Le 2016 (arXiv 1611.01578), section 3.4. This module needs no torch.
"""

from __future__ import annotations

import ast
from dataclasses import dataclass

from ofa.genotype import MAX_TEXT, GenotypeError, RecurrentGenotype, parse_genotype

Step = tuple[str, str]  # how two tensors become one, and the activation of that
COMBINATIONS = ("add", "elem_mult")
TREE_ACTIVATIONS = ("identity", "tanh", "sigmoid", "relu")
NAME, FIELDS = "Tree", ("nodes", "inject", "inject_leaf", "cell_leaf")


@dataclass(frozen=True, slots=True)
class TreeGenotype:
    """A tree: each leaf combines a product of the input with one of the last hidden state, the root is the new hidden state."""

    nodes: tuple[Step, ...]  # 2 * base - 1, leaves first, the root last
    inject: Step  # how the last cell state enters a leaf, after the leaf's activation
    inject_leaf: int
    cell_leaf: int  # whose value before its activation is the new cell state

    def __post_init__(self) -> None:
        base = self.base
        if base < 2 or base & (base - 1) or len(self.nodes) != 2 * base - 1:
            raise GenotypeError(f"tree of {len(self.nodes)} nodes, expected 3, 7, 15, ...: twice a power of two, less one")
        for combine, activation in (*self.nodes, self.inject):
            if combine not in COMBINATIONS or activation not in TREE_ACTIVATIONS:
                known = f"{', '.join(COMBINATIONS)} and {', '.join(TREE_ACTIVATIONS)}"
                raise GenotypeError(f"tree has the step {(combine, activation)!r}, expected one of {known}")
        for name, leaf in (("inject_leaf", self.inject_leaf), ("cell_leaf", self.cell_leaf)):
            if not 0 <= leaf < base:
                raise GenotypeError(f"tree: {name} is {leaf}, expected a leaf, 0 to {base - 1}")

    @property
    def base(self) -> int:
        """Number of leaves."""
        return (len(self.nodes) + 1) // 2

    def children(self, node: int) -> tuple[int, int]:
        """Return the two nodes that a node above the leaves combines."""
        first = 2 * (node - self.base)  # nodes are listed level by level, and so are those below them
        return first, first + 1

    def __str__(self) -> str:
        """Write the form that `parse_tree` reads."""
        return (
            f"{NAME}(nodes={list(self.nodes)}, inject={self.inject}, inject_leaf={self.inject_leaf}, cell_leaf={self.cell_leaf})"
        )


def is_tree(text: str) -> bool:
    """Whether a text means to be a tree."""
    return text.lstrip().startswith(f"{NAME}(")


def parse_tree(text: str) -> TreeGenotype:
    """Read a tree.

    Raises:
        GenotypeError: if it is none; it says what is wrong.
    """
    expected = f"expected {NAME}(nodes=[('add', 'tanh'), ...], inject=('add', 'relu'), inject_leaf=0, cell_leaf=1)"
    try:
        call = ast.parse(text.strip(), mode="eval").body if len(text) <= MAX_TEXT else None
        if not isinstance(call, ast.Call) or call.args or not is_tree(text):
            raise ValueError("no call")
        given = [(str(keyword.arg), ast.literal_eval(keyword.value)) for keyword in call.keywords]
    except (SyntaxError, ValueError, TypeError, RecursionError, MemoryError):
        raise GenotypeError(f"not a tree: {text[:60]!r}, {expected}") from None
    values = dict(given)
    if sorted(values) != sorted(FIELDS) or len(given) != len(FIELDS):
        raise GenotypeError(f"tree has the fields {[name for name, _ in given]}, {expected}")
    nodes, leaves = values["nodes"], (values["inject_leaf"], values["cell_leaf"])
    steps = [*nodes, values["inject"]] if isinstance(nodes, list | tuple) else []
    if not steps or not all(_is_step(step) for step in steps) or not all(type(leaf) is int for leaf in leaves):
        raise GenotypeError(f"not a tree: {text[:60]!r}, {expected}")
    return TreeGenotype(tuple((step[0], step[1]) for step in nodes), tuple(values["inject"]), *leaves)


def parse_text_cell(text: str) -> RecurrentGenotype | TreeGenotype:
    """Read a recurrent cell of either form.

    Raises:
        GenotypeError: if it is none.
    """
    if is_tree(text):
        return parse_tree(text)
    genotype = parse_genotype(text)
    if not isinstance(genotype, RecurrentGenotype):
        raise GenotypeError("not a recurrent cell, but cells for images")
    return genotype


def _is_step(value: object) -> bool:
    return isinstance(value, list | tuple) and len(value) == 2 and all(isinstance(part, str) for part in value)
