"""REINFORCE: a policy of independent choices, moved towards those that were rewarded above average."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from ofa.errors import OfaError
from ofa.space import Population, SearchSpace
from search.pareto import require_single
from search.proposals import Proposals
from search.rewards import hard_reward
from search.strategies import Repair

LENDERS = 20  # best architectures from which a repair takes choices
CLIP = 5.0  # of advantages, in standard deviations: one lucky draw must not decide
BETA1, BETA2, EPSILON = 0.9, 0.999, 1e-8  # Adam's usual


class Reinforce:
    """Ask/tell REINFORCE with factorised softmax logits; `policy()` tells the probabilities of every choice's options.

    The reward is the negated objective; missed limits lower it by MnasNet's hard rule (search.rewards.hard_reward). Rewards are
    centred and scaled by moving averages, so that their unit is of no effect. Choices without effect get no gradient.
    What the policy draws again is not proposed again: its reward is known and teaches the policy at once. Where the policy draws
    nothing new, networks around its favourites are proposed.

    Args:
        learning_rate: of Adam.
        entropy_bonus: reward, in standard deviations, for each nat of entropy of a choice.
        decay: of the moving averages, for every `minibatch` architectures.
        minibatch: judged architectures to one step of Adam.
    Source: Zoph and Le 2017 (arXiv 1611.01578), section 3.2, with independent choices in place of a recurrent controller as in
        the REINFORCE of NAS-Bench-101 (Ying et al. 2019, arXiv 1902.09635); Tan et al. 2019 (arXiv 1807.11626) for the reward.
    """

    multi_objective: ClassVar[bool] = False

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
        if learning_rate <= 0 or entropy_bonus < 0 or not 0 <= decay < 1 or minibatch < 1:
            raise OfaError(
                f"learning_rate {learning_rate}, entropy_bonus {entropy_bonus}, decay {decay}, minibatch {minibatch}: "
                "expected above 0, at least 0, in [0, 1), at least 1"
            )
        self.space, self.rng, self._batch = space, rng, batch
        self._learning_rate, self._entropy_bonus, self._decay, self._minibatch = learning_rate, entropy_bonus, decay, minibatch
        self._proposals = Proposals(space, rng, start=start, repair=repair)
        self._legal = np.arange(space.num_options.max()) < space.num_options[:, None]  # (dimensions, options)
        self.logits: NDArray[np.float64] = np.zeros(self._legal.shape)
        self._momentum, self._square, self._steps = np.zeros(self._legal.shape), np.zeros(self._legal.shape), 0
        self._rewards: dict[int, float] = {}  # by the architecture's key
        self._worst, self._best = np.inf, -np.inf  # scores told
        self._mean = self._variance = self._weight = 0.0  # moving sums; divided by the weight they are averages
        self._first_draw = True

    def ask(self) -> Population:
        """Return draws of the policy that were not asked for yet."""
        self._first_draw = True
        return self._proposals.take(self._batch, self._draw)

    def tell(self, population: Population, objectives: NDArray[np.float64], violation: NDArray[np.float64]) -> None:
        """Move the policy towards what is better than the moving average."""
        require_single("reinforce", objectives)
        canonical = self.space.canonical(population)
        self._proposals.note(canonical)
        rewards = self._reward(-objectives[:, 0], violation)
        self._rewards.update(zip(self.space.keys(canonical).tolist(), rewards.tolist(), strict=True))
        self._learn(canonical, rewards)
        lenders = canonical[violation <= 0]
        if self._proposals.lenders is not None:
            lenders = self.space.distinct(np.concatenate([lenders, self._proposals.lenders]))
        self._proposals.lenders = lenders[np.argsort(-self._known_rewards(lenders), kind="stable")[:LENDERS]]

    def policy(self) -> NDArray[np.float64]:
        """Return the probability of every option, (dimensions, most options); 0 where a dimension has fewer."""
        weights = np.where(self._legal, np.exp(self.logits - self.logits.max(1, keepdims=True)), 0)
        return weights / weights.sum(1, keepdims=True)

    def _reward(self, score: NDArray[np.float64], violation: NDArray[np.float64]) -> NDArray[np.float64]:
        """Turn scores into rewards; one that is unknown counts as the worst, and without limits missed as a failure."""
        unknown = ~np.isfinite(score)
        self._worst = min(self._worst, float(score[~unknown].min(initial=np.inf)))
        self._best = max(self._best, float(score[~unknown].max(initial=-np.inf)))
        worst = self._worst if np.isfinite(self._worst) else 0.0
        scale = self._best - self._worst if self._best > self._worst else 1.0
        missed = np.where(np.isnan(violation) | (unknown & (violation <= 0)), np.inf, violation)
        return hard_reward(np.where(unknown, worst, score), missed, scale=scale)

    def _known_rewards(self, population: Population) -> NDArray[np.float64]:
        """Return the rewards of architectures, (n,); NaN for those that were not judged."""
        return np.array([self._rewards.get(key, np.nan) for key in self.space.keys(population).tolist()], dtype=np.float64)

    def _draw(self, n: int) -> Population:
        above = self.rng.random((n, len(self.logits), 1)) >= np.cumsum(self.policy(), axis=1)
        options = np.minimum(above.sum(2), self.space.num_options - 1)  # the sum may end just below 1
        drawn = self.space.canonical(options.astype(np.int16))
        if self._first_draw:  # once for each batch; the next draws only fill it up
            self._first_draw = False
            rewards = self._known_rewards(drawn)
            known = ~np.isnan(rewards)
            self._learn(drawn[known], rewards[known])
        return drawn

    def _learn(self, population: Population, rewards: NDArray[np.float64]) -> None:
        for start in range(0, len(population), self._minibatch):
            part = slice(start, start + self._minibatch)
            self._step(self._gradient(population[part], self._advantage(rewards[part])))

    def _advantage(self, rewards: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return how many standard deviations rewards lie above the moving average, (n,)."""
        kept = self._decay ** (len(rewards) / self._minibatch)
        self._weight = kept * self._weight + 1 - kept
        self._mean = kept * self._mean + (1 - kept) * float(rewards.mean())
        apart = rewards - self._mean / self._weight
        self._variance = kept * self._variance + (1 - kept) * float((apart**2).mean())
        deviation = (self._variance / self._weight) ** 0.5
        return np.clip(apart / deviation, -CLIP, CLIP) if deviation > 0 else np.zeros(len(rewards))

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
