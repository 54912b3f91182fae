"""Which candidates are worth keeping when several things are to be small."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def non_dominated(points: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Tell which rows no other row dominates; all columns are minimised.

    A row dominates another if it is no larger in every column and smaller in one. Equal rows do not dominate each other.
    Rows with NaN are never kept. Sorting first lets a row be compared with the rows kept so far only.

    Args:
        points: (n, m).
    Returns:
        (n,) mask.
    """
    keep = np.zeros(len(points), dtype=bool)
    usable = np.flatnonzero(~np.isnan(points).any(1))
    order = usable[np.lexsort(points[usable].T[::-1])]
    front = np.empty((0, points.shape[1]))
    for index in order:
        row = points[index]
        dominated = ((front <= row).all(1) & (front < row).any(1)).any()
        if not dominated:
            keep[index] = True
            front = np.vstack([front, row])
    return keep
