"""What searches with a policy share: rewards, a moving average to compare them with, and no network asked for twice."""

from __future__ import annotations

from abc import ABC, abstractmethod
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


class PolicySearch(ABC):
    """Ask/tell search by a policy over architectures; a subclass says how to draw from it and how to move it.

    The reward is the negated objective; missed limits lower it by MnasNet's hard rule (search.rewards.hard_reward). Rewards are
    centred and scaled by moving averages, so that their unit is of no effect. What the policy draws again is not proposed again:
    its reward is known and teaches the policy at once. Where the policy draws nothing new, networks around its favourites are
    proposed.
    """

    multi_objective: ClassVar[bool] = False
    name: ClassVar[str]  # of the strategy, for messages

    def __init__(
        self,
        space: SearchSpace,
        rng: np.random.Generator,
        *,
        batch: int,
        start: Population | None,
        repair: Repair | None,
        decay: float,
        minibatch: int,
    ) -> None:
        """Begin.

        Args:
            decay: of the moving averages, for every `minibatch` architectures.
            minibatch: judged architectures to one step of the policy.
        """
        if not 0 <= decay < 1 or minibatch < 1:
            raise OfaError(f"decay {decay}, minibatch {minibatch}: expected in [0, 1), at least 1")
        self.space, self.rng, self._batch = space, rng, batch
        self._decay, self._minibatch = decay, minibatch
        self._proposals = Proposals(space, rng, start=start, repair=repair)
        self._rewards: dict[int, float] = {}  # by the architecture's key
        self._worst, self._best = np.inf, -np.inf  # scores told
        self._mean = self._variance = self._weight = 0.0  # moving sums; divided by the weight they are averages
        self._first_draw = True

    @abstractmethod
    def draw(self, n: int) -> Population:
        """Return n draws of the policy, canonical."""

    @abstractmethod
    def learn(self, population: Population, advantage: NDArray[np.float64]) -> None:
        """Take a step with a minibatch of canonical architectures and how many standard deviations they are above average."""

    def ask(self) -> Population:
        """Return draws of the policy that were not asked for yet."""
        self._first_draw = True
        return self._proposals.take(self._batch, self._draw)

    def tell(self, population: Population, objectives: NDArray[np.float64], violation: NDArray[np.float64]) -> None:
        """Move the policy towards what is better than the moving average."""
        require_single(self.name, objectives)
        canonical = self.space.canonical(population)
        self._proposals.note(canonical)
        rewards = self._reward(-objectives[:, 0], violation)
        self._rewards.update(zip(self.space.keys(canonical).tolist(), rewards.tolist(), strict=True))
        self._learn(canonical, rewards)
        lenders = canonical[violation <= 0]
        if self._proposals.lenders is not None:
            lenders = self.space.distinct(np.concatenate([lenders, self._proposals.lenders]))
        self._proposals.lenders = lenders[np.argsort(-self._known_rewards(lenders), kind="stable")[:LENDERS]]

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
        drawn = self.draw(n)
        if self._first_draw:  # once for each batch; the next draws only fill it up
            self._first_draw = False
            rewards = self._known_rewards(drawn)
            known = ~np.isnan(rewards)
            self._learn(drawn[known], rewards[known])
        return drawn

    def _learn(self, population: Population, rewards: NDArray[np.float64]) -> None:
        for start in range(0, len(population), self._minibatch):
            part = slice(start, start + self._minibatch)
            self.learn(population[part], self._advantage(rewards[part]))

    def _advantage(self, rewards: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return how many standard deviations rewards lie above the moving average, (n,)."""
        kept = self._decay ** (len(rewards) / self._minibatch)
        self._weight = kept * self._weight + 1 - kept
        self._mean = kept * self._mean + (1 - kept) * float(rewards.mean())
        apart = rewards - self._mean / self._weight
        self._variance = kept * self._variance + (1 - kept) * float((apart**2).mean())
        deviation = (self._variance / self._weight) ** 0.5
        return np.clip(apart / deviation, -CLIP, CLIP) if deviation > 0 else np.zeros(len(rewards))
