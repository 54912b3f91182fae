"""The controller of Zoph and Le's recurrent cells: a binary tree that combines input and hidden state, with a memory injected.

Tokens: for each node of the tree "combination, activation", leaves first in order, then the inner nodes level by level up to the
root; then combination and activation by which c_(t-1) is injected; then two indices of leaves: whose value before its activation
becomes c_t, and whose output c_(t-1) is injected into. A tree of 8 leaves has 15 nodes, hence 34 tokens.
"""

from __future__ import annotations

import torch

from ofa.errors import OfaError
from search.joint.controllers.conv import INITIAL_BOUND, LSTM_LAYERS, LSTM_SIZE
from search.joint.controllers.flat import FlatController


class TreeController(FlatController):
    """Writes a cell: token by token, each by a softmax of its own, fed back by its embedding.

    Source: Zoph and Le 2017 (arXiv 1611.01578), section 3.4 and appendix A.
    """

    def __init__(
        self,
        leaves: int = 8,
        combinations: int = 2,
        activations: int = 4,
        *,
        generator: torch.Generator | None = None,
    ) -> None:
        """Draw weights, by `generator` or torch's own.

        Args:
            leaves: of the tree, a power of two.
            combinations: of two values, such as sum and product.
            activations: such as identity, tanh, sigmoid and ReLU.
        Raises:
            OfaError: for another number of leaves.
        """
        if leaves < 2 or leaves & (leaves - 1):
            raise OfaError(f"a tree of {leaves} leaves, expected a power of two")
        self.leaves, self.nodes = leaves, 2 * leaves - 1
        super().__init__(
            (combinations, activations) * (self.nodes + 1) + (leaves, leaves),
            size=LSTM_SIZE,
            lstm_layers=LSTM_LAYERS,
            bound=INITIAL_BOUND,
            generator=generator,
        )
