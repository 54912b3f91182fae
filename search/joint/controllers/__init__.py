"""Controllers: recurrent networks that write architectures token by token and say how likely they are to write each.

One file a controller: micro, macro and recurrent are ENAS' (Pham et al. 2018, arXiv 1802.03268), conv and tree those of neural
architecture search with reinforcement learning (Zoph and Le 2017, arXiv 1611.01578), flat writes the choices of any space.
`policy_gradient` moves them towards what was rewarded.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from ofa.errors import OfaError
from search.joint.controllers.sequences import Sequences

Variant = Literal["paper", "release"]  # ENAS as it was described, or as its authors' code computes


class Sampled(NamedTuple):
    """Token sequences and what their controller knows of them; gradients lead to the controller's weights."""

    tokens: Tensor  # (n, length) int64
    log_prob: Tensor  # (n,) log-probability of each sequence, nats; the code of ENAS calls the NEGATIVE of it sample_log_prob
    entropy: Tensor  # (n,) entropies of the choices on the way, nats, added up
    skip_penalty: Tensor  # (n,) divergence of the chances of skips from their target, nats; 0 where there are no skips
    skips: Tensor  # (n,) share of possible skips that are taken; 0 where there are none


class Controller(nn.Module, ABC):
    """A policy over token sequences of one length.

    `options` tells for each place of a sequence how many tokens there are to choose from: 0, 1, ..., options - 1.
    """

    options: tuple[int, ...]
    sampled_entropy = False  # -log p times p of the sampled token stands for the entropy of a choice, without gradient

    @property
    def length(self) -> int:
        """Tokens of a sequence."""
        return len(self.options)

    def forward(self, n: int = 1, *, generator: torch.Generator | None = None, tokens: Tensor | None = None) -> Sampled:
        """Draw n sequences, or score given ones.

        Args:
            n: sequences to draw; of no effect with `tokens`.
            generator: of the draws, on the controller's device; None = torch's own.
            tokens: (n, length) integers; drawn ones have the same log-probability here as they had when they were drawn.
        Raises:
            OfaError: for tokens that are no sequences of this controller.
        """
        sequences = self._begin(n, generator, tokens)
        skip_penalty, skips = self.write(sequences)
        return Sampled(sequences.tokens, sequences.log_prob(), sequences.entropy(), skip_penalty, skips)

    @abstractmethod
    def write(self, sequences: Sequences) -> tuple[Tensor, Tensor]:
        """Choose every token, in the order of sampling; returns skip penalty and share of skips, (n,) each."""

    def _begin(self, n: int, generator: torch.Generator | None, tokens: Tensor | None) -> Sequences:
        if tokens is not None:
            check_tokens(tokens, self.options)
        elif n < 1:
            raise OfaError(f"sequences to draw: {n}, expected at least 1")
        like = next(self.parameters())
        return Sequences(n, self.length, like, generator=generator, tokens=tokens, sampled_entropy=self.sampled_entropy)


def draw_weights(module: nn.Module, bound: float, generator: torch.Generator | None) -> None:
    """Draw all weights uniformly from -bound to bound; with None by torch's own generator."""
    with torch.no_grad():
        for weights in module.parameters():
            weights.uniform_(-bound, bound, generator=generator)


def check_tokens(tokens: Tensor, options: Sequence[int]) -> None:
    """Check that tokens are sequences of so many options for each place.

    Raises:
        OfaError: naming the place that is wrong.
    """
    if tokens.ndim != 2 or tokens.shape[1] != len(options) or tokens.is_floating_point():
        raise OfaError(f"tokens are {tokens.dtype} {tuple(tokens.shape)}, expected integers (n, {len(options)})")
    wrong = ((tokens < 0) | (tokens >= torch.tensor(options, device=tokens.device))).nonzero()
    if len(wrong):
        row, place = wrong[0].tolist()
        raise OfaError(f"token {place} of sequence {row} is {int(tokens[row, place])}, expected 0 to {options[place] - 1}")
