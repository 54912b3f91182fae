"""REINFORCE: a policy of independent choices, moved towards those that were rewarded above average."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from ofa.errors import OfaError
from ofa.space import Population, SearchSpace
from search.policy_search import PolicySearch
from search.strategies import Repair

BETA1, BETA2, EPSILON = 0.9, 0.999, 1e-8  # Adam's usual


class Reinforce(PolicySearch):
    """Ask/tell REINFORCE with factorised softmax logits; `policy()` tells the probabilities of every choice's options.

    Rewards, limits and repetitions are those of search.policy_search. Choices without effect get no gradient.

    Args:
        learning_rate: of Adam.
        entropy_bonus: reward, in standard deviations, for each nat of entropy of a choice.
        decay: of the moving averages, for every `minibatch` architectures.
        minibatch: judged architectures to one step of Adam.
    Source: Zoph and Le 2017 (arXiv 1611.01578), section 3.2, with independent choices in place of a recurrent controller as in
        the REINFORCE of NAS-Bench-101 (Ying et al. 2019, arXiv 1902.09635); Tan et al. 2019 (arXiv 1807.11626) for the reward.
    """

    name: ClassVar[str] = "reinforce"

    def __init__(
        self,
        space: SearchSpace,
        rng: np.random.Generator,
        *,
        batch: int = 200,
        start: Population | None = None,
        repair: Repair | None = None,
        learning_rate: float = 0.1,
        entropy_bonus: float = 0.01,
        decay: float = 0.9,
        minibatch: int = 10,
    ) -> None:
        if learning_rate <= 0 or entropy_bonus < 0:
            raise OfaError(f"learning_rate {learning_rate}, entropy_bonus {entropy_bonus}: expected above 0, at least 0")
        super().__init__(space, rng, batch=batch, start=start, repair=repair, decay=decay, minibatch=minibatch)
        self._learning_rate, self._entropy_bonus = learning_rate, entropy_bonus
        self._legal = np.arange(space.num_options.max()) < space.num_options[:, None]  # (dimensions, options)
        self.logits: NDArray[np.float64] = np.zeros(self._legal.shape)
        self._momentum, self._square, self._steps = np.zeros(self._legal.shape), np.zeros(self._legal.shape), 0

    def policy(self) -> NDArray[np.float64]:
        """Return the probability of every option, (dimensions, most options); 0 where a dimension has fewer."""
        weights = np.where(self._legal, np.exp(self.logits - self.logits.max(1, keepdims=True)), 0)
        return weights / weights.sum(1, keepdims=True)

    def draw(self, n: int) -> Population:
        above = self.rng.random((n, len(self.logits), 1)) >= np.cumsum(self.policy(), axis=1)
        options = np.minimum(above.sum(2), self.space.num_options - 1)  # the sum may end just below 1
        return self.space.canonical(options.astype(np.int16))

    def learn(self, population: Population, advantage: NDArray[np.float64]) -> None:
        self._step(self._gradient(population, advantage))

    def _gradient(self, population: Population, advantage: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the gradient of advantage times log-probability, and of the entropy bonus, (dimensions, options)."""
        policy = self.policy()
        taken = population[:, :, None] == np.arange(policy.shape[1])  # (n, dimensions, options)
        weight = advantage[:, None] * self.space.active(population)
        gradient = (weight[:, :, None] * (taken - policy)).mean(0)
        log_policy = np.log(np.where(policy > 0, policy, 1))
        entropy = -(policy * log_policy).sum(1, keepdims=True)
        return gradient - self._entropy_bonus * policy * (log_policy + entropy)

    def _step(self, gradient: NDArray[np.float64]) -> None:
        self._steps += 1
        self._momentum = BETA1 * self._momentum + (1 - BETA1) * gradient
        self._square = BETA2 * self._square + (1 - BETA2) * gradient**2
        mean, square = self._momentum / (1 - BETA1**self._steps), self._square / (1 - BETA2**self._steps)
        self.logits = self.logits + self._learning_rate * mean / (np.sqrt(square) + EPSILON)


STRATEGY = Reinforce
