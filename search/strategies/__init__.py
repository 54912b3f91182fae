"""Search strategies: a file each, ask/tell; the file's name is the strategy's name.

`ask()` returns a population to judge; `tell(population, objectives, violation)` takes the verdict. Objectives are all to be small
(accuracy comes negated); violation is 0 where all limits are met and says otherwise by how much they are missed. The caller owns
the evaluation, so that the same strategies search on a predictor, which judges 100,000 networks a second, and on measured
accuracy. `tell` may be given other architectures than were asked for, or fewer.
"""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import re
from collections.abc import Mapping
from typing import ClassVar, Protocol

import numpy as np
from numpy.typing import NDArray

from ofa.errors import OfaError
from ofa.space import Population, SearchSpace


class Repair(Protocol):
    """Changes architectures until they meet the limits."""

    def __call__(self, population: Population, toward: Population | None = None) -> Population:
        """Return the population with rows that miss a limit changed; canonical.

        Args:
            population: (n, dimensions).
            toward: (n, dimensions), for each row one that meets the limits; it lends the choices that are changed. None = any.
        """
        ...


class Strategy(Protocol):
    """Proposes architectures and learns from how they do."""

    multi_objective: ClassVar[bool]  # whether `tell` takes more than one column of objectives

    def ask(self) -> Population:
        """Return canonical architectures to judge, about as many as one batch."""
        ...

    def tell(self, population: Population, objectives: NDArray[np.float64], violation: NDArray[np.float64]) -> None:
        """Learn from judged architectures.

        Args:
            population: (n, dimensions).
            objectives: (n, m), all to be small.
            violation: (n,), 0 = all limits are met.
        """
        ...


class StrategyFactory(Protocol):
    """What a strategy's file offers as STRATEGY: its class."""

    @property
    def multi_objective(self) -> bool: ...

    def __call__(
        self,
        space: SearchSpace,
        rng: np.random.Generator,
        *,
        batch: int = 200,  # architectures that one `ask` returns
        start: Population | None = None,  # architectures to begin with, such as some that meet the limits
        repair: Repair | None = None,
    ) -> Strategy: ...


def list_strategies() -> list[str]:
    """Return the names of the strategies that ship with the toolkit."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__))


def get_strategy(name: str) -> StrategyFactory:
    """Return a strategy's class by name; its own numbers may follow: "spos:population=50,generations=20".

    Raises:
        OfaError: listing the names, or the numbers, that exist.
    """
    name, colon, numbers = name.partition(":")
    if name not in list_strategies():
        raise OfaError(f"unknown strategy {name!r}; known: {', '.join(list_strategies())}")
    found: StrategyFactory = importlib.import_module(f"{__name__}.{name}").STRATEGY
    return _WithNumbers(found, _parse_numbers(name, numbers, found)) if colon else found


class _WithNumbers:
    """A strategy some of whose numbers are not the usual ones."""

    def __init__(self, made: StrategyFactory, numbers: Mapping[str, float]) -> None:
        self._made, self._numbers = made, numbers

    @property
    def multi_objective(self) -> bool:
        return self._made.multi_objective

    def __call__(
        self,
        space: SearchSpace,
        rng: np.random.Generator,
        *,
        batch: int = 200,
        start: Population | None = None,
        repair: Repair | None = None,
    ) -> Strategy:
        return self._made(space, rng, batch=batch, start=start, repair=repair, **self._numbers)


def _parse_numbers(name: str, text: str, made: StrategyFactory) -> dict[str, float]:
    known = [
        key for key in inspect.signature(made).parameters if key not in inspect.signature(StrategyFactory.__call__).parameters
    ]
    numbers: dict[str, float] = {}
    for part in text.split(","):
        key, _, value = (word.strip() for word in part.partition("="))
        if key not in known or not re.fullmatch(r"[0-9]{1,9}(\.[0-9]{1,9})?", value):
            raise OfaError(f"strategy {name}: {part!r} is none of its numbers (name=1), it has: {', '.join(known) or 'none'}")
        numbers[key] = float(value) if "." in value else int(value)
    return numbers
