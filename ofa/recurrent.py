"""Recurrent cells as a graph of gated steps: one operation on every edge, or a weighted mixture of all of them.

State 0 is made of the input and the last hidden state, s_0 = h + sigmoid(c)(tanh(g) - h) with [c, g] = [x, h] W_in. Node i reads
earlier states: an operation f on the edge from state j adds s_j + sigmoid(c)(f(g) - s_j) with [c, g] = s_j W_i. The matrix
belongs to the node, whatever it reads and whichever operation. The new hidden state is the mean of some states.

Source: Liu et al. 2019 (DARTS, arXiv 1806.09055), section 3.2 and appendix A.2; the gates are highway connections (Zilly et al.
2017, arXiv 1607.03474), as in Pham et al. 2018 (ENAS, arXiv 1802.03268).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ofa.genotype import GenotypeError, RecurrentGenotype
from ofa.mix_activations import OPERATIONS, mix_activations

NODES = 8  # of the published cells
INIT_RANGE = 0.04  # weights begin uniform in +-0.04
ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "tanh": torch.tanh,
    "relu": torch.relu,
    "sigmoid": torch.sigmoid,
    "identity": lambda candidate: candidate,
}


class Masks(NamedTuple):
    """Variational dropout (Gal and Ghahramani 2016, arXiv 1512.05287): the same units are dropped in every step of a sequence."""

    inputs: Tensor  # (batch, features), zeros and 1 / (1 - rate)
    hidden: Tensor  # likewise; multiplies whatever meets a matrix: the last hidden state and every state of the cell


def num_edges(nodes: int = NODES) -> int:
    """Count the edges of a cell in which every node reads all earlier states: 36 for 8 nodes."""
    return nodes * (nodes + 1) // 2


class TextCell(nn.Module):
    """What a language model asks of a cell: how large its outputs are, and the state that it goes on from."""

    features: int  # of inputs and outputs alike

    @property
    def state_features(self) -> int:
        """Size of the state that goes from token to token; most cells have no other than their output."""
        return self.features

    def outputs(self, states: Tensor) -> Tensor:
        """Return what the classifier sees of states, (..., state_features) -> (..., features)."""
        return states


class RecurrentCell(TextCell):
    """Weights of a cell of gated steps, a matrix for state 0 and one for each node.

    Args:
        features: of inputs and hidden states alike.
        nodes: besides state 0.
    """

    def __init__(self, features: int, nodes: int) -> None:
        super().__init__()
        self.features, self.nodes = features, nodes
        # rows: the input, then the hidden state; columns: gate, then candidate
        self.input_weight = nn.Parameter(torch.empty(2 * features, 2 * features).uniform_(-INIT_RANGE, INIT_RANGE))
        # columns: node by node its gate, then its candidate. One matrix: several nodes that read a state are one product
        self.node_weight = nn.Parameter(torch.empty(features, nodes * 2 * features).uniform_(-INIT_RANGE, INIT_RANGE))


class DiscreteCell(RecurrentCell):
    """The cell of a genotype."""

    def __init__(self, genotype: RecurrentGenotype, features: int) -> None:
        check_functions(genotype)
        super().__init__(features, len(genotype.recurrent))
        self.genotype = genotype

    def forward(self, inputs: Tensor, hidden: Tensor, masks: Masks | None = None) -> Tensor:
        """Return the hidden states, (time, batch, features), for inputs of that shape and a hidden state (batch, features)."""
        matrices = self.node_weight.split(2 * self.features, dim=1)
        cell = follow(self.genotype, matrices, masks)
        return unroll(inputs, hidden, masks, cell, self.input_weight, ACTIVATIONS[self.genotype.first])


class MixedCell(RecurrentCell):
    """Every operation on every edge, weighted by probabilities that are an argument; the mean of all nodes is handed on.

    Args:
        normalise: BatchNorm without scale and shift, one for state 0 and all nodes, as in the published search. Without it, and
            with probabilities of zeros and ones, this is the `DiscreteCell`.
    """

    def __init__(self, features: int, nodes: int = NODES, *, normalise: bool = True) -> None:
        super().__init__(features, nodes)
        self.norm = nn.BatchNorm1d(features, affine=False) if normalise else nn.Identity()
        # edges are listed node by node, source by source; here source by source, node by node
        rows = [node * (node + 1) // 2 + source for source in range(nodes) for node in range(source, nodes)]
        self.register_buffer("rows", torch.tensor(rows), persistent=False)

    def forward(self, inputs: Tensor, hidden: Tensor, probabilities: Tensor, masks: Masks | None = None) -> Tensor:
        """Return the hidden states, (time, batch, features).

        Args:
            inputs: (time, batch, features).
            hidden: (batch, features).
            probabilities: (edges, 5), edges node by node and source by source, operations as in OPERATIONS; "none" adds nothing.
        """
        nodes, features = self.nodes, self.features
        if probabilities.shape != (num_edges(nodes), len(OPERATIONS)):
            expected = (num_edges(nodes), len(OPERATIONS))
            raise ValueError(f"probabilities have the shape {tuple(probabilities.shape)}, expected {expected}")
        rows: Tensor = self.rows  # type: ignore[assignment]
        by_source = probabilities[rows].split(list(range(nodes, 0, -1)))
        # for each state the columns of all nodes behind it
        weights = [self.node_weight[:, 2 * features * source :] for source in range(nodes)]

        def cell(first: Tensor) -> Tensor:
            state = self.norm(first)
            sums: Tensor | None = None  # (batch, nodes to come, features): what they have of the states so far
            total: Tensor | None = None
            for weight, weighting in zip(weights, by_source, strict=True):
                products = (_masked(state, masks) @ weight).view(len(state), -1, 2, features)
                mixed = mix_activations(products, state, weighting)
                sums = mixed if sums is None else sums[:, 1:] + mixed
                state = self.norm(sums[:, 0])
                total = state if total is None else total + state
            assert total is not None
            return total / nodes

        return unroll(inputs, hidden, masks, cell, self.input_weight)


def check_functions(genotype: RecurrentGenotype) -> None:
    """Check that a cell can be computed.

    Raises:
        GenotypeError: for a function that is not one of ACTIVATIONS.
    """
    unknown = [name for name in (genotype.first, *(name for name, _ in genotype.recurrent)) if name not in ACTIVATIONS]
    if unknown:
        raise GenotypeError(f"recurrent genotype has the operation {unknown[0]!r}, expected one of: {', '.join(ACTIVATIONS)}")


def unroll(
    inputs: Tensor,
    hidden: Tensor,
    masks: Masks | None,
    cell: Callable[[Tensor], Tensor],
    weight: Tensor,
    first: Callable[[Tensor], Tensor] = torch.tanh,
    norm: Callable[[Tensor], Tensor] | None = None,
) -> Tensor:
    """Make state 0, let a cell make the new hidden state of it, and go on with that; returns all of them.

    Args:
        inputs: (time, batch, features).
        hidden: (batch, features).
        cell: state 0 -> new hidden state.
        weight: (2 * features, 2 * features), rows: the input, then the hidden state; columns: gate, then candidate.
        first: function of the candidate of state 0.
        norm: of gate and candidate of state 0, (batch, 2 * features).
    Returns:
        (time, batch, features).
    """
    features = hidden.shape[1]
    if masks is not None:
        inputs = inputs * masks.inputs
    from_inputs = inputs @ weight[:features]  # (time, batch, 2 * features): no recurrence in it
    recurrent = weight[features:]
    states = []
    for from_input in from_inputs.unbind():
        product = torch.addmm(from_input, _masked(hidden, masks), recurrent)
        gate, candidate = (product if norm is None else norm(product)).split(features, dim=1)
        hidden = cell(_moved(hidden, gate, first(candidate)))
        states.append(hidden)
    return torch.stack(states)


def follow(
    genotype: RecurrentGenotype,
    matrices: Sequence[Tensor],
    masks: Masks | None,
    norms: Sequence[Callable[[Tensor], Tensor]] | None = None,
) -> Callable[[Tensor], Tensor]:
    """Return what computes a cell, state 0 -> new hidden state, (batch, features) both.

    Args:
        matrices: (features, 2 * features) of each node, columns: gate, then candidate.
        norms: of each node's gate and candidate, (batch, 2 * features).
    """
    readers: dict[int, list[int]] = {}
    for node, (_, source) in enumerate(genotype.recurrent):
        readers.setdefault(source, []).append(node)
    # outside the loop over time: the gradient of a slice is as large as what it was cut from
    weights = {source: torch.cat([matrices[node] for node in nodes], dim=1) for source, nodes in readers.items()}

    def cell(first: Tensor) -> Tensor:
        states, products, features = [first], dict[int, Tensor](), first.shape[1]
        for node, (name, source) in enumerate(genotype.recurrent):
            if node not in products:
                products |= _products(states[source], masks, weights[source], readers[source])
            product = products[node] if norms is None else norms[node](products[node])
            gate, candidate = product.split(features, dim=1)
            states.append(_moved(states[source], gate, ACTIVATIONS[name](candidate)))
        return torch.stack([states[i] for i in genotype.concat]).mean(0)

    return cell


def _masked(state: Tensor, masks: Masks | None) -> Tensor:
    return state if masks is None else state * masks.hidden


def _moved(state: Tensor, gate: Tensor, goal: Tensor) -> Tensor:
    """Move a state towards a goal, as far as the gate is open. Not torch.lerp, which exports as nine operators."""
    return torch.addcmul(state, torch.sigmoid(gate), goal - state)


def _products(state: Tensor, masks: Masks | None, weight: Tensor, nodes: list[int]) -> dict[int, Tensor]:
    """Node -> gate and candidate, (batch, 2 * features), of all nodes that read a state."""
    parts = (_masked(state, masks) @ weight).split(2 * state.shape[1], dim=1)
    return dict(zip(nodes, parts, strict=True))
