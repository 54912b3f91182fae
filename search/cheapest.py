"""The cheapest network of a space, exactly: what proves that a limit cannot be met.

An additive cost is a sum of small tables, each of a few choices. Choices are eliminated one after the other: all tables that
depend on a choice are added up, and the minimum over its options is a new table of what is left (Bertele and Brioschi 1972,
nonserial dynamic programming). In the spaces here a block depends on the resolution, its stage's depth and its own choices, so no
table grows beyond some thousand entries, and 1e19 networks take milliseconds.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linprog

from latency.cost import AdditiveCost
from ofa.space import Population, SearchSpace

Table = tuple[tuple[int, ...], NDArray[np.float64]]  # columns of the population, ascending, and one axis for each
CUTS = 40  # cheapest networks that a proof may take
TOLERANCE = 1e-9  # of sums of some dozen numbers
LARGEST = 2**22  # entries of a table; a space that needs more is not one of few dependencies


def cost_tables(space: SearchSpace, cost: AdditiveCost) -> list[Table]:
    """Return the tables whose sum, with the cost's offset, is the cost of a network; unknown blocks cost infinitely much."""
    values = np.nan_to_num(cost.block_values, nan=np.inf)
    found = []
    for columns, ids in space.slot_tables:
        distinct = sorted(set(columns))
        grid = dict(zip(distinct, np.ix_(*(range(space.num_options[c]) for c in distinct)), strict=True))
        found.append((tuple(distinct), values[ids[tuple(grid[c] for c in columns)]] if columns else values[ids].reshape(())))
    return found


def cheapest(space: SearchSpace, tables: Sequence[Table]) -> tuple[float, Population] | None:
    """Return the smallest sum of the tables and a network that has it, (1, dimensions); None if that takes tables too large."""
    left = list(tables)
    steps: list[tuple[int, tuple[int, ...], NDArray[np.int64]]] = []
    remaining = set(range(len(space.dimensions)))
    while remaining:
        column = min(sorted(remaining), key=lambda c: _size(space, _columns(t for t in left if c in t[0])))
        involved = [table for table in left if column in table[0]]
        columns = _columns(involved)
        if _size(space, columns) > LARGEST:
            return None
        left = [table for table in left if column not in table[0]]
        if involved:
            joint = _sum(space, columns, involved)
            axis = columns.index(column)
            others = tuple(c for c in columns if c != column)
            steps.append((column, others, joint.argmin(axis)))
            left.append((others, joint.min(axis)))
        remaining.discard(column)
    row = np.zeros(len(space.dimensions), dtype=np.int16)
    for column, others, best in reversed(steps):
        row[column] = best[tuple(row[c] for c in others)]
    return float(sum(table for _, table in left)), space.canonical(row[None])


def _columns(tables: Iterable[Table]) -> tuple[int, ...]:
    return tuple(sorted({column for columns, _ in tables for column in columns}))


def _size(space: SearchSpace, columns: Sequence[int]) -> int:
    return math.prod(int(space.num_options[c]) for c in columns)


def _sum(space: SearchSpace, columns: tuple[int, ...], tables: Sequence[Table]) -> NDArray[np.float64]:
    total = np.zeros([space.num_options[c] for c in columns])
    for own, table in tables:
        total += table.reshape([space.num_options[c] if c in own else 1 for c in columns])
    return total


def exclude_each_other(space: SearchSpace, costs: Sequence[tuple[AdditiveCost, float]]) -> bool:
    """Tell whether it is proven that no network keeps all of several costs below their bounds.

    If some weighted mean of costs, each as a share of its bound, is above 1 for every network, then no network has all shares at
    or below 1. The weights that prove most are found by cutting planes: every cheapest network is one (Kelley 1960). False says
    nothing: choices are whole, and a proof by weights may not exist.

    Args:
        costs: cost models with the bounds on them, above their offsets.
    """
    shares = [[(columns, table / (bound - cost.offset)) for columns, table in cost_tables(space, cost)] for cost, bound in costs]
    rows: list[NDArray[np.float64]] = []
    weights = np.full(len(costs), 1 / len(costs))
    for _ in range(CUTS):
        weighted = [(c, w * t) for w, tables in zip(weights, shares, strict=True) for c, t in tables if w > 0]
        found = cheapest(space, weighted)
        if found is None:
            return False
        least, network = found
        if least > 1 + TOLERANCE:
            return True
        rows.append(np.array([_at(tables, network[0]) for tables in shares]))
        # maximise t subject to t <= weights . row for every row so far, weights on the simplex
        count = len(costs)
        best = linprog(
            np.append(np.zeros(count), -1.0),
            A_ub=np.column_stack([-np.array(rows), np.ones(len(rows))]),
            b_ub=np.zeros(len(rows)),
            A_eq=np.append(np.ones(count), 0.0)[None],
            b_eq=[1.0],
            bounds=[(0, 1)] * count + [(None, None)],
        )
        if not best.success or -best.fun <= 1:
            return False
        weights = best.x[:count]
    return False


def _at(tables: Sequence[Table], row: NDArray[np.int16]) -> float:
    return float(sum(table[tuple(row[c] for c in columns)] for columns, table in tables))
