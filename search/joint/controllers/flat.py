"""A controller of any space: an LSTM that makes one choice after the other, each by a softmax of its own."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ofa.space import SearchSpace
from search.joint.controllers import Controller, draw_weights
from search.joint.controllers.lstm import StackedLstm, bounded
from search.joint.controllers.sequences import Sequences

Requirement = tuple[int, int] | None  # place of an earlier token, smallest index there; see ofa.space.Dimension.requires


class FlatController(Controller):
    """Writes tokens one by one; each has its softmax and its embeddings, which are fed back.

    Tokens that are without effect, since an earlier one is not what they require, are 0, with no log-probability and no entropy.
    No step is spent on a choice with a single option.
    """

    def __init__(
        self,
        options: Sequence[int],
        *,
        requires: Sequence[Requirement] | None = None,
        size: int = 64,
        lstm_layers: int = 1,
        bound: float = 0.1,
        tanh_constant: float | None = None,
        temperature: float | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        """Draw weights.

        Args:
            options: for each token, how many there are to choose from.
            requires: for each token, when it has an effect; None = always.
            size: units of each layer of the LSTM.
            bound: weights are drawn from -bound to bound.
            generator: of the weights; None = torch's own.
        """
        super().__init__()
        self.options = tuple(options)
        self._requires = tuple(requires or (None,) * len(self.options))
        self._tanh_constant, self._temperature = tanh_constant, temperature
        places, most = len(self.options), max(self.options, default=1)
        self.lstm = StackedLstm(size, lstm_layers)
        self.start = nn.Parameter(torch.empty(size))
        self.heads = nn.Parameter(torch.empty(places, size, most))
        self.embeddings = nn.Parameter(torch.empty(places, most, size))
        draw_weights(self, bound, generator)

    def write(self, sequences: Sequences) -> tuple[Tensor, Tensor]:
        state = self.lstm.begin(sequences.n)
        inputs = self.start.expand(sequences.n, -1)
        heads, embeddings = self.heads.unbind(), self.embeddings.unbind()
        active: dict[int, Tensor] = {}  # of places that may have no effect
        for place, (options, required) in enumerate(zip(self.options, self._requires, strict=True)):
            if required is not None:
                other, least = required
                active[place] = sequences.tokens[:, other] >= least
                if other in active:
                    active[place] = active[place] & active[other]
            if options > 1:
                output, state = self.lstm(inputs, state)
                logits = bounded(output @ heads[place][:, :options], self._tanh_constant, self._temperature)
                inputs = embeddings[place][sequences.choose(place, logits, where=active.get(place))]
        return sequences.zeros, sequences.zeros


def controller_of(
    space: SearchSpace,
    *,
    size: int = 64,
    tanh_constant: float | None = None,
    temperature: float | None = None,
    generator: torch.Generator | None = None,
) -> FlatController:
    """Return a controller whose sequences are the rows of a space's canonical populations."""
    requires = [d.requires and (space.column[d.requires[0]], d.requires[1]) for d in space.dimensions]
    return FlatController(
        space.num_options.tolist(),
        requires=requires,
        size=size,
        tanh_constant=tanh_constant,
        temperature=temperature,
        generator=generator,
    )
