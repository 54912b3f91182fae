"""Training rules: which subnets a step trains, and what each of them learns from.

A rule draws from a generator that is seeded with (seed, step), so that a resumed run, and every process of a distributed one,
draws the same subnets. Training is a sequence of phases, each with a rule; only progressive shrinking has more than one.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from ofa.counts import macs
from ofa.errors import OfaError
from ofa.space import ArchConfig, SearchSpace
from ofa.training.config import TrainConfig

TRIES = 500  # networks drawn to find one in a bin, as in the release


@dataclass(frozen=True, slots=True)
class Lesson:
    """One subnet of a step. Its loss is label_weight x cross-entropy + teacher_weight x distillation.

    The teacher is the run's external one or, if it has none, the step's first lesson (in-place distillation).
    """

    arch: ArchConfig
    label_weight: float
    teacher_weight: float = 0.0
    regularized: bool = True  # label smoothing, dropout and drop-connect apply


class Rule(ABC):
    """Which subnets a step trains, and what each of them learns from."""

    def __init__(self, space: SearchSpace, config: TrainConfig, *, taught: bool = False) -> None:
        """Make a rule; `taught` tells whether an external teacher is there."""
        self.space, self.config, self.taught = space, config, taught

    @abstractmethod
    def lessons(self, rng: np.random.Generator) -> list[Lesson]:
        """Return the lessons of a step, the in-place teacher first."""

    def observe(self, lessons: Sequence[Lesson], losses: Sequence[float]) -> None:  # noqa: B027  # most rules need not
        """Take note of a step's losses, (lessons,)."""

    def state(self) -> dict[str, Tensor]:
        """Return what `observe` has gathered, for a checkpoint."""
        return {}

    def load_state(self, state: Mapping[str, Tensor]) -> None:  # noqa: B027
        """Take over what `state` returned."""

    def _from_labels(self, arch: ArchConfig) -> Lesson:
        """Labels, and the external teacher if there is one."""
        return Lesson(arch, label_weight=1.0, teacher_weight=self.config.kd_ratio if self.taught else 0.0)


class Sandwich(Rule):
    """The largest network learns from the labels; the smallest and some random ones learn from the largest's outputs.

    Only the largest is regularised. Source: Yu and Huang 2019 (arXiv 1903.05134), the sandwich rule and in-place distillation;
    Yu et al. 2020 (BigNAS), section 3.
    """

    def lessons(self, rng: np.random.Generator) -> list[Lesson]:
        others = [*self._random(rng), self.space.smallest]
        distinct = [arch for arch in dict.fromkeys(others) if arch != self.space.largest]
        return [self._from_labels(self.space.largest), *(self._student(arch) for arch in distinct)]

    def _random(self, rng: np.random.Generator) -> list[ArchConfig]:
        return self.space.decode(self.space.sample(rng, self.config.num_random))

    def _student(self, arch: ArchConfig) -> Lesson:
        if self.config.distillation == "none":
            return Lesson(arch, label_weight=1.0, regularized=False)
        return Lesson(arch, label_weight=0.0, teacher_weight=1.0, regularized=False)


class SinglePath(Rule):
    """One random network a step, taught by the labels (Guo et al. 2020, arXiv 1904.00420, section 3.3).

    Every choice is uniform; or, where the config limits the multiply-adds, the bin is that they shall lie in, as in the release
    (whose bins are 290 to 360 M in steps of 10). Of the networks tried, the first one in the bin is taken, or else the first one.
    """

    def __init__(self, space: SearchSpace, config: TrainConfig, *, taught: bool = False) -> None:
        """Make a rule.

        Raises:
            OfaError: if no network of some thousand is within the limits.
        """
        super().__init__(space, config, taught=taught)
        if not config.most_mmacs:
            return
        drawn = self.space.sample(np.random.default_rng(config.seed), 20 * TRIES)
        found = macs(space, np.concatenate([drawn, space.encode([space.smallest, space.largest])])) / 1e6
        if not ((config.least_mmacs <= found) & (found <= config.most_mmacs)).any():
            raise OfaError(
                f"least_mmacs = {config.least_mmacs}, most_mmacs = {config.most_mmacs}: none of {len(found)} networks of "
                f"{space.name} lies between, they take {found.min():.4g} to {found.max():.4g} M"
            )

    def lessons(self, rng: np.random.Generator) -> list[Lesson]:
        config = self.config
        if not config.most_mmacs:
            return [self._from_labels(arch) for arch in self.space.decode(self.space.sample(rng, 1))]
        bins = math.ceil((config.most_mmacs - config.least_mmacs) / config.bin_mmacs)
        least = config.least_mmacs + config.bin_mmacs * int(rng.integers(bins))
        tried = self.space.sample(rng, TRIES)
        found = macs(self.space, tried) / 1e6
        first = int(((least <= found) & (found <= min(least + config.bin_mmacs, config.most_mmacs))).argmax())
        return [self._from_labels(arch) for arch in self.space.decode(tried[first : first + 1])]


class Shrinking(Rule):
    """A phase of progressive shrinking: some random networks of the part of the space that is open by now.

    All of a step share one input resolution (Cai et al. 2020, appendix B).
    """

    def __init__(
        self, space: SearchSpace, config: TrainConfig, *, taught: bool, least: NDArray[np.int64], num_subnets: int
    ) -> None:
        """`least`: smallest open option of every dimension, (dimensions,)."""
        super().__init__(space, config, taught=taught)
        self.least, self.num_subnets = least, num_subnets

    def lessons(self, rng: np.random.Generator) -> list[Lesson]:
        population = self.space.sample(rng, self.num_subnets, least=self.least)
        resolution = self.space.column["resolution"]
        population[:, resolution] = population[0, resolution]
        return [self._from_labels(arch) for arch in self.space.decode(population)]
