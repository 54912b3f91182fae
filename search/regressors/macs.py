"""A straight line in the logarithm of MACs: what every other kind has to beat."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from search.features import Inputs, Layout
from search.regressors import Arrays, expect


@dataclass(frozen=True)
class MacsLine:
    """Score = slope * log(MACs) + intercept."""

    slope: float
    intercept: float
    column: int

    @staticmethod
    def supports(layout: Layout) -> str:
        return "" if "macs" in layout.costs else "the MACs of this space are unknown"

    @classmethod
    def fit(cls, inputs: Inputs, targets: NDArray[np.float64], layout: Layout, seed: int) -> MacsLine:
        """Fit by least squares."""
        column = layout.column("macs")
        assert column is not None
        x = inputs[:, column].astype(np.float64)
        centred = x - x.mean()
        slope = float(centred @ targets / max(centred @ centred, 1e-12))
        return cls(slope, float(targets.mean() - slope * x.mean()), column)

    @classmethod
    def restore(cls, arrays: Arrays, layout: Layout) -> MacsLine:
        expect(arrays, line=(2,))
        column = layout.column("macs")
        if column is None:
            raise ValueError("the MACs of this space are unknown")
        slope, intercept = arrays["line"].tolist()
        return cls(slope, intercept, column)

    def arrays(self) -> dict[str, NDArray[Any]]:
        return {"line": np.array([self.slope, self.intercept])}

    def predict(self, inputs: Inputs) -> NDArray[np.float64]:
        return self.slope * inputs[:, self.column].astype(np.float64) + self.intercept

    def spread(self, inputs: Inputs) -> NDArray[np.float64]:
        return np.zeros(len(inputs))


REGRESSOR = MacsLine
