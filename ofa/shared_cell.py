"""The weights of all recurrent cells of ENAS at once, with which any of them runs.

Node i has a matrix of its own for every earlier node j that it may read, as in Pham et al. 2018 (ENAS, arXiv 1802.03268), section
2.1; in the authors' code, one for every function besides. A step computes, and moves, the matrices of one cell alone.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from ofa.genotype import GenotypeError, RecurrentGenotype
from ofa.recurrent import ACTIVATIONS, INIT_RANGE, Masks, TextCell, check_functions, follow, unroll

FUNCTIONS = tuple(ACTIVATIONS)
# as released: pre-activations vary far less than by the 1 that is added to their variance, and are hardly scaled at first
EPSILON, MOMENTUM = 1.0, 0.001


class SharedCell(TextCell):
    """Any cell of some nodes; which one is an argument of `forward`.

    Args:
        features: of inputs and hidden states alike.
        nodes: of a cell, state 0 among them.
        normalise: BatchNorm of every node's gate and candidate and of the new hidden state, as in the authors' search. Without it
            this is the `DiscreteCell` of the same matrices.
        matrix_a_function: a matrix for every (node, source, function), as released; else for every (node, source), as published.
    """

    def __init__(self, features: int, nodes: int = 12, *, normalise: bool = True, matrix_a_function: bool = False) -> None:
        super().__init__()
        self.features, self.nodes = features, nodes
        self.functions = len(FUNCTIONS) if matrix_a_function else 1
        # one parameter a matrix: of a large one, every step's gradient would be as large as all matrices together
        self.input_weights = nn.ParameterList(_matrix(2 * features, features) for _ in range(self.functions))
        pairs = nodes * (nodes - 1) // 2
        self.node_weights = nn.ParameterList(_matrix(features, features) for _ in range(pairs * self.functions))
        self.norms = nn.ModuleList(
            nn.BatchNorm1d(width, eps=EPSILON, momentum=MOMENTUM) for width in (*([2 * features] * nodes), features) if normalise
        )

    def input_matrix(self, function: str) -> Tensor:
        """Return the matrix of state 0, (2 * features, 2 * features)."""
        return self.input_weights[FUNCTIONS.index(function) % self.functions]

    def matrix(self, node: int, source: int, function: str) -> Tensor:
        """Return the matrix with which a node, 1 or later, reads an earlier one, (features, 2 * features)."""
        pair = node * (node - 1) // 2 + source
        return self.node_weights[pair * self.functions + FUNCTIONS.index(function) % self.functions]

    def forward(self, inputs: Tensor, hidden: Tensor, genotype: RecurrentGenotype, masks: Masks | None = None) -> Tensor:
        """Return the hidden states, (time, batch, features), of a cell.

        Args:
            inputs: (time, batch, features).
            hidden: (batch, features).
        Raises:
            GenotypeError: if the cell has other nodes or functions.
        """
        check_functions(genotype)
        if len(genotype.recurrent) != self.nodes - 1:
            raise GenotypeError(f"cell of {len(genotype.recurrent) + 1} nodes, expected {self.nodes}")
        matrices = [self.matrix(node, source, name) for node, (name, source) in enumerate(genotype.recurrent, 1)]
        first_norm: Callable[[Tensor], Tensor] | None = None
        norms = None
        if self.norms:
            first_norm, *norms, last_norm = self.norms
        cell = follow(genotype, matrices, masks, norms)
        whole = cell if norms is None else lambda first: last_norm(cell(first))
        weight, function = self.input_matrix(genotype.first), ACTIVATIONS[genotype.first]
        return unroll(inputs, hidden, masks, whole, weight, function, first_norm)


def _matrix(rows: int, features: int) -> nn.Parameter:
    return nn.Parameter(torch.empty(rows, 2 * features).uniform_(-INIT_RANGE, INIT_RANGE))
