"""Token sequences in the making: every choice drawn or read, its log-probability and entropy kept."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F


class Sequences:
    """n token sequences that a controller writes side by side, or reads if they are given.

    Tokens that are never chosen are 0 and certain.
    """

    def __init__(
        self,
        n: int,
        length: int,
        like: Tensor,
        *,
        generator: torch.Generator | None = None,
        tokens: Tensor | None = None,
        sampled_entropy: bool = False,
    ) -> None:
        """Begin sequences of `length` tokens.

        Args:
            like: a tensor of the type and device of log-probabilities.
            tokens: (n, length), sequences to read; None = draw.
            sampled_entropy: count -log p times p of the chosen token, without gradient, as the entropy of a choice.
        """
        self.reads = tokens is not None
        self.tokens = (
            torch.zeros(n, length, dtype=torch.int64, device=like.device)
            if tokens is None
            else tokens.to(like.device, torch.int64)
        )
        self.n = len(self.tokens)
        self.zeros = like.new_zeros(self.n)  # (n,)
        self._generator, self._sampled_entropy = generator, sampled_entropy
        self._log_probs: list[Tensor] = []
        self._entropies: list[Tensor] = []

    def choose(self, place: int, logits: Tensor, *, where: Tensor | None = None) -> Tensor:
        """Choose one token for each sequence, or several at once, independent of each other.

        Args:
            place: of the token, or of the first of them.
            logits: (n, options), or (n, m, options) for m tokens in a row.
            where: (n,) bool, sequences in which there is something to choose; the token of others is 0. One token only.
        Returns:
            The tokens, (n,) or (n, m).
        """
        log_p = F.log_softmax(logits, -1)
        if self.reads:
            tokens = self.tokens[:, place] if logits.ndim == 2 else self.tokens[:, place : place + logits.shape[1]]
        else:
            flat = torch.multinomial(log_p.detach().exp().flatten(0, -2), 1, generator=self._generator)
            tokens = flat.view(logits.shape[:-1])
            if where is not None:
                tokens = tokens * where
            if logits.ndim == 2:
                self.tokens[:, place] = tokens
            else:
                self.tokens[:, place : place + logits.shape[1]] = tokens
        of_tokens = log_p.gather(-1, tokens.unsqueeze(-1)).squeeze(-1)
        # cheap stand-in of the release, or the choice's own
        entropy = -(of_tokens * of_tokens.exp()).detach() if self._sampled_entropy else -(log_p.exp() * log_p).sum(-1)
        for kept, value in ((self._log_probs, of_tokens), (self._entropies, entropy)):
            summed = value if logits.ndim == 2 else value.sum(1)
            kept.append(summed if where is None else summed * where)
        return tokens

    def log_prob(self) -> Tensor:
        """Return the log-probability of each sequence, (n,)."""
        return torch.stack(self._log_probs).sum(0) if self._log_probs else self.zeros

    def entropy(self) -> Tensor:
        """Return the entropies of the choices, added up, (n,)."""
        return torch.stack(self._entropies).sum(0) if self._entropies else self.zeros


def generator_of(seed: int, number: int, purpose: int) -> torch.Generator:
    """Return what draws for one purpose at one step of a search: another stream for each of the three."""
    drawn = np.random.SeedSequence((seed, number, purpose)).generate_state(1, np.uint64)
    return torch.Generator().manual_seed(int(drawn[0] >> np.uint64(1)))
