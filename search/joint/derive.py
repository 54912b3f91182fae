"""From probabilities of operations to the cell that a search has found.

All functions take probabilities, after softmax: strengths of different edges cannot be compared before.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from torch import Tensor

from ofa.errors import OfaError
from ofa.genotype import INPUTS, Genotype, Node, RecurrentGenotype
from ofa.mixed import PRIMITIVES

CYCLIC_PRIMITIVES = (*PRIMITIVES[1:], "none")  # order of the columns in Cyclic-DARTS
RECURRENT_PRIMITIVES = ("none", "tanh", "relu", "sigmoid", "identity")
SKIP = "skip_connect"
EDGES = 2  # that a node of a convolutional cell keeps
TOLERANCE = 1e-3  # of a sum of probabilities in half precision

Array = npt.NDArray[np.float64]


class DeriveError(OfaError):
    """Numbers that are no probabilities of operations."""


def derive(normal: Tensor, reduce: Tensor, *, max_skips: int | None = None) -> Genotype:
    """Return the cells of a DARTS search.

    Each node keeps the two edges with the most probable operation other than `none`, the stronger one first (the lower source
    if they are equal), each with that operation. Liu et al. 2019 (DARTS, arXiv 1806.09055), section 2.4.

    Args:
        normal: (edges, 8) probabilities, edges node by node, columns as in `PRIMITIVES`; 14 edges make four nodes.
        reduce: the same for the reduction cell.
        max_skips: most skip connections in the normal cell. While there are more, the weakest of them is struck out and
            the cell derived again, so that its edge comes back with the next best operation or not at all.
            Chen et al. 2019 (P-DARTS, arXiv 1904.12760), section 3.3.

    Raises:
        DeriveError: if rows are no probabilities, edges make no cell, or max_skips is negative.
    """
    if max_skips is not None and max_skips < 0:
        raise DeriveError(f"max_skips is {max_skips}, expected 0 or more")
    cells = []
    for name, probabilities in (("normal", normal), ("reduce", reduce)):
        rows = _split(name, _checked(name, probabilities, len(PRIMITIVES)), INPUTS)
        nodes = _nodes(rows, PRIMITIVES)
        while name == "normal" and max_skips is not None and _count_skips(nodes) > max_skips:
            chosen = [(node, source) for node, edges in enumerate(nodes) for name_, source in edges if name_ == SKIP]
            node, source = min(chosen, key=lambda edge: rows[edge[0]][edge[1], PRIMITIVES.index(SKIP)])
            rows[node][source, PRIMITIVES.index(SKIP)] = 0
            nodes = _nodes(rows, PRIMITIVES)
        cells.append((nodes, tuple(range(INPUTS, INPUTS + len(nodes)))))
    return Genotype(*cells[0], *cells[1])


def derive_recurrent(probabilities: Tensor) -> RecurrentGenotype:
    """Return the cell of a recurrent DARTS search: each node keeps one edge; the output is the mean of all nodes.

    Args:
        probabilities: (edges, 5), edges node by node, columns as in `RECURRENT_PRIMITIVES`; 36 edges make eight nodes.

    Raises:
        DeriveError: if rows are no probabilities, or edges make no cell.
    """
    rows = _split("recurrent", _checked("recurrent", probabilities, len(RECURRENT_PRIMITIVES)), 1)
    nodes = _nodes(rows, RECURRENT_PRIMITIVES, edges=1)
    return RecurrentGenotype(tuple(node[0] for node in nodes), tuple(range(1, 1 + len(nodes))))


def derive_cyclic(
    normal: Sequence[Tensor],
    reduce: Sequence[Tensor],
    *,
    normal_edges: Sequence[Tensor] | None = None,
    reduce_edges: Sequence[Tensor] | None = None,
) -> Genotype:
    """Return the cells of a Cyclic-DARTS search: the rule of `derive`, on operations weighted by their edges.

    Yu et al. 2022 (arXiv 2006.10724).

    Args:
        normal: for node i, (i + 2, 8) probabilities with columns as in `CYCLIC_PRIMITIVES`, `none` last.
        reduce: the same for the reduction cell.
        normal_edges: for node i, (i + 2,) probabilities of its edges (softmaxed betas); without them all are equal.
        reduce_edges: the same for the reduction cell.

    Raises:
        DeriveError: if they are no probabilities.
    """
    cells = []
    for name, nodes, edges in (("normal", normal, normal_edges), ("reduce", reduce, reduce_edges)):
        rows = [_checked(f"{name} node {i}", node, len(CYCLIC_PRIMITIVES)) for i, node in enumerate(nodes)]
        if edges is not None:
            betas = [_checked(f"{name} edges of node {i}", beta[None], i + INPUTS)[0] for i, beta in enumerate(edges)]
            rows = [row * beta[:, None] for row, beta in zip(rows, betas, strict=True)]
        cells.append((_nodes(rows, CYCLIC_PRIMITIVES), tuple(range(INPUTS, INPUTS + len(rows)))))
    return Genotype(*cells[0], *cells[1])


def num_skips(genotype: Genotype) -> int:
    """Number of skip connections in the normal cell, where a search collapses to them."""
    return _count_skips(genotype.normal)


def _count_skips(nodes: Sequence[Node]) -> int:
    return sum(name == SKIP for node in nodes for name, _ in node)


def _nodes(rows: Sequence[Array], primitives: Sequence[str], *, edges: int = EDGES) -> tuple[Node, ...]:
    nodes = []
    for node in rows:
        strengths = np.delete(node, primitives.index("none"), axis=1)
        names = [name for name in primitives if name != "none"]
        order = np.argsort(-strengths.max(1), kind="stable")[:edges]
        nodes.append(tuple((names[strengths[source].argmax()], int(source)) for source in order))
    return tuple(nodes)


def _split(name: str, rows: Array, inputs: int) -> list[Array]:
    """Rows of each node: node i has i + inputs of them."""
    nodes: list[Array] = []
    while len(rows) >= inputs + len(nodes):
        nodes.append(rows[: inputs + len(nodes)].copy())
        rows = rows[len(nodes[-1]) :]
    if len(rows) or not nodes:
        raise DeriveError(
            f"{name} cell: {len(rows)} edges are left after {len(nodes)} nodes, expected {inputs}, {inputs + 1}, ..."
        )
    return nodes


def _checked(name: str, probabilities: Tensor, columns: int) -> Array:
    array = probabilities.detach().to("cpu").double().numpy()
    if array.ndim != 2 or array.shape[1] != columns:
        raise DeriveError(f"{name} cell: probabilities of shape {array.shape}, expected (edges, {columns})")
    wrong = np.flatnonzero(~((array >= 0).all(1) & (np.abs(array.sum(1) - 1) <= TOLERANCE)))
    if len(wrong):
        sum_ = array[wrong[0]].sum()
        raise DeriveError(
            f"{name} cell: row {wrong[0]} sums to {sum_:.3g}, expected probabilities that sum to 1; apply a softmax"
        )
    return array
