"""Small perceptrons of scikit-learn, trained by L-BFGS; seconds to fit, so they are asked for by name."""

from __future__ import annotations

import warnings

import numpy as np
from numpy.typing import NDArray

from search.features import Inputs, Layout
from search.perceptron import PerceptronMean, Perceptrons, stack, standardisation

MEMBERS = 4
OPTIONS = {"hidden_layer_sizes": (64,), "alpha": 3.0, "solver": "lbfgs", "max_iter": 200}


class Mlp(PerceptronMean):
    """The mean of perceptrons from different beginnings."""

    @classmethod
    def fit(cls, inputs: Inputs, targets: NDArray[np.float64], layout: Layout, seed: int) -> Mlp:
        from sklearn.exceptions import ConvergenceWarning
        from sklearn.neural_network import MLPRegressor

        mean, scale = standardisation(inputs)
        z = (inputs - mean) * scale
        with warnings.catch_warnings():  # a limit on iterations is a part of the regularisation
            warnings.simplefilter("ignore", ConvergenceWarning)
            fitted = [MLPRegressor(**OPTIONS, random_state=seed + m).fit(z, targets) for m in range(MEMBERS)]
        weights, biases = stack([f.coefs_ for f in fitted]), stack([[b[None] for b in f.intercepts_] for f in fitted])
        return cls(Perceptrons(mean, scale, weights, biases))


REGRESSOR = Mlp
