"""Regressions from architectures to accuracy: a file each; the file's name is the kind's name.

All see the same inputs (search.features) and targets of mean about 0 and variance about 1 (search.scale). What they have
learnt is a few named arrays, so that a predictor is stored as data.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from ofa.errors import OfaError
from search.features import Inputs, Layout

Arrays = Mapping[str, NDArray[Any]]


class Regressor(Protocol):
    """A fitted regression."""

    def predict(self, inputs: Inputs) -> NDArray[np.float64]:
        """Predict, (n,)."""
        ...

    def spread(self, inputs: Inputs) -> NDArray[np.float64]:
        """Return the standard deviation that the model claims for its predictions, (n,); zeros if it claims nothing."""
        ...

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Return what was learnt, for `restore`."""
        ...


class RegressorKind(Protocol):
    """What a kind's file offers as REGRESSOR: its class."""

    def supports(self, layout: Layout) -> str:
        """Return why these inputs cannot be regressed, "" if they can."""
        ...

    def fit(self, inputs: Inputs, targets: NDArray[np.float64], layout: Layout, seed: int) -> Regressor:
        """Fit to (n, features) and (n,); deterministic for a seed."""
        ...

    def restore(self, arrays: Arrays, layout: Layout) -> Regressor:
        """Make the regression that `arrays` were taken from.

        Raises:
            KeyError, ValueError, IndexError: if they do not belong together.
        """
        ...


def list_regressors() -> list[str]:
    """Return the names of the kinds that ship with the toolkit."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__))


def get_regressor(kind: str) -> RegressorKind:
    """Return a kind's class by name.

    Raises:
        OfaError: listing the names that exist.
    """
    if kind not in list_regressors():
        raise OfaError(f"unknown kind of predictor {kind!r}; known: {', '.join(list_regressors())}")
    found: RegressorKind = importlib.import_module(f"{__name__}.{kind}").REGRESSOR
    return found


def expect(arrays: Arrays, **shapes: tuple[int | None, ...]) -> None:
    """Check the shapes of restored arrays; None stands for any length.

    Raises:
        ValueError: for a missing array, one of another shape, or numbers that are not finite.
    """
    for name, shape in shapes.items():
        if name not in arrays:
            raise ValueError(f"{name} is missing")
        found = arrays[name].shape
        if len(found) != len(shape) or any(s is not None and s != f for s, f in zip(shape, found, strict=True)):
            raise ValueError(f"{name} is {found}, expected {shape}")
        if not np.isfinite(arrays[name]).all():
            raise ValueError(f"{name} holds numbers that are not finite")
