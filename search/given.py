"""Options that were given on the command line: which become settings, and which have no place there."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

from ofa.errors import OfaError

T = TypeVar("T")


def refuse(given: Mapping[str, Any], names: Iterable[str], why: str) -> None:
    """Refuse options that something else that was given makes useless.

    Raises:
        OfaError: naming the first, and why.
    """
    for name in names:
        if name in given:
            raise OfaError(f"--{name.replace('_', '-')} {given[name]}: {why}, which has no use for it; leave it out")


def needed(value: T | None, message: str) -> T:
    """Return what was given.

    Raises:
        OfaError: if nothing was.
    """
    if value is None:
        raise OfaError(message)
    return value


def some(given: Mapping[str, Any], names: Iterable[str]) -> dict[str, Any]:
    """Return those of some options that were given."""
    return {name: given[name] for name in names if name in given}
