"""Expected latency: the cost of a network that is still undecided, differentiable by the probability of every choice.

A differentiable search keeps a probability for every option of every dimension and adds what the network is expected to cost to
its loss. Several dimensions decide a block together (its kernel size, its expand ratio, whether the stage is deep enough, the
resolution), so the table of a slot's values is contracted with the probabilities of all of them. With independent dimensions that
is exact, since the expectation of a sum is the sum of expectations. Source: Cai et al. 2019 (ProxylessNAS, arXiv 1812.00332,
section 3.2, equations 2 and 3), where a block is one choice among candidates.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from latency.cost import AdditiveCost, joint_tables
from ofa.errors import OfaError

SUM_TOLERANCE = 1e-2  # of probabilities: a softmax in bfloat16 adds up to 1 within about that


class ExpectedLatency:
    """Expected latency in milliseconds, or any other additive cost in its own unit."""

    def __init__(self, model: AdditiveCost) -> None:
        """Build the tables of a cost model, e.g. a latency table.

        Raises:
            OfaError: if the model has no value for some block of its space.
        """
        unknown = int(np.isnan(model.block_values).sum())
        if unknown:
            raise OfaError(
                f"the {model.quantity} has no value for {unknown} block(s) of {model.space.name}; an expectation needs all"
            )
        self.space, self._offset = model.space, float(model.offset)
        self._tables = [(columns, torch.tensor(table)) for columns, table in joint_tables(model.space, model.block_values)]

    def __call__(self, probabilities: Mapping[str, Tensor]) -> Tensor:
        """Return the expectation, a scalar in the dtype of the probabilities, with gradients to all of them.

        A dimension's gradients are right up to a constant that all its options share; a softmax before cancels it.

        Args:
            probabilities: dimension name -> (options,), e.g. logits.softmax(0); choices of different dimensions are independent.
                Those of a choice without effect (a kernel size in a block that the stage is too shallow for) count for nothing.
        Raises:
            OfaError: if a dimension is missing, or has not one probability for every option.
        """
        given = [self._checked(probabilities, d.name, len(d.options)) for d in self.space.dimensions]
        sums = torch.stack([p.detach().sum() for p in given])
        wrong = ((sums - 1).abs() > SUM_TOLERANCE).nonzero().flatten().tolist()
        if wrong:
            name = self.space.dimensions[wrong[0]].name
            raise OfaError(f"probabilities of {name} add up to {sums[wrong[0]]:.4g}, expected 1; of logits take softmax(0)")
        total = torch.zeros((), dtype=given[0].dtype, device=given[0].device)
        for columns, table in self._tables:
            value = table.to(total)
            for column in reversed(columns):
                value = value @ given[column]  # sums over the last axis
            total = total + value
        return total + self._offset

    def _checked(self, probabilities: Mapping[str, Tensor], name: str, options: int) -> Tensor:
        found = probabilities.get(name)
        if found is None:
            raise OfaError(f"no probabilities of {name}; expected some for each of {len(self.space.dimensions)} dimensions")
        if found.shape != (options,):
            raise OfaError(f"probabilities of {name} have shape {tuple(found.shape)}, expected ({options},)")
        return found
