"""The controller of Zoph and Le's convolutional networks: filters of every layer, and the earlier layers that it reads.

Tokens of layer i, counted from 0: filter height, filter width, stride (one for both sides), number of filters, then i bits:
whether it reads layer j, for j = 0, ..., i - 1. That is 4 + i tokens, also where a choice has a single option; no LSTM step is
spent on it.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ofa.errors import OfaError
from search.joint.controllers import Controller, Sampled, draw_weights
from search.joint.controllers.lstm import Attention, Choice, StackedLstm
from search.joint.controllers.sequences import Sequences

LSTM_SIZE, LSTM_LAYERS, INITIAL_BOUND = 35, 2, 0.08
FILTER_TOKENS = 4  # of a layer: height, width, stride, filters


class ConvController(Controller):
    """Writes a network of up to `layers` layers; searches may begin with the first few of them and grow.

    Layer i reads layer j with probability sigmoid(v . tanh(W_before h_j + W_now h_i)), h the LSTM's output at the layer's anchor
    point, after its filters; all these bits are independent. What follows an anchor point the paper leaves open: here the sum of
    the start token and of the states h_j that were chosen, divided by one more than their number. All layers share softmaxes, so
    that a layer which is added is drawn by what others learnt.

    Source: Zoph and Le 2017 (arXiv 1611.01578), sections 3.1, 3.3 and 4.1.
    """

    def __init__(
        self,
        layers: int,
        heights: int = 4,
        widths: int = 4,
        strides: int = 1,
        filters: int = 4,
        *,
        generator: torch.Generator | None = None,
    ) -> None:
        """Draw weights, by `generator` or torch's own.

        Args:
            layers: at most.
            heights: options of a filter's height; likewise widths, strides, numbers of filters.
        """
        super().__init__()
        self.layers = layers
        sizes = (heights, widths, strides, filters)
        self.options = sum(((*sizes, *(2,) * layer) for layer in range(layers)), ())
        self.lstm, self.attention = StackedLstm(LSTM_SIZE, LSTM_LAYERS), Attention(LSTM_SIZE)
        choices = [Choice(LSTM_SIZE, size) for size in sizes]
        self.height, self.width, self.stride, self.filters = choices
        self.start = nn.Parameter(torch.empty(LSTM_SIZE))
        draw_weights(self, INITIAL_BOUND, generator)

    def tokens_of(self, layer: int) -> slice:
        """Return where the tokens of a layer stand."""
        first = FILTER_TOKENS * layer + layer * (layer - 1) // 2
        return slice(first, first + FILTER_TOKENS + layer)

    def forward(
        self,
        n: int = 1,
        *,
        generator: torch.Generator | None = None,
        tokens: Tensor | None = None,
        layers: int | None = None,
    ) -> Sampled:
        """Draw n sequences, or score given ones.

        Args:
            layers: write the first so many layers only; the tokens of others are 0 and have no log-probability. None = all.
        Raises:
            OfaError: for tokens that are no sequences of this controller, or a number of layers that it does not have.
        """
        layers = self.layers if layers is None else layers
        if not 1 <= layers <= self.layers:
            raise OfaError(f"layers to write: {layers}, expected 1 to {self.layers}")
        sequences = self._begin(n, generator, tokens)
        if tokens is not None and tokens[:, self.tokens_of(layers - 1).stop :].any():
            raise OfaError(f"tokens of a layer after the first {layers} are not 0, expected sequences of {layers} layers")
        skips = self._write(sequences, layers)
        return Sampled(sequences.tokens, sequences.log_prob(), sequences.entropy(), sequences.zeros, skips)

    def write(self, sequences: Sequences) -> tuple[Tensor, Tensor]:
        return sequences.zeros, self._write(sequences, self.layers)

    def _write(self, sequences: Sequences, layers: int) -> Tensor:
        """Choose the tokens of the first layers; returns the share of skips taken, (n,)."""
        state = self.lstm.begin(sequences.n)
        start = self.start.expand(sequences.n, -1)
        inputs = start
        anchors: list[Tensor] = []
        keys: list[Tensor] = []
        taken = sequences.zeros
        for layer in range(layers):
            place = self.tokens_of(layer).start
            for i, choice in enumerate((self.height, self.width, self.stride, self.filters)):
                if self.options[place + i] > 1:
                    output, state = self.lstm(inputs, state)
                    inputs = choice.embed(sequences.choose(place + i, choice.logits(output)))
            output, state = self.lstm(inputs, state)
            inputs = start
            if layer:
                fit = self.attention(keys, output)  # (n, layer)
                # of two logits (0, q) the softmax is sigmoid(q)
                reads = sequences.choose(place + FILTER_TOKENS, torch.stack([torch.zeros_like(fit), fit], 2)).to(fit.dtype)
                count = reads.sum(1)
                inputs = (start + torch.einsum("nl,nls->ns", reads, torch.stack(anchors, 1))) / (1 + count)[:, None]
                taken = taken + count
            anchors.append(output)
            keys.append(self.attention.key(output))
        return taken / max(1, layers * (layers - 1) / 2)
