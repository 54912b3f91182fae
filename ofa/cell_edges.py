"""One cell as blocks: where it stands, which block stands on each of its edges, and what the blocks read."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

from ofa.block_spec import BlockSpec
from ofa.genotype import INPUTS
from ofa.space import Value

OPERATIONS = {  # name in the field -> kind of block, kernel size; skip_connect is no block, or a factorized reduction
    "max_pool_3x3": ("maxpool", 3),
    "avg_pool_3x3": ("avgpool", 3),
    "skip_connect": ("factorized_reduce", 1),
    "dil_conv_3x3": ("dil_conv", 3),
    "dil_conv_5x5": ("dil_conv", 5),
    "sep_conv_3x3": ("sep_conv", 3),
    "sep_conv_5x5": ("sep_conv", 5),
    "sep_conv_7x7": ("sep_conv", 7),
    "conv_7x1_1x7": ("row_column_conv", 7),
}


@dataclass(frozen=True, slots=True)
class Cell:
    """Where a cell stands: what fixes its blocks besides the choices."""

    name: str
    kind: str  # normal or reduce
    channels: int
    resolution: int  # of what it works on, before its own stride
    states: tuple[str, str]  # the blocks whose outputs it reads: of the last cell but one, of the last
    widths: tuple[Width, Width]  # their channels
    halves_first: bool  # whether the first of them still has twice the resolution

    @property
    def stride(self) -> int:
        return 2 if self.kind == "reduce" else 1


@dataclass(frozen=True, slots=True)
class HandedOn:
    """Which states a cell stacks for those that read it, which choices may decide."""

    choices: tuple[str, ...]  # dimensions
    states: Callable[..., tuple[int, ...]]  # of their values
    most: int  # how many, at most


ONE = HandedOn((), lambda: (0,), 1)


@dataclass(frozen=True, slots=True)
class Width:
    """Channels of what a cell reads."""

    each: int
    handed_on: HandedOn = ONE

    @property
    def choices(self) -> tuple[str, ...]:
        return self.handed_on.choices

    @property
    def most(self) -> int:
        return self.each * self.handed_on.most

    def of(self, *chosen: Value) -> int:
        return self.each * len(self.handed_on.states(*chosen))


def choose_edge(cell: Cell, source: int, again: bool) -> Callable[..., BlockSpec | None]:
    """Which block stands on the edge from a state, if any: an identity is none."""
    stride = cell.stride if source < INPUTS else 1
    resolution = cell.resolution if source < INPUTS else cell.resolution // cell.stride

    def choose(inputs: str, op1: str, op2: str) -> BlockSpec | None:
        operation = _operation(inputs, op1, op2, source, again)
        if operation is None or (operation == "skip_connect" and stride == 1):
            return None
        kind, kernel_size = OPERATIONS[operation]
        return spec_of(kind, cell.channels, cell.channels, resolution, kernel_size=kernel_size, stride=stride)

    return choose


def reads_edges(cell: Cell, node: int) -> Callable[..., tuple[str, ...]]:
    """What the sum of a node adds: its two edges, or the state itself where an edge is an identity."""

    def reads(inputs: str, op1: str, op2: str) -> tuple[str, ...]:
        first, second = numbers_in(inputs)
        found = []
        for operation, source, again in ((op1, first, False), (op2, second, first == second)):
            passes = operation == "skip_connect" and (cell.kind == "normal" or source >= INPUTS)
            found.append(state_name(cell.name, source) if passes else edge_name(cell.name, node, source, again))
        return tuple(found)

    return reads


def _operation(inputs: str, op1: str, op2: str, source: int, again: bool) -> str | None:
    """The operation on a node's edge from a state; `again`: on its second edge from there."""
    first, second = numbers_in(inputs)
    if first == second:
        return None if source != first else op2 if again else op1
    return None if again else {first: op1, second: op2}.get(source)


def reads_state(cell: str, source: int) -> Callable[..., tuple[str, ...]]:
    """What an edge reads: always the same state."""
    return lambda *_: (state_name(cell, source),)


def state_name(cell: str, state: int) -> str:
    """Name the block whose output is a state of a cell."""
    return f"{cell}_input{state}" if state < INPUTS else f"{cell}_node{state}"


def edge_name(cell: str, node: int, source: int, again: bool) -> str:
    """Name the block on the edge from a state to a node; `again`: on the second such edge."""
    return f"{cell}_node{node}_from{source}{'_again' if again else ''}"


@lru_cache(maxsize=512)
def numbers_in(text: str) -> tuple[int, ...]:
    """Return the states that an option such as "0 2" names."""
    return tuple(map(int, text.split()))


@lru_cache(maxsize=4096)  # thousands of choices are the same few blocks
def spec_of(kind: str, in_channels: int, out_channels: int, resolution: int, **fields: int | str) -> BlockSpec:
    """Return a block, the same object for the same numbers."""
    return BlockSpec(kind, in_channels, out_channels, resolution, **fields)  # type: ignore[arg-type]
