"""A language model around a recurrent cell: embedding, cell, and the embedding once more as the classifier.

Source: Merity et al. 2018 (arXiv 1708.02182) for what is dropped and how, as in Liu et al. 2019 (DARTS, arXiv 1806.09055),
appendix A.2; Press and Wolf 2017 (arXiv 1608.05859) for the tied weights.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ofa.errors import OfaError
from ofa.genotype import RecurrentGenotype
from ofa.recurrent import INIT_RANGE, DiscreteCell, Masks, TextCell
from ofa.tree_cell import TreeCell
from ofa.tree_genotype import TreeGenotype


@dataclass(frozen=True, slots=True, kw_only=True)
class Dropouts:
    """Shares of what is dropped in training, each in [0, 1); all but the words' stay the same over a sequence."""

    outputs: float = 0.75  # of the hidden states that the classifier sees
    hidden: float = 0.25  # of states inside the cell, where they meet a matrix
    inputs: float = 0.75  # of what enters the cell
    embeddings: float = 0.2  # of the embedded words, before that
    words: float = 0.1  # of the vocabulary, each as a whole

    def __post_init__(self) -> None:
        for name in self.__slots__:
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1:
                raise OfaError(f"dropout of {name} is {value!r}, expected a share of at least 0 and below 1")


class Noise(NamedTuple):
    """Dropout and where its masks come from: the same generator state, the same masks."""

    dropouts: Dropouts
    generator: torch.Generator  # on the network's device


class Output(NamedTuple):
    """What the network makes of a piece of text."""

    logits: Tensor  # (time, batch, vocabulary)
    hidden: Tensor  # (batch, state_features), to go on from
    states: Tensor  # (time, batch, features), what the classifier sees, before dropout


class LanguageModel(nn.Module):
    """Predict the next token of each of some texts.

    Args:
        vocabulary: number of tokens.
        cell: its features are the embedding's.
    """

    def __init__(self, vocabulary: int, cell: TextCell) -> None:
        super().__init__()
        self.cell = cell
        self.embedding = nn.Parameter(torch.empty(vocabulary, cell.features).uniform_(-INIT_RANGE, INIT_RANGE))
        self.bias = nn.Parameter(torch.zeros(vocabulary))

    def forward(
        self, tokens: Tensor, hidden: Tensor, choice: Tensor | RecurrentGenotype | None = None, *, noise: Noise | None = None
    ) -> Output:
        """Run over a piece of text.

        Args:
            tokens: (time, batch) numbers of tokens.
            hidden: (batch, state_features), zeros where a text begins.
            choice: probabilities (edges, 5) for a mixed cell, a genotype for shared weights; None for one cell.
            noise: dropout, in training; None for none.
        """
        inputs = F.embedding(tokens, self.embedding)  # (time, batch, features)
        masks = None
        if noise is not None:
            rates, shape = noise.dropouts, inputs.shape[1:]
            inputs = inputs * _mask((len(self.embedding), 1), rates.words, inputs, noise)[tokens]
            inputs = inputs * _mask(shape, rates.embeddings, inputs, noise)
            masks = Masks(_mask(shape, rates.inputs, inputs, noise), _mask(shape, rates.hidden, inputs, noise))
        arguments = () if choice is None else (choice,)
        states: Tensor = self.cell(inputs, hidden, *arguments, masks=masks)
        outputs = self.cell.outputs(states)
        seen = outputs if noise is None else outputs * _mask(shape, noise.dropouts.outputs, outputs, noise)
        return Output(F.linear(seen, self.embedding, self.bias), states[-1], outputs)

    def step(self, tokens: Tensor, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """Take in one token of each text; for the model of one cell.

        Args:
            tokens: (batch,).
            hidden: (batch, state_features).

        Returns: logits (batch, vocabulary) and the new hidden state.
        """
        (hidden,) = self.cell(F.embedding(tokens, self.embedding).unsqueeze(0), hidden)
        return F.linear(self.cell.outputs(hidden), self.embedding, self.bias), hidden

    def no_text(self, batch: int) -> Tensor:
        """Return the hidden state where texts begin, (batch, state_features)."""
        return self.embedding.new_zeros(batch, self.cell.state_features)


def build_cell(genotype: RecurrentGenotype | TreeGenotype, features: int) -> DiscreteCell | TreeCell:
    """Return a new cell of a genotype."""
    return TreeCell(genotype, features) if isinstance(genotype, TreeGenotype) else DiscreteCell(genotype, features)


def prediction_loss(output: Output, targets: Tensor) -> Tensor:
    """Return the mean cross-entropy in nats a token.

    Args:
        output: of the network.
        targets: (time, batch), the tokens that follow.
    """
    return F.cross_entropy(output.logits.flatten(0, 1), targets.flatten())


def haste(states: Tensor) -> Tensor:
    """Return the mean squared change of the hidden state from token to token, 0 for a single one.

    Source: the "temporal activation regularisation" of Merity et al. 2017 (arXiv 1708.01009).

    Args:
        states: (time, batch, features), before dropout.
    """
    if len(states) < 2:
        return states.new_zeros(())
    return (states[1:] - states[:-1]).square().mean()


def _mask(shape: tuple[int, ...], rate: float, like: Tensor, noise: Noise) -> Tensor:
    return like.new_empty(shape).bernoulli_(1 - rate, generator=noise.generator).div_(1 - rate)
