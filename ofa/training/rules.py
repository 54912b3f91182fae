"""Training rules: which subnets a step trains, and what each of them learns from.

A rule is a function (space, generator) -> lessons. The generator is seeded with (seed, step), so that a
resumed run draws the same subnets as one that was never stopped.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from ofa.errors import OfaError
from ofa.space import ArchConfig, SearchSpace


@dataclass(frozen=True, slots=True)
class Lesson:
    """One subnet of a step. Either the labels teach it, or the step's first subnet does (in-place distillation)."""

    arch: ArchConfig
    from_labels: bool


Rule = Callable[[SearchSpace, np.random.Generator], list[Lesson]]


def sandwich(space: SearchSpace, rng: np.random.Generator, *, num_random: int = 2) -> list[Lesson]:
    """The largest network learns from the labels; the smallest and `num_random` others learn from the largest's outputs.

    Source: Yu and Huang 2019 (arXiv 1903.05134), the sandwich rule and in-place distillation; Yu et al. 2020 (BigNAS), section 3.
    """
    others = [*space.decode(space.sample(rng, num_random)), space.smallest]
    distinct = [arch for arch in dict.fromkeys(others) if arch != space.largest]
    return [Lesson(space.largest, from_labels=True), *(Lesson(arch, from_labels=False) for arch in distinct)]


RULES: dict[str, Rule] = {"sandwich": sandwich}


def get_rule(name: str) -> Rule:
    """Look a rule up by its recipe name.

    Raises:
        OfaError: listing the recipes that exist.
    """
    if name not in RULES:
        raise OfaError(f"unknown recipe {name!r}; known: {', '.join(RULES)}")
    return RULES[name]
