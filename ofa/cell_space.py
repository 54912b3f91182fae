"""Cell spaces: networks that repeat a normal cell, and twice in between a reduction cell, both of them searched.

A cell reads the outputs of the two cells before it. Each of its nodes adds two operations on states before it; the nodes' results
are stacked in channels. Reduction cells stand after a third and two thirds of the network, halve the resolution and double the
channels. Sources: Liu et al. 2019 (DARTS, arXiv 1806.09055, sections 2.1 and 3.1), Zoph et al. 2018 (NASNet, 1707.07012).

Every edge of a cell is a slot; so a supernet of the space has, as in one-shot search, weights of their own for every operation on
every edge, and a latency table a time for every operation at every width and resolution.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

from ofa.block_spec import BlockSpec
from ofa.cell_edges import (
    Cell,
    HandedOn,
    Width,
    choose_edge,
    edge_name,
    numbers_in,
    reads_edges,
    reads_state,
    spec_of,
    state_name,
)
from ofa.errors import OfaError
from ofa.genotype import INPUTS, Genotype, GenotypeError, Node
from ofa.numbered_space import NumberedSpace, Numbers
from ofa.slots import fixed
from ofa.space import ArchConfig, Dimension, Slot, Value

STEMS = {"cifar": 4, "imagenet": 32}  # -> what the resolution must be a multiple of: reductions halve it without a rest
STEM_MULTIPLIER = 3  # width of CIFAR's stem over that of the first cell


@dataclass(frozen=True)
class CellSpace(NumberedSpace):
    """A cell space as numbers. Any two states, or with `repeats` one of them twice, may feed a node."""

    NUMBERS: ClassVar = {"cells": "cells", "channels": "channels", "resolution": "resolution_px", "stem": "stem"}

    base: str
    operations: tuple[str, ...]  # of OPERATIONS, cheapest first
    nodes: int = 4
    repeats: bool = False  # whether a node may read one state twice
    chooses_concat: bool = False  # whether it is a choice which states a cell hands on, or always all its nodes
    cells: int = 20
    channels: int = 36  # of the first cells; reductions double them
    resolution_px: int = 32
    stem: str = "cifar"
    num_classes: int = 10
    bn_eps: float = 1e-5
    head_act: str = "none"  # before pooling
    classifier_bias: bool = True
    kernel_transforms: bool = False
    usual: Numbers = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.stem not in STEMS:
            raise OfaError(f"{self.base}: stem is {self.stem!r}, expected {' or '.join(STEMS)}")
        if self.cells < 3:
            raise OfaError(f"{self.base}: cells is {self.cells}, expected at least 3")
        if self.channels < 2 or self.channels % 2:
            raise OfaError(f"{self.base}: channels is {self.channels}, expected an even number")
        multiple = STEMS[self.stem]
        if self.resolution_px < multiple or self.resolution_px % multiple:
            raise OfaError(
                f"{self.base}: resolution is {self.resolution_px}, expected a multiple of {multiple} px ({self.stem} stem)"
            )

    @property
    def auxiliary_block(self) -> str:  # type: ignore[override]
        """The second reduction cell."""
        return f"cell{self.reductions[1]}"

    @property
    def reductions(self) -> tuple[int, int]:
        """Which cells halve the resolution."""
        return self.cells // 3, 2 * self.cells // 3

    def weight_group(self, spec: BlockSpec) -> str:
        """Operations share no weights, kernel sizes neither."""
        return f"{spec.kind}{spec.kernel_size}"

    @cached_property
    def dimensions(self) -> tuple[Dimension, ...]:
        found = [Dimension("resolution", (self.resolution_px,))]
        for kind in ("normal", "reduce"):
            for node in range(INPUTS, INPUTS + self.nodes):
                pairs = itertools.combinations_with_replacement if self.repeats else itertools.combinations
                found.append(Dimension(f"{kind}.node{node}.inputs", tuple(f"{a} {b}" for a, b in pairs(range(node), 2))))
                found += [Dimension(f"{kind}.node{node}.op{place}", self.operations) for place in (1, 2)]
            if self.chooses_concat:
                states = range(INPUTS, INPUTS + self.nodes)
                chosen = (c for n in range(1, self.nodes + 1) for c in itertools.combinations(states, n))
                found.append(Dimension(f"{kind}.concat", tuple(" ".join(map(str, c)) for c in chosen)))
        return tuple(found)

    # -- genotypes ---------------------------------------------------------------------------------------------------

    def from_genotype(self, genotype: Genotype) -> ArchConfig:
        """Return the architecture whose cells these are.

        Raises:
            GenotypeError: if they are not of this space.
        """
        values: dict[str, Value] = {"resolution": self.resolution_px}
        cells = (("normal", genotype.normal, genotype.normal_concat), ("reduce", genotype.reduce, genotype.reduce_concat))
        for kind, nodes, concat in cells:
            if len(nodes) != self.nodes:
                raise GenotypeError(f"genotype: {kind} has {len(nodes)} nodes, expected {self.nodes} ({self.base})")
            for node, edges in enumerate(nodes, INPUTS):
                values |= self._choices(f"{kind}.node{node}", edges)
            if self.chooses_concat:
                values[f"{kind}.concat"] = " ".join(map(str, sorted(concat)))
            expected = self._states_of(kind, values)
            if sorted(concat) != list(expected):
                raise GenotypeError(f"genotype: {kind} hands on {list(concat)}, expected {list(expected)} ({self.base})")
        return self.from_values(values)

    def _choices(self, node: str, edges: Node) -> dict[str, Value]:
        unknown = next((operation for operation, _ in edges if operation not in self.operations), None)
        if unknown is not None:
            raise GenotypeError(f"genotype: {node}: unknown operation {unknown!r}, expected one of {', '.join(self.operations)}")
        sources = sorted(source for _, source in edges)
        if len(edges) != 2 or (sources[0] == sources[1] and not self.repeats):
            raise GenotypeError(f"genotype: {node} reads the states {sources}, expected two different ones ({self.base})")
        first, second = sorted(edges, key=lambda edge: edge[1])
        return {f"{node}.inputs": f"{first[1]} {second[1]}", f"{node}.op1": first[0], f"{node}.op2": second[0]}

    def to_genotype(self, arch: ArchConfig) -> Genotype:
        """Return an architecture's cells; the two inputs of a node in the order of the states."""
        values = dict(zip(self.column, self.check(arch).values, strict=True))
        cells: dict[str, Any] = {}
        for kind in ("normal", "reduce"):
            nodes = []
            for node in range(INPUTS, INPUTS + self.nodes):
                prefix = f"{kind}.node{node}"
                sources = numbers_in(values[f"{prefix}.inputs"])
                nodes.append(tuple((str(values[f"{prefix}.op{place}"]), s) for place, s in enumerate(sources, 1)))
            cells |= {kind: tuple(nodes), f"{kind}_concat": self._states_of(kind, values)}
        return Genotype(**cells)

    def _states_of(self, kind: str, values: Mapping[str, Value]) -> tuple[int, ...]:
        """The states that a cell with these choices hands on."""
        handed_on = self._handed_on(kind)
        return handed_on.states(*(values[name] for name in handed_on.choices))

    # -- slots -------------------------------------------------------------------------------------------------------

    @cached_property
    def slots(self) -> tuple[Slot, ...]:
        slots, first, second = self._stem()
        channels, resolution = self.channels, self.resolution_px // (8 if self.stem == "imagenet" else 1)
        halves_first = self.stem == "imagenet"  # whose first stem has twice the resolution of the second
        states, before = (first[0], second[0]), (first[1], second[1])
        for index in range(self.cells):
            kind = "reduce" if index in self.reductions else "normal"
            channels *= 2 if kind == "reduce" else 1
            cell = Cell(f"cell{index}", kind, channels, resolution, states, before, halves_first)
            slots += self._cell(cell)
            resolution //= cell.stride
            halves_first = kind == "reduce"
            states, before = (states[1], cell.name), (before[1], self._width(cell))
        slots += [*self._head(before[1], resolution)]
        return tuple(slots)

    def _stem(self) -> tuple[list[Slot], tuple[str, Width], tuple[str, Width]]:
        """The blocks before the cells, and the two outputs that the first cell reads."""
        if self.stem == "cifar":
            width = Width(STEM_MULTIPLIER * self.channels)
            return [fixed("stem", "conv", 3, width.each, 1, kernel_size=3)], ("stem", width), ("stem", width)
        half, width = self.channels // 2, Width(self.channels)
        slots = [
            fixed("stem0", "conv", 3, half, 1, kernel_size=3, stride=2, act="relu"),
            fixed("stem1", "conv", half, self.channels, 2, kernel_size=3, stride=2),
            fixed("stem2", "relu_conv", self.channels, self.channels, 4, kernel_size=3, stride=2),
        ]
        return slots, ("stem1", width), ("stem2", width)

    def _head(self, width: Width, resolution: int) -> list[Slot]:

        def pool(*chosen: Value) -> BlockSpec:
            return spec_of("pool", width.of(*chosen), width.of(*chosen), resolution, act=self.head_act)

        def classifier(*chosen: Value) -> BlockSpec:
            return BlockSpec("linear", width.of(*chosen), self.num_classes, 1, bias=self.classifier_bias)

        return [Slot("pool", width.choices, pool), Slot("classifier", width.choices, classifier)]

    def _cell(self, cell: Cell) -> list[Slot]:
        slots = self._inputs(cell)
        for node in range(INPUTS, INPUTS + self.nodes):
            slots += self._node(cell, node)
        return [*slots, *self._output(cell)]

    def _handed_on(self, kind: str) -> HandedOn:
        """Which states a cell hands on: all its nodes, or those that are chosen."""
        if self.chooses_concat:
            return HandedOn((f"{kind}.concat",), numbers_in, self.nodes)
        everything = tuple(range(INPUTS, INPUTS + self.nodes))
        return HandedOn((), lambda: everything, self.nodes)

    def _width(self, cell: Cell) -> Width:
        """Channels of a cell's output."""
        return Width(cell.channels, self._handed_on(cell.kind))

    def _output(self, cell: Cell) -> list[Slot]:
        """What stacks the states that a cell hands on."""
        width, resolution = self._width(cell), cell.resolution // cell.stride

        def concat(*chosen: Value) -> BlockSpec:
            return spec_of("concat", width.of(*chosen), width.of(*chosen), resolution)

        def reads(*chosen: Value) -> tuple[str, ...]:
            return tuple(state_name(cell.name, state) for state in width.handed_on.states(*chosen))

        return [Slot(cell.name, width.choices, concat, reads=reads, waiting=self._carried(cell))]

    def _inputs(self, cell: Cell) -> list[Slot]:
        return [self._input(cell, place) for place in (0, 1)]

    def _input(self, cell: Cell, place: int) -> Slot:
        """What brings one of a cell's two inputs to its width."""
        width = cell.widths[place]
        halves = place == 0 and cell.halves_first

        def choose(*chosen: Value) -> BlockSpec:
            if halves:
                return spec_of("factorized_reduce", width.of(*chosen), cell.channels, 2 * cell.resolution, stride=2)
            return spec_of("relu_conv", width.of(*chosen), cell.channels, cell.resolution)

        waiting = self._carried(cell) + place * cell.channels * cell.resolution**2
        return Slot(
            f"{cell.name}_input{place}",
            width.choices,
            choose,
            reads=lambda *_: (cell.states[place],),
            waiting=waiting,
        )

    def _carried(self, cell: Cell) -> int:
        """Activations of the cells before that this or the next cell has yet to read, at most."""
        sides = (cell.resolution * (2 if cell.halves_first else 1), cell.resolution)
        return sum(width.most * side**2 for width, side in zip(cell.widths, sides, strict=True))

    def _node(self, cell: Cell, node: int) -> list[Slot]:
        """The edges into a node, and the sum of the two that are there."""
        choices = tuple(f"{cell.kind}.node{node}.{part}" for part in ("inputs", "op1", "op2"))
        before, after = cell.channels * cell.resolution**2, cell.channels * (cell.resolution // cell.stride) ** 2
        waiting = self._carried(cell) + 2 * before + (node - INPUTS) * after
        slots = []
        for source in range(node):
            for again in (False, True)[: 1 + self.repeats]:
                slots.append(
                    Slot(
                        edge_name(cell.name, node, source, again),
                        choices,
                        choose_edge(cell, source, again),
                        reads=reads_state(cell.name, source),
                        is_path=True,
                        waiting=waiting + after,
                    )
                )
        after_cell = cell.resolution // cell.stride
        total = spec_of("sum", cell.channels, cell.channels, after_cell, num_inputs=2)
        name = f"{cell.name}_node{node}"
        return [*slots, Slot(name, (), lambda: total, reads=reads_edges(cell, node), reads_on=choices, waiting=waiting)]
