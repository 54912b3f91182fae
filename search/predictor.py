"""Accuracy predictor: from measured subnets to all others, with its rank correlation on subnets it was not fitted to."""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import kendalltau
from sklearn.exceptions import ConvergenceWarning
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import RBF, ConstantKernel, WhiteKernel
from sklearn.linear_model import LinearRegression, RidgeCV
from sklearn.model_selection import KFold
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import FunctionTransformer, StandardScaler

from latency.cost import CountCost
from ofa.space import Population, SearchSpace

FOLDS = 5


class Features:
    """Encodes architectures: one-hot choices, and the logarithms of parameters and MACs, (n, features)."""

    def __init__(self, space: SearchSpace) -> None:
        self.space = space
        self.params, self.macs = CountCost("params", space), CountCost("macs", space)

    def __call__(self, population: Population) -> NDArray[np.float64]:
        costs = [np.log(model.predict(population)) for model in (self.params, self.macs)]
        return np.column_stack([self.space.one_hot(population), *costs])


@dataclass(frozen=True)
class AccuracyPredictor:
    """A regression from architectures to top-1.

    `kendall_tau` compares cross-validated predictions with measured accuracy: every subnet is predicted by a model that was
    fitted without it. `macs_tau` is what ranking by multiply-adds alone would have given.
    """

    features: Features
    kind: str
    model: Pipeline
    kendall_tau: float
    macs_tau: float
    held_out: tuple[tuple[float, float], ...]  # (predicted, measured) top-1, cross-validated

    def predict(self, population: Population) -> NDArray[np.float64]:
        """Predict top-1 of every architecture, (n,)."""
        predicted: NDArray[np.float64] = self.model.predict(self.features(population))
        return predicted


def fit_predictor(space: SearchSpace, population: Population, measured: NDArray[np.float64]) -> AccuracyPredictor:
    """Fit every kind of model and keep the one that ranks held-out subnets best; MACs alone are one of them.

    Args:
        population: (n, dimensions), n >= 10.
        measured: (n,) top-1.
    Raises:
        ValueError: for fewer than ten subnets.
    """
    if len(population) < 2 * FOLDS:
        raise ValueError(f"{len(population)} measured subnets, expected at least {2 * FOLDS} to fit a predictor")
    features = Features(space)
    inputs = features(population)
    macs = features.macs.predict(population)
    found = {kind: _cross_validate(kind, inputs, measured) for kind in ("ridge", "gaussian_process", "macs")}
    taus = {kind: _tau(predicted, measured) for kind, predicted in found.items()}
    best = max(taus, key=lambda kind: taus[kind])
    held_out = tuple(zip(found[best].tolist(), measured.tolist(), strict=True))
    return AccuracyPredictor(features, best, _fit(best, inputs, measured), taus[best], _tau(macs, measured), held_out)


def _fit(kind: str, inputs: NDArray[np.float64], measured: NDArray[np.float64]) -> Pipeline:
    if kind == "macs":
        return make_pipeline(FunctionTransformer(_log_macs), LinearRegression()).fit(inputs, measured)
    if kind == "ridge":
        regressor = RidgeCV(alphas=np.logspace(-1, 4, 16))
    else:
        # inputs are standardised, so distances grow with the square root of their number
        kernel = ConstantKernel(1.0) * RBF(inputs.shape[1] ** 0.5, (1, 1e3)) + WhiteKernel(0.1, (1e-4, 1e1))
        regressor = GaussianProcessRegressor(kernel, normalize_y=True, random_state=0)
    with warnings.catch_warnings():  # a kernel parameter at its bound is a legitimate optimum here
        warnings.simplefilter("ignore", ConvergenceWarning)
        return make_pipeline(StandardScaler(), regressor).fit(inputs, measured)


def _log_macs(inputs: NDArray[np.float64]) -> NDArray[np.float64]:
    return inputs[:, -1:]  # see `Features`


def _cross_validate(kind: str, inputs: NDArray[np.float64], measured: NDArray[np.float64]) -> NDArray[np.float64]:
    predicted = np.empty(len(measured))
    for train, test in KFold(FOLDS, shuffle=True, random_state=0).split(inputs):
        predicted[test] = _fit(kind, inputs[train], measured[train]).predict(inputs[test])
    return predicted


def _tau(predicted: NDArray[np.float64], measured: NDArray[np.float64]) -> float:
    tau = float(kendalltau(predicted, measured).statistic)
    return tau if np.isfinite(tau) else 0.0  # all equal: no ranking
