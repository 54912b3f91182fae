"""Architectures as dicts of lists: what the dicts of MIT's once-for-all and of AttentiveNAS have in common."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from numbers import Real
from typing import Any

from ofa.formats.published import FormatError
from ofa.space import SearchSpace, Value


def as_list(config: Mapping[str, Any], key: str, length: int) -> list[Any]:
    """Return an entry as a list of this length: a single value is repeated, a missing one or None is None everywhere.

    Raises:
        FormatError: if it is a list of another length, or holds anything but numbers and None.
    """
    value = config.get(key)
    found = list(value) if isinstance(value, Sequence) and not isinstance(value, str) else [value] * length
    if len(found) != length:
        raise FormatError(f"architecture: {key!r} has {len(found)} entries, expected {length}")
    for entry in found:
        if entry is not None and (isinstance(entry, bool) or not isinstance(entry, Real)):
            raise FormatError(f"architecture: {key!r} has {entry!r}, expected a number or null")
    return found


def check_keys(config: Mapping[str, Any], known: Sequence[str]) -> None:
    """Raise FormatError for a key that would be ignored."""
    unknown = sorted(set(config) - set(known))
    if unknown:
        raise FormatError(f"architecture: unknown entry {unknown[0]!r}, expected some of: {', '.join(known)}")


def options_of(space: SearchSpace, name: str) -> tuple[Value, ...]:
    """Return the options of a dimension, smallest first."""
    return space.dimensions[space.column[name]].options


def pick(space: SearchSpace, name: str, value: Any, *, active: bool = True) -> Any:
    """Return a dimension's value: None stands for the largest; a block that does not stand may have any value.

    An illegal value is returned as it is: SearchSpace.from_values names it and what is legal.
    """
    options = options_of(space, name)
    if value is None:
        return options[-1]
    if value in options:
        return options[options.index(value)]
    return value if active else options[0]


def stage_blocks(space: SearchSpace, kind: str = "expand_ratio") -> dict[str, list[str]]:
    """Return stage -> names of its blocks that have a choice of this kind, e.g. {"stage1": ["stage1.block0", ...]}."""
    stages: dict[str, list[str]] = {name.removesuffix(".depth"): [] for name in space.column if name.endswith(".depth")}
    stages.pop("stem", None)
    for name in space.column:
        block, _, last = name.rpartition(".")
        if last == kind and "." in block:
            stages[block.partition(".")[0]].append(block)
    return stages
