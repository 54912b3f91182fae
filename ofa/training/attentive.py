"""Attentive sampling: train the random subnets that a predictor expects to be the best, or the worst, of their size.

Source: Wang et al. 2021 (AttentiveNAS, arXiv 2011.09011): BestUp and WorstUp. There the predictor is made before the training;
here it learns during it, at no cost, from the losses of the subnets that are trained anyway: a ridge regression from the choices
to the loss relative to that of the step's largest network, older steps fading away.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from ofa.counts import macs
from ofa.space import ArchConfig, SearchSpace
from ofa.training.config import TrainConfig
from ofa.training.rules import Lesson, Sandwich

POOL = 8  # architectures drawn for each candidate, so that candidates cost about the same; at least 512
FADING = 0.999  # weight of a step after the next one
RIDGE = 1.0
MIN_OBSERVATIONS = 64  # before that the choice is random


class Attentive(Sandwich):
    """The sandwich rule with its random subnets chosen: of `num_candidates` with about the same MACs, the best or the worst.

    Which MACs is drawn anew for each: those of a uniformly drawn architecture.
    """

    def __init__(self, space: SearchSpace, config: TrainConfig, *, taught: bool = False) -> None:
        super().__init__(space, config, taught=taught)
        width = int(space.num_options.sum()) + 1  # and a constant
        self._products, self._targets = np.zeros((width, width)), np.zeros(width)
        self._count = 0

    def _random(self, rng: np.random.Generator) -> list[ArchConfig]:
        pool = self.space.sample(rng, max(512, POOL * self.config.num_candidates))
        cost = macs(self.space, pool)
        anchors = rng.integers(len(pool), size=self.config.num_random)
        near = np.argsort(np.abs(cost[None] - cost[anchors, None]), axis=1, kind="stable")[:, : self.config.num_candidates]
        if self._count < MIN_OBSERVATIONS:
            return self.space.decode(pool[anchors])
        features = self._features(pool)
        loss = features @ np.linalg.solve(self._products + RIDGE * np.eye(features.shape[1]), self._targets)
        best = np.take_along_axis(near, (loss if self.config.prefer == "best" else -loss)[near].argmin(1)[:, None], axis=1)
        return self.space.decode(pool[best[:, 0]])

    def observe(self, lessons: Sequence[Lesson], losses: Sequence[float]) -> None:
        if len(lessons) < 2:
            return
        features = self._features(self.space.encode([lesson.arch for lesson in lessons[1:]]))
        relative = np.array(losses[1:]) - losses[0]
        self._products = FADING * self._products + features.T @ features
        self._targets = FADING * self._targets + features.T @ relative
        self._count += len(relative)

    def state(self) -> dict[str, Tensor]:
        arrays = {"products": self._products, "targets": self._targets, "count": np.array(self._count)}
        return {name: torch.from_numpy(np.ascontiguousarray(value)) for name, value in arrays.items()}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        self._products, self._targets = state["products"].numpy(), state["targets"].numpy()
        self._count = int(state["count"])

    def _features(self, population: np.ndarray) -> np.ndarray:
        one_hot = self.space.one_hot(population).astype(np.float64)
        return np.hstack([one_hot, np.ones((len(one_hot), 1))])
