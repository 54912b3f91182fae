"""A recurrent cell that is a tree, with a memory beside its hidden state: the cell of Zoph and Le's neural architecture search.

Leaf i makes x W_i and h U_i one tensor, by sum or product, and activates it; the last cell state c is injected into one of them.
Nodes above combine their two children and have no weights; the root is the new hidden state. The new cell state is what one leaf
was before its activation.

Source: Zoph and Le 2016 (arXiv 1611.01578), section 3.4 and appendix A. The state that goes from token to token is [h, c].
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from ofa.recurrent import ACTIVATIONS, Masks, TextCell
from ofa.tree_genotype import TreeGenotype

COMBINE: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"add": torch.add, "elem_mult": torch.mul}


class TreeCell(TextCell):
    """The cell of a tree.

    Args:
        features: of inputs, hidden states and cell states alike.
    """

    def __init__(self, genotype: TreeGenotype, features: int) -> None:
        super().__init__()
        self.genotype, self.features = genotype, features
        # as in an LSTM of torch: products of leaves that are drawn from the same range at every size vanish in small cells
        bound = features**-0.5
        # columns: leaf by leaf
        self.input_weight = nn.Parameter(torch.empty(features, genotype.base * features).uniform_(-bound, bound))
        self.hidden_weight = nn.Parameter(torch.empty(features, genotype.base * features).uniform_(-bound, bound))

    @property
    def state_features(self) -> int:
        """Hidden state and cell state side by side."""
        return 2 * self.features

    def outputs(self, states: Tensor) -> Tensor:
        """Return the hidden states of [h, c]."""
        return states[..., : self.features]

    def forward(self, inputs: Tensor, state: Tensor, masks: Masks | None = None) -> Tensor:
        """Return the states [h, c], (time, batch, 2 * features).

        Args:
            inputs: (time, batch, features).
            state: [h, c], (batch, 2 * features), zeros where a text begins.
        """
        if masks is not None:
            inputs = inputs * masks.inputs
        states = []
        for from_input in (inputs @ self.input_weight).unbind():  # no recurrence in the product
            hidden, memory = state.split(self.features, dim=1)
            read = hidden if masks is None else hidden * masks.hidden
            state = self._step(from_input.split(self.features, 1), (read @ self.hidden_weight).split(self.features, 1), memory)
            states.append(state)
        return torch.stack(states)

    def _step(self, inputs: tuple[Tensor, ...], hidden: tuple[Tensor, ...], memory: Tensor) -> Tensor:
        """Return [h, c] from each leaf's two products, (batch, features), and the last c."""
        tree = self.genotype
        values: list[Tensor] = []
        for leaf, (combine, activation) in enumerate(tree.nodes[: tree.base]):
            value = COMBINE[combine](inputs[leaf], hidden[leaf])
            if leaf == tree.cell_leaf:
                new_memory = value
            value = ACTIVATIONS[activation](value)
            if leaf == tree.inject_leaf:
                value = ACTIVATIONS[tree.inject[1]](COMBINE[tree.inject[0]](value, memory))
            values.append(value)
        for node in range(tree.base, len(tree.nodes)):
            combine, activation = tree.nodes[node]
            first, second = tree.children(node)
            values.append(ACTIVATIONS[activation](COMBINE[combine](values[first], values[second])))
        return torch.cat([values[-1], new_memory], dim=1)
