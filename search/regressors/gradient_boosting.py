"""Gradient-boosted trees of depth 3; the spread is that of several, each grown on other subsamples. Source: Friedman 2002."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from search.features import Inputs, Layout
from search.regressors import Arrays, expect
from search.trees import Trees

MEMBERS = 3
OPTIONS = {"n_estimators": 150, "max_depth": 3, "learning_rate": 0.08, "subsample": 0.7, "max_features": 0.4}


@dataclass(frozen=True)
class GradientBoosting:
    """The mean of several sums of trees."""

    trees: Trees
    intercept: float

    @staticmethod
    def supports(layout: Layout) -> str:
        return ""

    @classmethod
    def fit(cls, inputs: Inputs, targets: NDArray[np.float64], layout: Layout, seed: int) -> GradientBoosting:
        from sklearn.ensemble import GradientBoostingRegressor

        members = [GradientBoostingRegressor(**OPTIONS, random_state=seed + m).fit(inputs, targets) for m in range(MEMBERS)]
        return cls(Trees.of([tree.tree_ for member in members for tree in member.estimators_[:, 0]]), float(targets.mean()))

    @classmethod
    def restore(cls, arrays: Arrays, layout: Layout) -> GradientBoosting:
        expect(arrays, intercept=(1,))
        trees = Trees.restore(arrays, layout.width)
        if len(trees.roots) % MEMBERS:
            raise ValueError(f"{len(trees.roots)} trees, expected a multiple of {MEMBERS}")
        return cls(trees, float(arrays["intercept"][0]))

    def arrays(self) -> dict[str, NDArray[Any]]:
        return self.trees.arrays() | {"intercept": np.array([self.intercept])}

    def predict(self, inputs: Inputs) -> NDArray[np.float64]:
        return self._members(inputs).mean(1)

    def spread(self, inputs: Inputs) -> NDArray[np.float64]:
        return self._members(inputs).std(1)

    def _members(self, inputs: Inputs) -> NDArray[np.float64]:
        sums = self.trees.values(inputs).reshape(len(inputs), MEMBERS, -1).sum(2)  # (n, members)
        return self.intercept + OPTIONS["learning_rate"] * sums


REGRESSOR = GradientBoosting
