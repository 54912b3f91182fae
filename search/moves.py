"""Changes of architectures that always change something: other options, near or far, and crossing of parents."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ofa.space import Population, SearchSpace


def free_choices(space: SearchSpace, population: Population) -> NDArray[np.bool_]:
    """Tell which choices have an effect and more than one option, (n, dimensions)."""
    return space.active(population) & (space.num_options > 1)


def change_one(space: SearchSpace, population: Population, rng: np.random.Generator) -> Population:
    """Change one choice of every architecture, uniform among those with an effect, to another option.

    Source: the mutation of Real et al. 2019 (arXiv 1802.01548), section 3.
    """
    weight = rng.random(population.shape) * free_choices(space, population)
    return change(space, population, (weight == weight.max(1, keepdims=True)) & (weight > 0), rng)


def change_some(space: SearchSpace, population: Population, rng: np.random.Generator, rate: float | None = None) -> Population:
    """Change every choice with an effect with probability `rate`; None = one of them on average."""
    free = free_choices(space, population)
    rates = 1 / np.maximum(free.sum(1, keepdims=True), 1) if rate is None else rate
    return change(space, population, free & (rng.random(population.shape) < rates), rng)


def change(
    space: SearchSpace,
    population: Population,
    chosen: NDArray[np.bool_],
    rng: np.random.Generator,
    *,
    reach: NDArray[np.int64] | None = None,
) -> Population:
    """Change the chosen choices to another option, uniform among those within reach.

    A choice that begins to have an effect by another's change (the kernel size of a block that is added) had no value of its own:
    it is drawn anew.

    Args:
        population: (n, dimensions), canonical.
        chosen: (n, dimensions).
        reach: (dimensions,) largest distance from the present option; None = any option.
    Returns:
        A new canonical population.
    """
    last = space.num_options - 1
    low, high = np.zeros_like(last), last
    if reach is not None:
        low, high = np.maximum(population - reach, 0), np.minimum(population + reach, last)
    other = low + (rng.random(population.shape) * (high - low)).astype(np.int64)
    other += other >= population  # the present option is left out
    changed = np.where(chosen & (last > 0), other, population)
    return _fill(space, changed.astype(np.int16), space.active(population), rng)


def cross(space: SearchSpace, first: Population, second: Population, rng: np.random.Generator) -> Population:
    """Take every choice from one of two parents at random, but from the one in which it has an effect if only one is such.

    Returns:
        A new canonical population.
    """
    of_first, of_second = space.active(first), space.active(second)
    heads = rng.random(first.shape) < 0.5
    child = np.where(np.where(of_first == of_second, heads, of_first), first, second)
    return _fill(space, child, of_first | of_second, rng)


def _fill(space: SearchSpace, population: Population, known: NDArray[np.bool_], rng: np.random.Generator) -> Population:
    """Draw the choices that no parent had."""
    drawn = (rng.random(population.shape) * space.num_options).astype(np.int16)
    return space.canonical(np.where(known, population, drawn))
