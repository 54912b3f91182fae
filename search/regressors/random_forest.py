"""A random forest; its spread is that of its trees. Source: Breiman 2001."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from search.features import Inputs, Layout
from search.regressors import Arrays
from search.trees import Trees

TREES = 200
TRIED = 0.4  # share of the inputs that a split chooses from


@dataclass(frozen=True)
class RandomForest:
    """The mean of trees, each grown on a bootstrap sample."""

    trees: Trees

    @staticmethod
    def supports(layout: Layout) -> str:
        return ""

    @classmethod
    def fit(cls, inputs: Inputs, targets: NDArray[np.float64], layout: Layout, seed: int) -> RandomForest:
        from sklearn.ensemble import RandomForestRegressor

        forest = RandomForestRegressor(TREES, max_features=TRIED, random_state=seed).fit(inputs, targets)
        return cls(Trees.of([tree.tree_ for tree in forest.estimators_]))

    @classmethod
    def restore(cls, arrays: Arrays, layout: Layout) -> RandomForest:
        return cls(Trees.restore(arrays, layout.width))

    def arrays(self) -> dict[str, NDArray[Any]]:
        return self.trees.arrays()

    def predict(self, inputs: Inputs) -> NDArray[np.float64]:
        return self.trees.values(inputs).mean(1)

    def spread(self, inputs: Inputs) -> NDArray[np.float64]:
        return self.trees.values(inputs).std(1)


REGRESSOR = RandomForest
