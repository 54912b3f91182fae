"""Ridge regression on standardised inputs; its penalty is chosen by leave-one-out error, its spread is the Bayesian one.

Sources: Hoerl and Kennard 1970; the closed form of leave-one-out residuals is Allen's PRESS (1974).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from search.features import Inputs, Layout
from search.regressors import Arrays, expect

PENALTIES = np.logspace(-2, 5, 22)
TRUSTS = (1.0, 4.0, 16.0)  # how much lighter, squared, costs are penalised than choices: one column says what all of them say


@dataclass(frozen=True)
class Ridge:
    """A linear model of inputs minus `mean`, times `scale`."""

    mean: NDArray[np.float32]  # (features,)
    scale: NDArray[np.float32]  # (features,)
    weights: NDArray[np.float32]  # (features,)
    explained: NDArray[np.float32]  # (features, k): what the data say about the weights, for the spread
    numbers: NDArray[np.float64]  # intercept, penalty, standard deviation of the noise

    @staticmethod
    def supports(layout: Layout) -> str:
        return ""

    @classmethod
    def fit(cls, inputs: Inputs, targets: NDArray[np.float64], layout: Layout, seed: int) -> Ridge:
        """Fit with the penalty of the smallest leave-one-out error."""
        x = inputs.astype(np.float64)
        mean, scale = x.mean(0), x.std(0)
        scale[scale < 1e-6] = np.inf  # a column that never changes says nothing
        best: tuple[float, float, float] = (np.inf, 0, 0)
        for trust in TRUSTS:
            factors = np.where(np.arange(layout.width) < layout.num_one_hot, 1, trust) / scale
            penalty, error = _best_penalty((x - mean) * factors, targets)
            best = min(best, (error, penalty, trust))
        error, penalty, trust = best
        factors = np.where(np.arange(layout.width) < layout.num_one_hot, 1, trust) / scale
        u, s, vt = np.linalg.svd((x - mean) * factors, full_matrices=False)
        weights = vt.T @ (s / (s**2 + penalty) * (u.T @ (targets - targets.mean())))
        explained = vt.T * (s / np.sqrt(s**2 + penalty))
        small = dict(zip(("mean", "scale", "weights", "explained"), (mean, factors, weights, explained), strict=True))
        numbers = np.array([targets.mean(), penalty, error**0.5])
        return cls(**{name: array.astype(np.float32) for name, array in small.items()}, numbers=numbers)

    @classmethod
    def restore(cls, arrays: Arrays, layout: Layout) -> Ridge:
        width = layout.width
        expect(arrays, mean=(width,), scale=(width,), weights=(width,), explained=(width, None), numbers=(3,))
        return cls(**{name: arrays[name] for name in cls.__dataclass_fields__})

    def arrays(self) -> dict[str, NDArray[Any]]:
        return {name: getattr(self, name) for name in self.__dataclass_fields__}

    def predict(self, inputs: Inputs) -> NDArray[np.float64]:
        slopes = self.weights * self.scale
        return (inputs @ slopes).astype(np.float64) + float(self.numbers[0] - self.mean.astype(np.float64) @ slopes)

    def spread(self, inputs: Inputs) -> NDArray[np.float64]:
        """Noise, and what the data leave open about the weights: large far from the measured networks."""
        _, penalty, noise = self.numbers
        z = (inputs - self.mean) * self.scale
        unknown = np.maximum((z**2).sum(1) - ((z @ self.explained) ** 2).sum(1), 0) / penalty
        return np.asarray(noise * np.sqrt(1 + unknown), dtype=np.float64)


def _best_penalty(z: NDArray[np.float64], targets: NDArray[np.float64]) -> tuple[float, float]:
    """Return the penalty of the smallest leave-one-out error, and that error (squared, mean)."""
    u, s, _ = np.linalg.svd(z, full_matrices=False)
    n, centred = len(targets), targets - targets.mean()
    kept = s**2 / (s**2 + PENALTIES[:, None])  # (penalties, k)
    residual = centred - (kept * (u.T @ centred)) @ u.T
    errors = ((residual / np.maximum(1 - 1 / n - kept @ (u**2).T, 1e-6)) ** 2).mean(1)
    best = int(errors.argmin())
    return float(PENALTIES[best]), float(errors[best])


REGRESSOR = Ridge
