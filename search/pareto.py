"""Points with several objectives, all of them to be small: who dominates whom, how crowded a front is, how much it covers."""

from __future__ import annotations

from bisect import bisect_left, bisect_right

import numpy as np
from numpy.typing import NDArray

from ofa.errors import OfaError

Floats = NDArray[np.float64]
ROWS_AT_A_TIME = 512  # of a table of comparisons, so that it stays in the caches


def non_dominated(points: Floats) -> NDArray[np.bool_]:
    """Tell which rows no other row dominates; all columns are minimised.

    A row dominates another if it is no larger in every column and smaller in one. Equal rows do not dominate each other.
    Rows with NaN are never kept.

    Args:
        points: (n, m).
    Returns:
        (n,) mask.
    """
    keep = np.zeros(len(points), dtype=bool)
    usable = np.flatnonzero(~np.isnan(points).any(1))
    rows, place = _distinct(points[usable])
    keep[usable] = ~_dominated(rows)[place]
    return keep


def fronts(points: Floats) -> NDArray[np.int64]:
    """Rank rows by non-dominated sorting: 0 for the front, 1 for the front of the others, and so on.

    A row's rank is the length of the longest chain of rows that dominate each other and it. Rows with NaN share the last rank.

    Args:
        points: (n, m).
    Returns:
        (n,) ranks, without gaps.
    Source: Deb et al. 2002 (IEEE TEVC 6(2)), section III.A; for two columns the longest chain by patience sorting.
    """
    usable = ~np.isnan(points).any(1)
    rows, place = _distinct(points[usable])
    found = _ranks(rows)
    ranks = np.full(len(points), found.max(initial=-1) + 1)
    ranks[usable] = found[place]
    return ranks


def constrained_fronts(objectives: Floats, violation: Floats) -> NDArray[np.int64]:
    """Rank by Deb's rules: those that meet the limits by their fronts, behind them the others by how far they miss them.

    An architecture that misses the limits needs no objectives. One that meets them but has none (its evaluation failed) is last.

    Args:
        objectives: (n, m), all to be small; NaN where unknown.
        violation: (n,), 0 = all limits are met; NaN counts as infinite.
    Returns:
        (n,) ranks, without gaps; with a single objective the rank of the value.
    Source: Deb 2000 (CMAME 186), section 3; Deb et al. 2002, section VI.
    """
    missed = np.where(np.isnan(violation), np.inf, violation)
    missed = np.where((missed <= 0) & np.isnan(objectives).any(1), np.inf, np.maximum(missed, 0))
    feasible = missed == 0
    ranks = np.empty(len(objectives), dtype=np.int64)
    ranks[feasible] = fronts(objectives[feasible])
    ranks[~feasible] = np.unique(missed[~feasible], return_inverse=True)[1] + ranks[feasible].max(initial=-1) + 1
    return ranks


def require_single(strategy: str, objectives: Floats) -> None:
    """Refuse more than one objective, for a strategy that follows one.

    Raises:
        OfaError: naming strategies that take several.
    """
    if objectives.ndim != 2 or objectives.shape[1] != 1:
        raise OfaError(f"strategy {strategy} takes 1 objective, got {objectives.shape[-1]}; use nsga2 or random")


def crowding(points: Floats, ranks: NDArray[np.int64] | None = None) -> Floats:
    """Return how far apart every row's neighbours are, (n,); infinite for the ends of a front.

    Args:
        points: (n, m), without NaN.
        ranks: (n,), the front of each row; None = all are of one.
    Source: Deb et al. 2002, section III.B: the sum over objectives of the gap between both neighbours, in shares of the range.
    """
    distance = np.zeros(len(points))
    if not len(points):
        return distance
    ranks = np.zeros(len(points), dtype=np.int64) if ranks is None else ranks
    for column in points.T:
        order = np.lexsort((column, ranks))
        values, groups = column[order], ranks[order]
        starts = np.flatnonzero(np.concatenate([[True], groups[1:] != groups[:-1]]))
        ends = np.append(starts[1:], len(values)) - 1
        spread = np.repeat(values[ends] - values[starts], ends - starts + 1)
        gap = np.zeros(len(values))
        gap[1:-1] = values[2:] - values[:-2]
        gap[starts] = gap[ends] = 0  # these would reach into another front
        share = np.divide(gap, spread, out=np.zeros(len(values)), where=spread > 0)
        share[starts] = share[ends] = np.inf
        distance[order] += share
    return distance


def hypervolume(points: Floats, reference: Floats) -> float:
    """Return the exact volume that is dominated by some row and lies below the reference point.

    Rows that are not below the reference in every column, and rows with NaN, count nothing.

    Args:
        points: (n, m), all columns minimised.
        reference: (m,).
    Raises:
        ValueError: if the reference has another number of values than a row.
    Source: a sweep for two and three columns; above, every point's own share behind the points that are better in the last
        column, which leaves a problem of one column less (While et al. 2012, IEEE TEVC 16(1), the WFG algorithm).
    """
    reference = np.asarray(reference, dtype=np.float64)
    points = np.asarray(points, dtype=np.float64).reshape(-1, len(reference)) if not np.size(points) else np.asarray(points)
    if points.ndim != 2 or points.shape[1] != len(reference):
        raise ValueError(f"points are {points.shape}, the reference has {len(reference)} value(s); expected one for each column")
    return _volume(points[(points < reference).all(1)], reference)


# -- on distinct rows in lexicographic order: a row can only be dominated by an earlier one -----------------------------------


def _distinct(points: Floats) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
    """Return the distinct rows in lexicographic order, as ranks of their values, and for every row its place there.

    Ranks order like the values, and small integers compare faster.
    """
    if not points.size:  # rows without columns are all the same
        return np.zeros((min(len(points), 1), points.shape[1]), np.int32), np.zeros(len(points), np.int64)
    values = np.column_stack([np.unique(column, return_inverse=True)[1].reshape(-1) for column in points.T]).astype(np.int32)
    order = np.lexsort(values.T[::-1])
    ordered = values[order]
    new = np.concatenate([[True], (ordered[1:] != ordered[:-1]).any(1)])
    place = np.empty(len(points), dtype=np.int64)
    place[order] = np.cumsum(new) - 1
    return ordered[new], place


def _dominated(rows: NDArray[np.int32]) -> NDArray[np.bool_]:
    n, m = rows.shape
    if m < 2 or n < 2:
        return np.arange(n) > 0
    if m == 2:
        dominated = np.zeros(n, dtype=bool)
        dominated[1:] = rows[1:, 1] >= np.minimum.accumulate(rows[:-1, 1])
        return dominated
    return _dominated_of_three(rows) if m == 3 else _dominated_of_many(rows)


def _dominated_of_three(rows: NDArray[np.int32]) -> NDArray[np.bool_]:
    """Merge sort by the second column; where two halves meet, the running minimum of the third in the left judges the right."""
    n = len(rows)
    length = 1 << (n - 1).bit_length()
    beyond = np.iinfo(np.int32).max
    second, third = (np.concatenate([rows[:, c], np.full(length - n, beyond, np.int32)]) for c in (1, 2))
    row = np.arange(length)
    dominated = np.zeros(length, dtype=bool)
    half = 1
    while half < length:
        shape = (-1, 2 * half)
        order = np.argsort(second.reshape(shape), axis=1, kind="stable")  # merges two sorted runs; of equals the left come first
        second, third, row = (np.take_along_axis(a.reshape(shape), order, 1) for a in (second, third, row))
        left = order < half
        lowest = np.minimum.accumulate(np.where(left, third, beyond), axis=1)
        dominated[row[~left & (lowest <= third)]] = True
        half *= 2
    return dominated[:n]


def _dominated_of_many(rows: NDArray[np.int32]) -> NDArray[np.bool_]:
    """Compare block after block with the rows that were kept so far and with itself."""
    dominated = np.zeros(len(rows), dtype=bool)
    kept = np.empty((rows.shape[1], 0), dtype=np.int32)
    for start in range(0, len(rows), ROWS_AT_A_TIME):
        block = rows[start : start + ROWS_AT_A_TIME].T
        alive = np.flatnonzero(~_covered(kept, block).any(0))
        inside = np.triu(_covered(block[:, alive], block[:, alive]), 1).any(0)
        dominated[start : start + ROWS_AT_A_TIME] = True
        dominated[start + alive[~inside]] = False
        kept = np.concatenate([kept, block[:, alive[~inside]]], axis=1)
    return dominated


def _covered(earlier: NDArray[np.int32], later: NDArray[np.int32]) -> NDArray[np.bool_]:
    """Tell which of (m, a) earlier columns are nowhere larger than which of (m, b) later ones, (a, b); row 0 is sorted."""
    covered = earlier[1][:, None] <= later[1]
    for a, b in zip(earlier[2:], later[2:], strict=True):
        covered &= a[:, None] <= b
    return covered


def _ranks(rows: NDArray[np.int32]) -> NDArray[np.int64]:
    n, m = rows.shape
    ranks = np.arange(n)
    if m == 2:
        ends: list[int] = []  # ends[r] = smallest second column of a row of rank r
        for i, value in enumerate(rows[:, 1].tolist()):
            rank = bisect_right(ends, value)
            ends[rank : rank + 1] = [value]
            ranks[i] = rank
    elif m > 2:
        columns = np.ascontiguousarray(rows.T[1:])
        # one row at a time: its rank needs those of all earlier rows, and there may be as many fronts as rows
        for i in range(n):
            above = (columns[:, :i] <= columns[:, i : i + 1]).all(0)
            ranks[i] = ranks[:i][above].max(initial=-1) + 1
    return ranks


# -- volumes of points that are all below the reference -------------------------------------------------------------------


def _volume(points: Floats, reference: Floats) -> float:
    points = np.unique(points[non_dominated(points)], axis=0)
    if not len(points):
        return 0.0
    m = len(reference)
    if m == 1:
        return float(reference[0] - points[0, 0])
    if m == 2:  # sorted by the first column, so the second falls
        upper = np.concatenate([reference[1:], points[:-1, 1]])
        return float(((reference[0] - points[:, 0]) * (upper - points[:, 1])).sum())
    points = points[np.argsort(points[:, -1], kind="stable")]
    if m == 3:
        return _sweep(points.tolist(), reference.tolist())
    volume = 0.0
    for i, point in enumerate(points):
        limited = np.maximum(points[:i, :-1], point[:-1])  # what the earlier points, better in the last column, take away
        own = float(np.prod(reference[:-1] - point[:-1])) - _volume(limited, reference[:-1])
        volume += own * float(reference[-1] - point[-1])
    return volume


def _sweep(points: list[list[float]], reference: list[float]) -> float:
    """Move up the third column and keep the area that is covered so far, bounded by a staircase.

    Every point adds to the area: an earlier one that is no larger in the first two columns would dominate it.
    """
    limit_x, limit_y, limit_z = reference
    xs: list[float] = []  # of the steps, rising
    ys: list[float] = []  # falling
    volume = area = 0.0
    for i, (x, y, z) in enumerate(points):
        first = last = bisect_left(xs, x)
        top, left = (ys[first - 1] if first else limit_y), x
        while last < len(xs) and ys[last] >= y:  # steps that the new one swallows
            area += (xs[last] - left) * (top - y)
            left, top = xs[last], ys[last]
            last += 1
        right = xs[last] if last < len(xs) else limit_x
        area += (right - left) * (top - y)
        xs[first:last], ys[first:last] = [x], [y]
        above = points[i + 1][2] if i + 1 < len(points) else limit_z
        volume += area * (above - z)
    return volume
