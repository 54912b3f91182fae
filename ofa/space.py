"""What can be chosen: dimensions, architectures, and the slots that turn a choice into blocks.

An architecture is a point in a product of finite choices; a population is an integer matrix of option indices
(n, dimensions), so that sampling, mutation, cost and prediction are array arithmetic. This module needs no torch.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ofa.block_spec import Blocks, BlockSpec
from ofa.errors import OfaError
from ofa.json_text import SEAL

Value = int | float | str
Population = NDArray[np.int16]  # (n, dimensions) option indices
ARCH_SCHEMA = "ofa.arch/1"
MAX_TABLE = 1 << 18  # combinations of choices that the blocks of one slot are listed for


class InvalidArchError(OfaError):
    """An architecture does not fit its space."""


@dataclass(frozen=True, slots=True)
class Dimension:
    """One choice.

    `requires` = (name of another dimension, index): this choice matters only while the other one is at that option index
    or above. A block's kernel size, for example, is of no effect when the stage is too shallow to hold the block.
    """

    name: str
    options: tuple[Value, ...]  # smallest first
    requires: tuple[str, int] | None = None

    def __post_init__(self) -> None:
        numbers = [value for value in self.options if not isinstance(value, str)]
        if not self.options or len(set(self.options)) < len(self.options) or sorted(numbers) != numbers:
            raise OfaError(f"dimension {self.name}: options are {self.options}, expected distinct ones, the smallest first")


@dataclass(frozen=True, slots=True)
class ArchConfig:
    """One architecture: a value for every dimension of its space, in the space's order."""

    space: str
    values: tuple[Value, ...]


@dataclass(frozen=True)
class Slot:
    """A place in the network and the dimensions that decide which block stands there."""

    name: str
    depends_on: tuple[str, ...]
    choose: Callable[..., BlockSpec | None]  # values of `depends_on` -> block, or None for no block
    stage: int = 0  # 1, 2, ... for the blocks of elastic stages, 0 for stem and head
    reads: Callable[..., tuple[str, ...]] | None = None  # values of `reads_on` -> blocks that it reads; None: the one before
    reads_on: tuple[str, ...] | None = None  # dimensions that decide what it reads; None: `depends_on`
    is_path: bool = False  # one of several that are joined, which drop path may leave out for some images
    waiting: int = 0  # activations of one image that other blocks have yet to read while this one runs, at most


class SearchSpace(ABC):
    """A product of dimensions and the chain of blocks that each of its points stands for.

    Subclasses give `name`, `num_classes`, `dimensions` and `slots`; all else follows from them. Tables over the slots' own
    few dimensions are built once, so that the blocks of a whole population are found by indexing.
    """

    name: str
    num_classes: int
    bn_eps: float = 1e-5
    kernel_transforms: bool = True  # a smaller depthwise kernel is a learned function of the larger one, or else just its centre
    auxiliary_block: str = ""  # whose output an auxiliary classifier may be trained on; "": none

    @property
    @abstractmethod
    def dimensions(self) -> tuple[Dimension, ...]:
        """The choices, in a fixed order."""

    @property
    @abstractmethod
    def slots(self) -> tuple[Slot, ...]:
        """The places for blocks, in execution order."""

    # -- one architecture ------------------------------------------------------------------------------------------

    def blocks(self, arch: ArchConfig) -> dict[str, BlockSpec]:
        """Return name -> block of an architecture, in execution order."""
        self.check(arch)
        blocks: dict[str, BlockSpec] = {}
        reads: dict[str, tuple[str, ...]] = {}
        for slot in self.slots:
            spec = slot.choose(*(arch.values[self.column[d]] for d in slot.depends_on))
            if spec is not None:
                blocks[slot.name] = spec
                if slot.reads is not None:
                    deciding = slot.depends_on if slot.reads_on is None else slot.reads_on
                    reads[slot.name] = slot.reads(*(arch.values[self.column[d]] for d in deciding))
        return Blocks(blocks, reads) if reads else blocks

    def weight_group(self, spec: BlockSpec) -> str:
        """Name the blocks of one slot that share weights with this one: all of its kind, unless a space says otherwise."""
        return spec.kind

    def resolution(self, arch: ArchConfig) -> int:
        """Height and width of the input image, pixels."""
        return int(arch.values[self.column["resolution"]])

    def arch(self, **choices: Value) -> ArchConfig:
        """Return the largest architecture with some choices changed; dots in names are written as double underscores."""
        named = {name.replace("__", "."): value for name, value in choices.items()}
        largest = {d.name: d.options[-1] for d in self.dimensions}
        return self.from_values(largest | named)

    def from_values(self, values: Mapping[str, Value]) -> ArchConfig:
        """Make an architecture from name -> value.

        Raises:
            InvalidArchError: for a missing or unknown name or an illegal value; it lists the legal ones.
        """
        names = [d.name for d in self.dimensions]
        unknown = sorted(set(values) - set(names))
        missing = [name for name in names if name not in values]
        if unknown:
            raise InvalidArchError(f"{self.name} has no dimension {unknown[0]!r}; it has: {', '.join(names)}")
        if missing:
            raise InvalidArchError(
                f"{self.name}: no value for {missing[0]!r}; expected one value for each of {len(names)} dimensions"
            )
        return self.check(ArchConfig(self.name, tuple(values[name] for name in names)))

    def check(self, arch: ArchConfig) -> ArchConfig:
        """Return `arch` if it fits this space.

        Raises:
            InvalidArchError: naming the dimension, its value and the legal values.
        """
        if arch.space != self.name:
            raise InvalidArchError(f"architecture belongs to space {arch.space!r}, expected {self.name!r}")
        if len(arch.values) != len(self.dimensions):
            raise InvalidArchError(f"{self.name}: architecture has {len(arch.values)} values, expected {len(self.dimensions)}")
        for dimension, value in zip(self.dimensions, arch.values, strict=True):
            if isinstance(value, bool) or value not in dimension.options:
                legal = ", ".join(map(str, dimension.options))
                raise InvalidArchError(f"{self.name}: {dimension.name} = {repr(value)[:80]} is not one of: {legal}")
        return arch

    def to_json(self, arch: ArchConfig) -> dict[str, Any]:
        """Return the readable form that arch.json holds; `from_json` reads it back."""
        values = {d.name: v for d, v in zip(self.dimensions, arch.values, strict=True)}
        return {"schema": ARCH_SCHEMA, "space": self.name, "values": values}

    def from_json(self, value: Mapping[str, Any]) -> ArchConfig:
        """Read an architecture from its JSON object.

        Raises:
            InvalidArchError: if it is of another schema or space, or holds an illegal value.
        """
        if value.get("schema") != ARCH_SCHEMA:
            raise InvalidArchError(f"architecture: schema is {value.get('schema')!r}, expected {ARCH_SCHEMA!r}")
        if value.get("space") != self.name:
            raise InvalidArchError(f"architecture belongs to space {value.get('space')!r}, expected {self.name!r}")
        if unknown := sorted(value.keys() - {"schema", "space", "values", SEAL}):
            raise InvalidArchError(f"architecture: unknown field {unknown[0]!r}, expected schema, space and values")
        values = value.get("values")
        if not isinstance(values, dict):
            raise InvalidArchError(f"architecture: 'values' is {type(values).__name__}, expected an object of name: value")
        for name, item in values.items():
            if not isinstance(item, int | float | str):
                raise InvalidArchError(f"{self.name}: {name} = {repr(item)[:80]} is not a number or a word")
        return self.from_values(values)

    @property
    def largest(self) -> ArchConfig:
        return ArchConfig(self.name, tuple(d.options[-1] for d in self.dimensions))

    @property
    def smallest(self) -> ArchConfig:
        return ArchConfig(self.name, tuple(d.options[0] for d in self.dimensions))

    # -- populations: integer matrices of option indices -------------------------------------------------------------

    def encode(self, archs: Sequence[ArchConfig]) -> Population:
        """Return the population matrix (n, dimensions) of some architectures."""
        index = [{value: i for i, value in enumerate(d.options)} for d in self.dimensions]
        rows = [[index[c][v] for c, v in enumerate(self.check(arch).values)] for arch in archs]
        return np.array(rows, dtype=np.int16).reshape(len(rows), len(self.dimensions))

    def decode(self, population: Population) -> list[ArchConfig]:
        """Return the architectures of a population matrix."""
        options = [d.options for d in self.dimensions]
        return [
            ArchConfig(self.name, tuple(option[i] for option, i in zip(options, row, strict=True))) for row in population.tolist()
        ]

    def sample(self, rng: np.random.Generator, n: int, *, least: NDArray[np.int64] | int = 0) -> Population:
        """Draw n architectures, every choice uniform and independent, in canonical form.

        Args:
            least: smallest option index that may be drawn, one for all dimensions or (dimensions,).
        """
        uniform = rng.random((n, len(self.dimensions)), dtype=np.float32)
        # float32 draws reach 1 - 2^-24 at most, so the product stays below num_options for all sizes in use
        drawn = least + (uniform * (self.num_options - least).astype(np.float32)).astype(np.int16)
        return self.canonical(drawn.astype(np.int16))

    def mutate(self, population: Population, rng: np.random.Generator, probability: float) -> Population:
        """Redraw every choice with `probability`; returns a new canonical population."""
        redraw = rng.random(population.shape, dtype=np.float32) < probability
        return self.canonical(np.where(redraw, self.sample(rng, len(population)), population))

    def crossover(self, first: Population, second: Population, rng: np.random.Generator) -> Population:
        """Take every choice from one of two parents at random; returns a new canonical population."""
        return self.canonical(np.where(rng.random(first.shape, dtype=np.float32) < 0.5, first, second))

    def active(self, population: Population) -> NDArray[np.bool_]:
        """Tell which choices have an effect, (n, dimensions)."""
        active = np.ones(population.shape, dtype=bool)
        for column, other, index in self._requirements:
            active[:, column] = active[:, other] & (population[:, other] >= index)
        return active

    def canonical(self, population: Population) -> Population:
        """Set every choice without effect to its first option: equal networks become equal rows."""
        return np.where(self.active(population), population, np.int16(0))

    def one_hot(self, population: Population) -> NDArray[np.float32]:
        """Encode for a predictor: (n, total options); a choice without effect is all zeros (as in Cai et al. 2020)."""
        offsets = np.concatenate([[0], np.cumsum(self.num_options)])
        encoded = np.zeros((len(population), int(offsets[-1])), dtype=np.float32)
        np.put_along_axis(encoded, population + offsets[:-1], self.active(population).astype(np.float32), axis=1)
        return encoded

    def keys(self, population: Population) -> NDArray[np.uint64]:
        """Return a number for every row, (n,), so that equal rows are found by sorting numbers.

        Up to 2^64 rows of a space have different keys for certain; of larger spaces, two of a million rows share one with a
        probability of 1e-7.
        """
        return np.einsum("ij,j->i", population.astype(np.uint64), self._key_weights)

    def distinct(self, population: Population) -> Population:
        """Return the rows without repetitions, in the order of their first appearance."""
        first = np.unique(self.keys(population), return_index=True)[1]
        return population[np.sort(first)]

    def everything(self) -> Population:
        """Return all networks of a small space, (size, dimensions), canonical."""
        rows = np.zeros((1, len(self.dimensions)), dtype=np.int16)
        for column, options in enumerate(self.num_options):
            copies = np.where(self.active(rows)[:, column], options, 1)
            first = np.repeat(np.cumsum(copies) - copies, copies)
            rows = np.repeat(rows, copies, axis=0)
            rows[:, column] = np.arange(len(rows)) - first
        return rows

    def size(self) -> int:
        """Count the distinct networks, an exact integer."""
        children: dict[str, list[Dimension]] = {}
        for d in self.dimensions:
            if d.requires:
                children.setdefault(d.requires[0], []).append(d)

        def count(dimension: Dimension) -> int:
            dependants = children.get(dimension.name, [])
            return sum(
                math.prod(count(d) for d in dependants if d.requires and option >= d.requires[1])
                for option in range(len(dimension.options))
            )

        return math.prod(count(d) for d in self.dimensions if d.requires is None)

    def block_ids(self, population: Population) -> NDArray[np.int32]:
        """Return for every architecture and slot the index into `all_blocks`, (n, slots); -1 where no block stands."""
        ids = np.empty((len(population), len(self.slots)), dtype=np.int32)
        for s, (columns, strides, table) in enumerate(self._slot_tables[1]):
            index = np.zeros(len(population), dtype=np.int32)
            for column, stride in zip(columns, strides, strict=True):
                index += population[:, column].astype(np.int32) * stride
            ids[:, s] = table[index]
        return ids

    @property
    def all_blocks(self) -> tuple[BlockSpec, ...]:
        """Every distinct block that some architecture uses: what a latency table must contain."""
        return self._slot_tables[0]

    @property
    def slot_tables(self) -> list[tuple[tuple[int, ...], NDArray[np.int32]]]:
        """For every slot the columns that decide its block, and a table with one axis for each of them.

        The table is indexed by options and holds indices into `all_blocks`, -1 where no block stands. A column may stand twice.
        """
        return [(tuple(columns), table.reshape(self.num_options[columns])) for columns, _, table in self._slot_tables[1]]

    def slot_blocks(self, slot: Slot) -> list[BlockSpec]:
        """Every block that can stand in a slot."""
        specs = (slot.choose(*values) for values in itertools.product(*self._tabulated(slot)))
        return list(dict.fromkeys(spec for spec in specs if spec is not None))

    @property
    def is_tabulated(self) -> bool:
        """Whether what can stand in each slot can be listed: a supernet, latency tables, costs of populations need that."""
        return all(math.prod(len(self.dimensions[self.column[d]].options) for d in s.depends_on) <= MAX_TABLE for s in self.slots)

    def with_num_classes(self, num_classes: int) -> SearchSpace:
        """Return the same space for another number of classes."""
        # a space is a dataclass, which the type does not say
        return dataclasses.replace(self, num_classes=num_classes)  # type: ignore[type-var]

    def with_numbers(self, **numbers: int | str) -> SearchSpace:
        """Return the same choices in a network of another size, such as more cells; most spaces come in one.

        Raises:
            OfaError: for a number that the space does not have.
        """
        raise OfaError(f"{self.name} comes in one size, it has no {', '.join(numbers)}")

    def restrict(self, arch: ArchConfig) -> SearchSpace:
        """Return the space that holds this one architecture: what "trained alone" means, through the same code."""
        return RestrictedSpace(self, arch)

    # -- tables built once -------------------------------------------------------------------------------------------

    @cached_property
    def column(self) -> dict[str, int]:
        """Dimension name -> column of the population matrix."""
        return {d.name: c for c, d in enumerate(self.dimensions)}

    @cached_property
    def num_options(self) -> NDArray[np.int64]:
        return np.array([len(d.options) for d in self.dimensions])

    @cached_property
    def _key_weights(self) -> NDArray[np.uint64]:
        if math.prod(self.num_options.tolist()) <= 2**64:  # the number that the row's digits write
            sizes = [1, *self.num_options.tolist()[:-1]]
            return np.array(list(itertools.accumulate(sizes, lambda a, b: a * b)), dtype=np.uint64)
        return np.random.default_rng(0).integers(1, 2**63, len(self.dimensions), dtype=np.uint64) * np.uint64(2) + np.uint64(1)

    @cached_property
    def _requirements(self) -> list[tuple[int, int, int]]:
        """(column, column it requires, smallest index there); dimensions stand after those that they require."""
        return [(c, self.column[d.requires[0]], d.requires[1]) for c, d in enumerate(self.dimensions) if d.requires]

    @cached_property
    def _slot_tables(self) -> tuple[tuple[BlockSpec, ...], list[tuple[list[int], list[int], NDArray[np.int32]]]]:
        ids: dict[BlockSpec, int] = {}
        tables = []
        for slot in self.slots:
            columns, options = [self.column[name] for name in slot.depends_on], self._tabulated(slot)
            strides = [math.prod(len(o) for o in options[i + 1 :]) for i in range(len(options))]
            specs = [slot.choose(*values) for values in itertools.product(*options)]
            table = [-1 if spec is None else ids.setdefault(spec, len(ids)) for spec in specs]
            tables.append((columns, strides, np.array(table, dtype=np.int32)))
        return tuple(ids), tables

    def _tabulated(self, slot: Slot) -> list[tuple[Value, ...]]:
        """The options of what decides a slot's block."""
        options = [self.dimensions[self.column[name]].options for name in slot.depends_on]
        if math.prod(map(len, options)) > MAX_TABLE:  # `is_tabulated` asks the same of all slots
            raise OfaError(
                f"{self.name}: block {slot.name} depends on {len(options)} choices, too many to list what can stand there; "
                "ask for one network at a time (--arch, or space.restrict(arch)), or for a smaller space"
            )
        return options


class RestrictedSpace(SearchSpace):
    """A space in which every dimension has one option left."""

    def __init__(self, space: SearchSpace, arch: ArchConfig) -> None:
        self._whole, self._arch = space, space.check(arch)
        self.name, self.num_classes = space.name, space.num_classes
        self.bn_eps, self.kernel_transforms = space.bn_eps, space.kernel_transforms
        self.auxiliary_block = space.auxiliary_block
        self.weight_group = space.weight_group  # type: ignore[method-assign]
        used = space.blocks(arch)
        self._slots = tuple(slot for slot in space.slots if slot.name in used)
        self._dimensions = tuple(Dimension(d.name, (v,)) for d, v in zip(space.dimensions, arch.values, strict=True))

    @property
    def dimensions(self) -> tuple[Dimension, ...]:
        return self._dimensions

    @property
    def slots(self) -> tuple[Slot, ...]:
        return self._slots

    def with_num_classes(self, num_classes: int) -> SearchSpace:
        return RestrictedSpace(self._whole.with_num_classes(num_classes), self._arch)
