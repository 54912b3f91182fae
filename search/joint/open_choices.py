"""The choices of a space that a search by gates decides: those that put one block or another of equal shape into a slot."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ofa.block_spec import BlockSpec
from ofa.space import ArchConfig, Dimension, SearchSpace, Slot, Value
from ofa.subspace import SubSpace
from search.joint.record import SearchError

MOST_BLOCKS = 10_000  # of one slot, that are looked at
MOST_NAMES = 8  # of choices in an error


@dataclass(frozen=True, eq=False)
class OpenChoices:
    """Dimensions that are to be decided, in the order of the space, and what decides the others."""

    space: SearchSpace
    columns: tuple[int, ...]  # of the dimensions to be decided
    decided: NDArray[np.int16]  # (dimensions,) option indices; at `columns` without meaning
    slots: dict[str, tuple[int, ...]]  # slot -> which of the choices decide it; slots that nothing open decides are left out

    @property
    def dimensions(self) -> tuple[Dimension, ...]:
        """Those to be decided."""
        return tuple(self.space.dimensions[column] for column in self.columns)

    @property
    def sub_space(self) -> SubSpace:
        """The space with nothing but the open choices left."""
        names = self.space.dimensions
        kept = {names[c].name: [names[c].options[i]] for c, i in enumerate(self.decided.tolist()) if c not in self.columns}
        return SubSpace(self.space, kept)

    def arch(self, chosen: Sequence[int]) -> ArchConfig:
        """Return the architecture of some option indices, one for each choice."""
        row = self.decided.copy()
        row[list(self.columns)] = chosen
        return self.space.decode(row[None])[0]

    def block(self, slot: Slot, chosen: Sequence[int]) -> BlockSpec:
        """Return the block that stands in a slot."""
        spec = slot.choose(*_values(self.space, slot.depends_on, self._row(chosen)))
        assert spec is not None  # open_choices made sure
        return spec

    def _row(self, chosen: Sequence[int]) -> list[int]:
        row: list[int] = self.decided.tolist()
        for column, option in zip(self.columns, chosen, strict=True):
            row[column] = option
        return row


def open_choices(space: SearchSpace, fixed: Sequence[str] = ()) -> OpenChoices:
    """Find what is to be decided.

    Args:
        fixed: "PATTERN=OPTION" decides the dimensions that a pattern names beforehand, e.g. "resolution=128" or "*.depth=4".
    Raises:
        SearchError: if nothing is left to be decided, or a choice changes which blocks there are, their shapes or what they read.
    """
    if not space.slots:
        raise SearchError(
            f"{space.name}: its networks read no images, expected a space whose blocks gates can choose: ofa spaces"
        )
    named = _fixed(space, fixed)
    decided = np.array([named.get(d.name, 0) for d in space.dimensions], dtype=np.int16)
    loose = [c for c, d in enumerate(space.dimensions) if len(d.options) > 1 and d.name not in named]
    probe = decided.copy()
    probe[loose] = space.num_options[loose] - 1
    has_effect = space.active(probe[None])[0]
    columns = tuple(c for c in loose if has_effect[c])
    if not columns:
        raise SearchError(f"{space.name}: no choice is left to be decided, expected some with several options")
    slots = {}
    for slot in space.slots:
        deciding = _open(space, columns, slot.depends_on)
        if deciding:
            _require_equal_shapes(space, slot, decided, deciding)
            slots[slot.name] = tuple(columns.index(c) for c in deciding)
        if deciding or slot.choose(*_values(space, slot.depends_on, decided.tolist())) is not None:
            wiring = slot.depends_on if slot.reads_on is None else slot.reads_on
            _require_equal_wiring(space, slot, decided, _open(space, columns, wiring))
    without = [
        space.dimensions[c].name for place, c in enumerate(columns) if not any(place in places for places in slots.values())
    ]
    if without:
        raise SearchError(f"{space.name}: {without[0]} decides no block, expected choices between blocks; decide it with --fix")
    return OpenChoices(space, columns, decided, slots)


def _open(space: SearchSpace, columns: Sequence[int], names: Sequence[str]) -> list[int]:
    """Return the columns of those dimensions that are to be decided, in the order of the space."""
    return [c for c in sorted({space.column[name] for name in names}) if c in columns]


def _fixed(space: SearchSpace, texts: Sequence[str]) -> dict[str, int]:
    """Dimension -> option index of what is decided beforehand."""
    found: dict[str, int] = {}
    for text in texts:
        pattern, equals, value = text.partition("=")
        named = [d for d in space.dimensions if fnmatchcase(d.name, pattern.strip()) and len(d.options) > 1]
        if not equals or not named:
            names = ", ".join(d.name for d in space.dimensions if len(d.options) > 1)
            raise SearchError(f"--fix {text!r}: expected NAME=OPTION with the name, or a pattern, of one of: {names[:300]}")
        for dimension in named:
            options = [str(option) for option in dimension.options]
            if value.strip() not in options:
                raise SearchError(f"--fix {text!r}: {dimension.name} has the options {', '.join(options)}")
            found[dimension.name] = options.index(value.strip())
    return found


def _require_equal_shapes(space: SearchSpace, slot: Slot, decided: NDArray[np.int16], columns: Sequence[int]) -> None:
    """Refuse choices that change more of a network than one block in its place."""
    shapes: set[tuple[Any, ...]] = set()
    for row in _rows(space, f"block {slot.name}", decided, columns):
        spec = slot.choose(*_values(space, slot.depends_on, row))
        if spec is None:
            raise _refusal(space, f"whether there is a block {slot.name} depends on", columns)
        shapes.add((spec.in_channels, spec.out_channels, spec.resolution, spec.out_resolution, spec.num_inputs))
    if len(shapes) > 1:
        raise _refusal(space, f"the shape of block {slot.name} depends on", columns)


def _require_equal_wiring(space: SearchSpace, slot: Slot, decided: NDArray[np.int16], columns: Sequence[int]) -> None:
    """Refuse choices that change which blocks one block reads."""
    if slot.reads is None or not columns:
        return
    names = slot.depends_on if slot.reads_on is None else slot.reads_on
    rows = _rows(space, f"the wiring of block {slot.name}", decided, columns)
    if len({slot.reads(*_values(space, names, row)) for row in rows}) > 1:
        raise _refusal(space, f"the wiring, which blocks {slot.name} reads, depends on", columns)


def _rows(space: SearchSpace, place: str, decided: NDArray[np.int16], columns: Sequence[int]) -> Iterator[list[int]]:
    """Yield the option indices of all dimensions for every combination of some; the list is changed in place."""
    options = [range(int(space.num_options[c])) for c in columns]
    if math.prod(map(len, options)) > MOST_BLOCKS:
        raise _refusal(space, f"{len(columns)} choices meet in {place}:", columns)
    row = decided.tolist()
    for chosen in itertools.product(*options):
        for column, option in zip(columns, chosen, strict=True):
            row[column] = option
        yield row


def _refusal(space: SearchSpace, what: str, columns: Sequence[int]) -> SearchError:
    names = [space.dimensions[c].name for c in columns]
    shown = ", ".join(names[:MOST_NAMES]) + (", ..." if len(names) > MOST_NAMES else "")
    return SearchError(
        f"{space.name}: {what} {shown}; gates choose between blocks of equal shape in one wiring; decide it beforehand: "
        f"--fix '{names[0]}=OPTION'"
    )


def _values(space: SearchSpace, names: Sequence[str], row: Sequence[int]) -> list[Value]:
    columns = (space.column[name] for name in names)
    return [space.dimensions[column].options[row[column]] for column in columns]
