"""A Gaussian process whose kernel is a linear part plus a product over choices, each with a weight of its own.

    k(a, b) = choices * <a, b> + costs * <log costs of a, of b>
              + local * exp(-sum over dimensions of weight * [a and b choose differently] - weighted squares of log costs)

The linear parts carry how much a choice, or size as such, is worth by itself: most of what few measurements can teach, and what
reaches beyond the best of them. The local part bends that near measured networks. The weights have priors that keep them alike
unless the data say otherwise, so that twenty measurements do no harm. Everything maximises the posterior, by its exact gradient.
Before any measurement the process expects accuracy to rise with MACs, which helps until about twenty are there.
Source: Rasmussen and Williams 2006 (Gaussian Processes for Machine Learning), chapter 5.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import LinAlgError, cholesky, solve_triangular
from scipy.optimize import minimize

from search.features import Inputs, Layout
from search.regressors import Arrays, expect

MAX_TUNED = 200  # networks that the kernel is tuned on; all of them are regressed
MAX_NETWORKS = 2000  # more are thinned out: the time grows with their cube
ITERATIONS = 50
START = (0.3, 0.5, 0.5, 0.1)  # variances of the local part, of choices and of costs, and of noise; the targets have 1
CHUNK = 1024  # predictions at a time, for the caches
MACS_SLOPE = 0.5  # scores that one standard deviation of log MACs is expected to bring
PRIOR = 0.5  # standard deviation of the logarithms of weights
Matrix = NDArray[np.float64]


@dataclass(frozen=True)
class GaussianProcess:
    """A fitted process; predictions are two matrix products and one exponential."""

    mean: NDArray[np.float32]  # (features,) subtracted from the inputs
    linear: NDArray[np.float32]  # (features,) factors that make <a, b> the linear part
    local: NDArray[np.float32]  # (features,) factors that make |a - b|^2 the exponent
    points: NDArray[np.float32]  # (n, features), centred
    dual: NDArray[np.float32]  # (n,)
    slopes: NDArray[np.float32]  # (features,), what the linear parts come to; summed up once, in double precision
    whitening: NDArray[np.float32]  # (n, n), inverse of the lower Cholesky factor, transposed
    variances: NDArray[np.float64]  # of the local part, of the noise

    @staticmethod
    def supports(layout: Layout) -> str:
        return ""

    @classmethod
    def fit(cls, inputs: Inputs, targets: NDArray[np.float64], layout: Layout, seed: int) -> GaussianProcess:
        """Tune the kernel, then condition on all networks."""
        rng = np.random.default_rng(seed)
        kept = np.sort(rng.permutation(len(targets))[:MAX_NETWORKS])
        x, y = inputs[kept].astype(np.float64), targets[kept]
        mean, scale = x.mean(0), np.ones(layout.width)
        scale[layout.num_one_hot :] = 1 / np.maximum(x[:, layout.num_one_hot :].std(0), 1e-6)
        z = (x - mean) * scale
        expected = np.zeros(layout.width)
        if "macs" in layout.costs:
            expected[layout.column("macs")] = MACS_SLOPE
        y = y - z @ expected
        tuned = np.sort(rng.permutation(len(y))[:MAX_TUNED])
        group = np.array([*layout.dimension, *(len(set(layout.dimension)) + i for i in range(len(layout.costs)))])
        local, choices, costs, noise, weights = _tune(z[tuned], y[tuned], group, layout.num_one_hot)
        is_choice = np.arange(layout.width) < layout.num_one_hot
        factors = np.sqrt(np.where(is_choice, 0.5, 1.0) * weights[group])  # different choices are 2 apart, squared
        linear = np.sqrt(np.where(is_choice, choices, costs))
        gram = (z * linear) @ (z * linear).T + local * np.exp(-_squares(z * factors, z * factors))
        gram[np.diag_indices(len(y))] += noise
        lower = cholesky(gram, lower=True)
        whitening = solve_triangular(lower, np.eye(len(y)), lower=True).T
        dual = whitening @ (whitening.T @ y)
        arrays = {
            "mean": mean,
            "linear": scale * linear,
            "local": scale * factors,
            "points": x - mean,
            "dual": dual,
            "slopes": scale * (linear**2 * (z.T @ dual) + expected),
            "whitening": whitening,
        }
        small = {name: np.ascontiguousarray(array, dtype=np.float32) for name, array in arrays.items()}
        return cls(**small, variances=np.array([local, noise]))

    @classmethod
    def restore(cls, arrays: Arrays, layout: Layout) -> GaussianProcess:
        width, n = layout.width, len(arrays["dual"])
        row = (width,)
        expect(
            arrays, mean=row, linear=row, local=row, points=(n, width), dual=(n,), slopes=row, whitening=(n, n), variances=(2,)
        )
        return cls(**{name: arrays[name] for name in cls.__dataclass_fields__})

    def arrays(self) -> dict[str, NDArray[Any]]:
        return {name: getattr(self, name) for name in self.__dataclass_fields__}

    def predict(self, inputs: Inputs) -> NDArray[np.float64]:
        scores = np.empty(len(inputs))
        for start in range(0, len(inputs), CHUNK):
            z = inputs[start : start + CHUNK] - self.mean
            scores[start : start + CHUNK] = self._near(z) @ self.dual + z @ self.slopes
        return scores

    def spread(self, inputs: Inputs) -> NDArray[np.float64]:
        """Standard deviation of a measurement: noise, and what the measured networks leave open."""
        variance = np.empty(len(inputs))
        for start in range(0, len(inputs), CHUNK):
            z = inputs[start : start + CHUNK] - self.mean
            scaled = z * self.linear
            kernel = self._near(z) + scaled @ (self.points * self.linear).T
            known = ((kernel @ self.whitening) ** 2).sum(1)
            variance[start : start + CHUNK] = (scaled**2).sum(1) + self.variances[0] - known
        return np.sqrt(np.maximum(variance, 0) + self.variances[1])

    def _near(self, z: Inputs) -> NDArray[np.float32]:
        """Local part of the kernel between centred inputs and the measured networks, (n, points)."""
        return np.float32(self.variances[0]) * np.exp(-_squares(z * self.local, self.points * self.local))


def _squares(a: NDArray[Any], b: NDArray[Any]) -> NDArray[Any]:
    """Squared distances between rows, (n, m)."""
    found = a @ b.T
    found *= -2
    found += (a**2).sum(1)[:, None]
    found += (b**2).sum(1)
    return np.maximum(found, 0, out=found)


def _tune(
    z: Matrix, y: NDArray[np.float64], group: NDArray[np.int64], num_one_hot: int
) -> tuple[float, float, float, float, NDArray[np.float64]]:
    """Return the variances of the local part, of the slopes of choices and of costs, and of noise, and every group's weight."""
    n, num_groups = len(y), int(group.max()) + 1
    is_cost = np.isin(np.arange(num_groups), group[num_one_hot:])
    distances = np.empty((num_groups, n * n), dtype=np.float32)
    for g in range(num_groups):
        part = np.ascontiguousarray(z[:, group == g])
        distances[g] = _squares(part, part).ravel() * (1.0 if is_cost[g] else 0.5)
    products = [part @ part.T for part in (z[:, :num_one_hot], z[:, num_one_hot:])]
    units = [max(float(np.trace(product)) / n, 1e-6) for product in products]
    of_choices, of_costs = (product / unit for product, unit in zip(products, units, strict=True))
    # logarithms of local, choices, costs, noise and weights to start with, and how firmly they are believed
    start = np.concatenate([np.log(START), np.where(is_cost, np.log(0.05), -np.log(max(1, (~is_cost).sum())))])
    firmness = np.concatenate([np.full(4, 0.1), np.full(num_groups, PRIOR**-2)])
    eye = np.eye(n)

    def loss(theta: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        local, choices, costs, noise = np.exp(theta[:4])
        weights = np.exp(theta[4:])
        near = np.exp(-(weights.astype(np.float32) @ distances)).reshape(n, n)
        try:
            lower = cholesky(local * near + choices * of_choices + costs * of_costs + noise * eye, lower=True)
        except LinAlgError:
            return 1e10, np.zeros_like(theta)
        whitening = solve_triangular(lower, eye, lower=True)
        dual = whitening.T @ (whitening @ y)
        slope = (np.outer(dual, dual) - whitening.T @ whitening) / 2  # of the likelihood with the kernel
        near_slope = slope * near * local
        slopes = [near_slope.sum(), (slope * of_choices).sum() * choices, (slope * of_costs).sum() * costs]
        of_weights = -(distances @ near_slope.ravel().astype(np.float32)) * weights
        gradient = np.concatenate([[*slopes, np.trace(slope) * noise], of_weights])
        likelihood = -0.5 * y @ dual - np.log(np.diag(lower)).sum()
        off = theta - start
        return float(-likelihood + 0.5 * firmness @ off**2), -gradient + firmness * off

    bounds = [(-7, 4), (-12, 6), (-12, 6), (-7, 2), *[(-8, 4)] * num_groups]
    theta = minimize(loss, start, jac=True, method="L-BFGS-B", bounds=bounds, options={"maxiter": ITERATIONS}).x
    local, choices, costs, noise = np.exp(theta[:4]).tolist()
    return local, choices / units[0], costs / units[1], noise, np.exp(theta[4:])


REGRESSOR = GaussianProcess
