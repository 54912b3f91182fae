"""Numbers that an accuracy predictor sees: one-hot choices, and the logarithms of costs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from latency.cost import CostModel, CountCost
from ofa.errors import OfaError
from ofa.space import Population, SearchSpace

Inputs = NDArray[np.float32]  # (n, features)


@dataclass(frozen=True)
class Layout:
    """What the columns of the inputs are."""

    dimension: tuple[int, ...]  # for every one-hot column the dimension that it is of
    costs: tuple[str, ...] = ()  # names of the columns behind them, natural logarithms

    @property
    def num_one_hot(self) -> int:
        return len(self.dimension)

    @property
    def width(self) -> int:
        return len(self.dimension) + len(self.costs)

    def column(self, cost: str) -> int | None:
        """Return the column of a cost; None where it is unknown."""
        return self.num_one_hot + self.costs.index(cost) if cost in self.costs else None


class Features:
    """Encodes architectures: one-hot choices, then the logarithms of parameters and MACs, (n, features) float32.

    A space without blocks has neither; its costs, if there are any, are the caller's (from a table, for example). They help in
    either case: accuracy bends with a network's size in a way that no sum over choices shows.
    """

    def __init__(self, space: SearchSpace, costs: Mapping[str, CostModel] | None = None) -> None:
        self.space = space
        if costs is None and space.slots:
            costs = {name: CountCost(name, space) for name in ("params", "macs")}
        self.costs: dict[str, CostModel] = dict(costs or {})

    @cached_property
    def layout(self) -> Layout:
        """What the columns are."""
        return Layout(tuple(np.repeat(np.arange(len(self.space.dimensions)), self.space.num_options).tolist()), tuple(self.costs))

    def __call__(self, population: Population) -> Inputs:
        """Encode architectures, (n, features).

        Raises:
            OfaError: if a cost is not above zero, so that it has no logarithm.
        """
        inputs = np.empty((len(population), self.layout.width), dtype=np.float32)
        inputs[:, : self.layout.num_one_hot] = self.space.one_hot(population)
        for column, (name, model) in enumerate(self.costs.items(), self.layout.num_one_hot):
            values = model.predict(population)
            if not (np.isfinite(values) & (values > 0)).all():
                worst = values[~(np.isfinite(values) & (values > 0))][0]
                raise OfaError(f"{name} of a network is {worst}, expected a number above 0 for the accuracy predictor")
            inputs[:, column] = np.log(values)
        return inputs
