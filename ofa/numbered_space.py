"""Spaces that come in several sizes: the same choices in networks of other numbers, which follow the space's name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar

from ofa.errors import OfaError
from ofa.space import SearchSpace

if TYPE_CHECKING:
    from typing_extensions import Self

Numbers = tuple[tuple[str, int | str], ...]


class NumberedSpace(SearchSpace):
    """A dataclass with the fields `base`, `usual`, and those that NUMBERS names.

    Its name is the base name and the numbers that were changed: "darts:cells=8,channels=16".
    """

    NUMBERS: ClassVar[Mapping[str, str]]  # what `with_numbers` changes -> field that holds it

    base: str  # name without the numbers that follow it
    usual: Numbers  # numbers that its name leaves out; (): those that it is made with

    def __post_init__(self) -> None:
        object.__setattr__(self, "usual", self.usual or tuple(self.numbers.items()))  # of a frozen dataclass

    @property
    def name(self) -> str:  # type: ignore[override]
        """Base name, and the numbers that were changed with `with_numbers`."""
        changed = ",".join(f"{key}={value}" for key, value in self.numbers.items() if (key, value) not in self.usual)
        return f"{self.base}:{changed}" if changed else self.base

    @property
    def numbers(self) -> dict[str, int | str]:
        """What `with_numbers` changes."""
        return {number: getattr(self, field) for number, field in self.NUMBERS.items()}

    def with_numbers(self, **numbers: int | str) -> Self:
        """Return the same choices in a network of another size or form.

        Raises:
            OfaError: for an unknown name or a number that no network can have.
        """
        present = self.numbers
        if unknown := sorted(set(numbers) - set(present)):
            raise OfaError(f"{self.base} has no number {unknown[0]!r}; it has: {', '.join(present)}")
        for name, value in numbers.items():
            if type(value) is not type(present[name]):
                raise OfaError(f"{self.base}: {name} is {value!r}, expected something like {present[name]!r}")
        fields: dict[str, Any] = {self.NUMBERS[name]: value for name, value in numbers.items()}
        return replace(self, **fields)  # type: ignore[type-var]  # a dataclass, which the type does not say
