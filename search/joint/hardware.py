"""Expected latency of cells that are still undecided, and what it adds to the loss of the alphas.

Cai et al. 2019 (ProxylessNAS, arXiv 1812.00332), section 3.2.1: the expectation of a block's latency over the probabilities of
its operations, E = sum of p x F, is differentiable, and that of a network is the sum over its blocks. There a block is one choice
and every block is in the network. Cells of DARTS differ in two ways, which the expectation takes over from how they are derived:

- `none` is never derived, so that an edge's operations count with q = p / (1 - p(none)). With p itself the term could be lowered
  by raising `none`, and the derived network would not be faster at all.
- Each node keeps two of its n edges. Which ones depends on maxima, which have no useful gradient; here every pair is equally
  probable, whence an edge counts with 2 / n: E of a node = sum over edges of 2 / n x sum of q x F. Uniform alphas thus predict
  the mean latency of all cells of the space, and after the search the expectation is off by as much as the strong edges'
  operations differ from the others'.

NAS-Bench-201 is as ProxylessNAS has it: every edge is in the cell. `none` is one of its operations where it may be derived.

F is what the device's table says of the operation in the network to be derived, at its width, stride and resolution, summed over
all cells of a kind; what every network has besides (stem, inputs of cells, sums, classifier) is added.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from latency.cost import AdditiveCost
from latency.table import LatencyTable
from latency.table_file import read_table_file
from ofa.errors import OfaError
from ofa.space import SearchSpace
from ofa.spaces import get_space
from search.joint.relaxation import Probabilities, Relaxation


class ExpectedCellLatency:
    """Expected latency of cells, in the unit of the cost model."""

    def __init__(self, relaxed: Relaxation, model: AdditiveCost) -> None:
        """Sum up the values of all blocks that the same choices decide.

        Args:
            relaxed: what the probabilities are of.
            model: cost of the network to be derived: the same cells in a network of any size.
        Raises:
            OfaError: if the model is of other cells, or has no value for some block.
        """
        space, values = model.space, model.block_values
        if _choices(space) != _choices(relaxed.space):
            raise OfaError(f"{model.quantity} of space {space.name}, expected one of the cells searched: {relaxed.space.name}")
        if missing := int(np.isnan(values).sum()):
            raise OfaError(f"the {model.quantity} has no value for {missing} block(s) of {space.name}; an expectation needs all")
        self._fixed, self._terms = float(model.offset), list[_Term]()
        tables: dict[tuple[int, ...], NDArray[np.float64]] = {}
        for columns, ids in space.slot_tables:
            chosen = tuple(c for c in columns if space.dimensions[c].name != "resolution")  # which has one option
            table = values[ids].reshape(space.num_options[list(chosen)])
            tables[chosen] = tables.get(chosen, 0.0) + table
        for columns, table in tables.items():
            if columns:
                names = [space.dimensions[column].name for column in columns]
                self._terms.append(_term(relaxed, space, names, torch.from_numpy(table)))
            else:
                self._fixed += float(table)

    def __call__(self, chosen: Probabilities) -> Tensor:
        """Return the expectation, a scalar with gradients to the probabilities."""
        terms = [term(chosen) for term in self._terms]
        return torch.stack(terms).sum() + self._fixed


class LatencyTerm:
    """What latency adds to the loss of the alphas: weight x max(0, E / target - 1).

    ProxylessNAS adds weight x E; relative to a target and only above it, the term leaves the search alone once the target is
    met, and one weight serves devices of any speed.
    """

    def __init__(self, relaxed: Relaxation, model: AdditiveCost, target: float, weight: float) -> None:
        """Make it of a target in the unit of the model."""
        self.expected, self._target, self._weight = ExpectedCellLatency(relaxed, model), target, weight
        values = np.append(model.block_values, model.offset)
        self.fingerprint = hashlib.sha256(repr((model.space.name, values.tolist())).encode()).hexdigest()

    def __call__(self, chosen: Probabilities) -> Tensor:
        """Return the term, a scalar with gradients to the probabilities."""
        return self._weight * (self.expected(chosen) / self._target - 1).clamp(min=0)


def open_table(path: Path) -> LatencyTable:
    """Read a latency table of whatever cells, in a network of whatever size and classes, it is of.

    Raises:
        OfaError: if the file is missing or damaged.
    """
    value = read_table_file(path)
    heads = {entry.block.get("out_channels") for entry in value.entries if entry.block.get("kind") == "linear"}
    classes = next((found for found in heads if isinstance(found, int) and found > 0), None)
    return LatencyTable.of_file(value, get_space(value.space, num_classes=classes), path)


class _Term(Protocol):
    def __call__(self, chosen: Probabilities) -> Tensor: ...


@dataclass(frozen=True)
class _NodeTerm:
    """A node that keeps one of its pairs of edges, all of them equally probable."""

    cell: str
    columns: list[int]  # of the probabilities, for each option of a dimension
    pairs: Tensor  # (pairs, 2) rows of the probabilities
    table: Tensor  # (pairs, operations, operations)

    def __call__(self, chosen: Probabilities) -> Tensor:
        found = chosen[self.cell][:, self.columns]
        found = found / found.sum(1, keepdim=True)
        first, second = found[self.pairs[:, 0]], found[self.pairs[:, 1]]
        return torch.einsum("pi,pij,pj->", first, self.table.to(found), second) / len(self.pairs)


@dataclass(frozen=True)
class _EdgesTerm:
    """Edges that are in the cell, each with any of its operations."""

    cell: str
    columns: list[int]
    rows: list[int]
    table: Tensor  # an axis of operations for each edge
    derived: Tensor  # (operations,) 1, or 0 for `none` where it is never derived

    def __call__(self, chosen: Probabilities) -> Tensor:
        found = chosen[self.cell][:, self.columns] * self.derived.to(chosen[self.cell])
        found = found / found.sum(1, keepdim=True)
        value = self.table.to(found)
        for row in reversed(self.rows):
            value = value @ found[row]  # sums over the last axis
        return value


def _term(relaxed: Relaxation, space: SearchSpace, names: list[str], table: Tensor) -> _Term:
    """Return the term of blocks that some dimensions decide: "normal.node3.inputs", ".op1" and ".op2", or "node3.from1", ..."""
    options = [space.dimensions[space.column[name]].options for name in names]
    columns = [relaxed.operations.index(str(operation)) for operation in options[-1]]
    if not names[0].endswith(".inputs"):
        (cell,) = relaxed.edges
        wires = [name.removeprefix("node").split(".from") for name in names]
        rows = [relaxed.edges[cell].index((int(to), int(source))) for to, source in wires]
        derived = torch.tensor([float(relaxed.derives_none or operation != "none") for operation in options[-1]])
        return _EdgesTerm(cell, columns, rows, table, derived)
    cell, node, _ = names[0].split(".")
    to = int(node.removeprefix("node"))
    pairs = [[relaxed.edges[cell].index((to, int(source))) for source in str(option).split()] for option in options[0]]
    return _NodeTerm(cell, columns, torch.tensor(pairs), table)


def _choices(space: SearchSpace) -> list[tuple[str, tuple[object, ...]]]:
    return [(d.name, d.options) for d in space.dimensions if d.name != "resolution"]
