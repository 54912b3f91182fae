"""What controllers are made of: an LSTM without biases, attention to earlier states, logits kept within bounds."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

State = tuple[tuple[Tensor, Tensor], ...]  # for each layer: cell (n, size), output (n, size)


class StackedLstm(nn.Module):
    """Layers of LSTM without biases; the gates of [input, output before] times W are input, forget, output, candidate."""

    def __init__(self, size: int, layers: int = 1) -> None:
        super().__init__()
        self.size = size
        self.weights = nn.ParameterList([nn.Parameter(torch.empty(2 * size, 4 * size)) for _ in range(layers)])

    def begin(self, n: int) -> State:
        """Return the state before the first step: zeros."""
        zeros = self.weights[0].new_zeros(n, self.size)
        return ((zeros, zeros),) * len(self.weights)

    def forward(self, inputs: Tensor, state: State) -> tuple[Tensor, State]:
        """Take a step; (n, size) -> the last layer's output (n, size), and the state after it."""
        after = []
        for weights, (cell, output) in zip(self.weights, state, strict=True):
            gates = torch.cat([inputs, output], 1) @ weights  # (n, 4 * size)
            keep = gates[:, : 3 * self.size].sigmoid()
            let_in, forget, let_out = keep.chunk(3, 1)
            cell = let_in * gates[:, 3 * self.size :].tanh() + forget * cell
            inputs = let_out * cell.tanh()
            after.append((cell, inputs))
        return inputs, tuple(after)


class Attention(nn.Module):
    """How well earlier states fit the present one: v . tanh(W_before h_j + W_now h)."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.before = nn.Parameter(torch.empty(size, size))
        self.now = nn.Parameter(torch.empty(size, size))
        self.v = nn.Parameter(torch.empty(size))

    def key(self, output: Tensor) -> Tensor:
        """Return what `forward` needs of a state, (n, size) -> (n, size)."""
        return output @ self.before

    def forward(self, keys: Sequence[Tensor], output: Tensor) -> Tensor:
        """Return a score for each of m earlier states, (n, m)."""
        return (torch.stack(list(keys), 1) + (output @ self.now)[:, None]).tanh() @ self.v


class Choice(nn.Module):
    """A softmax over options, and for each option a vector that is fed back once it is chosen."""

    def __init__(self, size: int, options: int) -> None:
        super().__init__()
        self.head = nn.Parameter(torch.empty(size, options))
        self.embedding = nn.Parameter(torch.empty(options, size))

    def logits(self, output: Tensor) -> Tensor:
        """Return logits of the options, (n, size) -> (n, options)."""
        return output @ self.head

    def embed(self, tokens: Tensor) -> Tensor:
        """Return the vectors of chosen options, (n,) -> (n, size)."""
        return self.embedding[tokens]


def bounded(logits: Tensor, tanh_constant: float | None, temperature: float | None = None) -> Tensor:
    """Divide logits by a temperature and squeeze them to -tanh_constant ... tanh_constant; None = leave that out."""
    if temperature is not None:
        logits = logits / temperature
    return logits if tanh_constant is None else tanh_constant * logits.tanh()


def pick(states: Sequence[Tensor], index: Tensor) -> Tensor:
    """Return for each sequence one of m states of (n, size) by its index, (n,)."""
    return torch.stack(list(states), 1)[torch.arange(len(index), device=index.device), index]
