"""The mean of a Gaussian process, a ridge regression and a random forest: the best ranking of many noisy measurements.

On NAS-Bench-201 it ranks a little better than its best member (benchmarks/predictor_quality.py), but the forest predicts a tenth
as many networks a second as the process alone, so it is asked for by name.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from search.features import Inputs, Layout
from search.regressors import Arrays, Regressor, RegressorKind
from search.regressors.gaussian_process import GaussianProcess
from search.regressors.random_forest import RandomForest
from search.regressors.ridge import Ridge

MEMBERS: dict[str, RegressorKind] = {"gaussian_process": GaussianProcess, "ridge": Ridge, "random_forest": RandomForest}


@dataclass(frozen=True)
class Blend:
    """The mean of a regression of each kind."""

    members: tuple[Regressor, ...]  # in the order of MEMBERS

    @staticmethod
    def supports(layout: Layout) -> str:
        return ""

    @classmethod
    def fit(cls, inputs: Inputs, targets: NDArray[np.float64], layout: Layout, seed: int) -> Blend:
        return cls(tuple(kind.fit(inputs, targets, layout, seed) for kind in MEMBERS.values()))

    @classmethod
    def restore(cls, arrays: Arrays, layout: Layout) -> Blend:
        members = []
        for name, kind in MEMBERS.items():
            own = {key.partition(".")[2]: array for key, array in arrays.items() if key.startswith(f"{name}.")}
            members.append(kind.restore(own, layout))
        return cls(tuple(members))

    def arrays(self) -> dict[str, NDArray[Any]]:
        named = zip(MEMBERS, self.members, strict=True)
        return {f"{name}.{key}": array for name, member in named for key, array in member.arrays().items()}

    def predict(self, inputs: Inputs) -> NDArray[np.float64]:
        return np.mean([member.predict(inputs) for member in self.members], axis=0)

    def spread(self, inputs: Inputs) -> NDArray[np.float64]:
        """What the members claim, and where they disagree."""
        claimed = np.mean([member.spread(inputs) ** 2 for member in self.members], axis=0)
        return np.asarray(np.sqrt(claimed + np.var([member.predict(inputs) for member in self.members], axis=0)))


REGRESSOR = Blend
