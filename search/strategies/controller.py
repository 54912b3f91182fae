"""A recurrent controller trained by REINFORCE: the policy of Zoph and Le, of choices that depend on those made before."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray

from ofa.errors import OfaError
from ofa.space import Population, SearchSpace
from search.joint.controllers.flat import controller_of
from search.joint.controllers.policy_gradient import PolicyGradient
from search.policy_search import PolicySearch
from search.strategies import Repair

LEAST_DRAWN = 100  # at a time: a pass over the LSTM costs little more for a hundred than for one


class ControllerSearch(PolicySearch):
    """Ask/tell REINFORCE with an LSTM that makes a space's choices one after the other.

    Rewards, limits and repetitions are those of search.policy_search.

    Args:
        learning_rate: of Adam.
        entropy_bonus: reward, in standard deviations, for each nat of entropy of an architecture.
        decay: of the moving averages, for every `minibatch` architectures.
        minibatch: judged architectures to one step of Adam.
        size: units of the LSTM.
    Source: Zoph and Le 2017 (arXiv 1611.01578), section 3.2; Pham et al. 2018 (arXiv 1802.03268) for the LSTM.
    """

    name: ClassVar[str] = "controller"

    def __init__(
        self,
        space: SearchSpace,
        rng: np.random.Generator,
        *,
        batch: int = 200,
        start: Population | None = None,
        repair: Repair | None = None,
        learning_rate: float = 0.03,
        entropy_bonus: float = 0.1,
        decay: float = 0.9,
        minibatch: int = 10,
        size: int = 64,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        tanh_constant: float | None = None,
        temperature: float | None = None,
    ) -> None:
        if learning_rate <= 0 or entropy_bonus < 0 or size < 1:
            wrong = f"learning_rate {learning_rate}, entropy_bonus {entropy_bonus}, size {size}"
            raise OfaError(f"{wrong}: expected above 0, at least 0, at least 1")
        super().__init__(space, rng, batch=batch, start=start, repair=repair, decay=decay, minibatch=minibatch)
        self._generator = torch.Generator().manual_seed(int(rng.integers(2**63)))
        self.controller = controller_of(
            space, size=size, tanh_constant=tanh_constant, temperature=temperature, generator=self._generator
        )
        self._drawn = space.encode([])  # by the policy as it is now, and not handed out yet
        # rewards come as standard deviations above an average: there is no other baseline
        self._gradient = PolicyGradient(
            self.controller,
            lr=learning_rate,
            betas=betas,
            eps=eps,
            baseline_decay=1.0,
            initial_baseline=0.0,
            entropy_weight=entropy_bonus,
            entropy_in="loss",
        )

    def draw(self, n: int) -> Population:
        if len(self._drawn) < n:
            with torch.no_grad():
                tokens = self.controller(max(n, LEAST_DRAWN), generator=self._generator).tokens
            self._drawn = tokens.numpy().astype(np.int16)
        drawn, self._drawn = self._drawn[:n], self._drawn[n:]
        return drawn

    def learn(self, population: Population, advantage: NDArray[np.float64]) -> None:
        self._drawn = self._drawn[:0]
        if (self.space.num_options == 1).all():  # there is nothing to learn
            return
        scored = self.controller(tokens=torch.from_numpy(population.astype(np.int64)))
        self._gradient.step(scored, torch.from_numpy(advantage))


STRATEGY = ControllerSearch
