"""Ridge regression with a weight for every pair of choices as well, for spaces of few dimensions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from search.features import Inputs, Layout
from search.regressors import Arrays
from search.regressors.ridge import Ridge

MAX_PAIRS = 2000


@dataclass(frozen=True)
class RidgePairs:
    """A ridge regression on the inputs and on products of one-hot choices of two dimensions."""

    ridge: Ridge
    pairs: tuple[NDArray[np.int64], NDArray[np.int64]]

    @staticmethod
    def supports(layout: Layout) -> str:
        count = len(_pairs(layout)[0])
        return f"it has {count} pairs of choices, at most {MAX_PAIRS} make sense" if count > MAX_PAIRS else ""

    @classmethod
    def fit(cls, inputs: Inputs, targets: NDArray[np.float64], layout: Layout, seed: int) -> RidgePairs:
        pairs = _pairs(layout)
        return cls(Ridge.fit(_expand(inputs, pairs), targets, _expanded(layout), seed), pairs)

    @classmethod
    def restore(cls, arrays: Arrays, layout: Layout) -> RidgePairs:
        return cls(Ridge.restore(arrays, _expanded(layout)), _pairs(layout))

    def arrays(self) -> dict[str, NDArray[Any]]:
        return self.ridge.arrays()

    def predict(self, inputs: Inputs) -> NDArray[np.float64]:
        return self.ridge.predict(_expand(inputs, self.pairs))

    def spread(self, inputs: Inputs) -> NDArray[np.float64]:
        return self.ridge.spread(_expand(inputs, self.pairs))


def _pairs(layout: Layout) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return pairs of one-hot columns of two different dimensions."""
    dimension = np.array(layout.dimension)
    first, second = np.nonzero(np.triu(dimension[:, None] != dimension, 1))
    return first, second


def _expanded(layout: Layout) -> Layout:
    return Layout(layout.dimension, (*layout.costs, *["pair"] * len(_pairs(layout)[0])))


def _expand(inputs: Inputs, pairs: tuple[NDArray[np.int64], NDArray[np.int64]]) -> Inputs:
    return np.concatenate([inputs, inputs[:, pairs[0]] * inputs[:, pairs[1]]], axis=1)


REGRESSOR = RidgePairs
