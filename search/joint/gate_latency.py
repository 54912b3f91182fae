"""What expected latency adds to the loss of gates: a term, or a factor."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping

import numpy as np
from torch import Tensor

from latency.cost import AdditiveCost
from latency.expected import ExpectedLatency
from search.joint.gates_config import GatesConfig
from search.joint.open_choices import OpenChoices
from search.joint.record import SearchError
from search.prices import extremes_of_sum


class LatencyLoss:
    """Loss of the alphas out of cross-entropy and the expected latency E, for a target T in ms.

    add        CE + weight x E / T
    multiply   CE x (log E / log T) ** weight, with logarithms of milliseconds

    Source: Cai et al. 2019 (ProxylessNAS, arXiv 1812.00332), section 3.2.1, and both forms of its code, whose "add" subtracts
    the weight besides, a constant.
    """

    def __init__(self, choices: OpenChoices, model: AdditiveCost, config: GatesConfig) -> None:
        """Make it of a cost model of `choices.sub_space`.

        Raises:
            SearchError: for the factor, if the target or some network is not above 1 ms: logarithms would change their sign.
            OfaError: if the model has no value for some block.
        """
        self.expected = ExpectedLatency(model)
        self._choices, self._config = choices, config
        values = np.append(model.block_values, model.offset)
        self.fingerprint = hashlib.sha256(repr((model.space.name, values.tolist())).encode()).hexdigest()
        if config.latency_loss == "add":
            return
        ends = extremes_of_sum(model, model.space)
        least = min([config.target_ms, *(model.predict(ends).tolist() if ends is not None else [])])
        if least <= 1:
            raise SearchError(
                f"latency_loss multiply takes logarithms of ms, expected a target and networks above 1 ms, found {least:.3g} ms; "
                "use add"
            )

    def __call__(self, cross_entropy: Tensor, probabilities: Mapping[str, Tensor]) -> Tensor:
        """Return the loss, a scalar with gradients to both."""
        expected, config = self.expected_ms(probabilities), self._config
        if config.latency_loss == "add":
            return cross_entropy + config.latency_weight * expected / config.target_ms
        return cross_entropy * (expected.log() / math.log(config.target_ms)) ** config.latency_weight

    def expected_ms(self, probabilities: Mapping[str, Tensor]) -> Tensor:
        """Return the expectation, a scalar, of the open choices' probabilities."""
        some = next(iter(probabilities.values()))
        decided = {d.name: some.new_ones(1) for d in self.expected.space.dimensions if d.name not in probabilities}
        return self.expected({**decided, **probabilities})
