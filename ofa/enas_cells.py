"""ENAS' micro space: cells of five nodes that may read a state twice; what no node reads is what a cell hands on.

As released, the last cell's output passes a second convolution on its way in, the states that nothing reads include a normal
cell's inputs, and a ReLU stands before pooling. Source: Pham et al. 2018 (ENAS, arXiv 1802.03268), section 2.4 and its code.

The network of shared weights (`join=conv`) differs, as released, in that every cell hands on as many channels as a node has: a
convolution takes all states, with zeros for those that are read, so that each has weights of its own there.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache, partial
from typing import ClassVar

from ofa.cell_edges import Cell, HandedOn, Width, numbers_in, spec_of, state_name
from ofa.cell_space import CellSpace
from ofa.errors import OfaError
from ofa.genotype import INPUTS
from ofa.space import Slot, Value

JOINS = ("concat", "conv")


@dataclass(frozen=True)
class EnasMicroSpace(CellSpace):
    """The micro space as numbers."""

    NUMBERS: ClassVar = {**CellSpace.NUMBERS, "join": "join"}

    nodes: int = 5
    repeats: bool = True
    cells: int = 17  # two more than the publication counts
    head_act: str = "relu"
    classifier_bias: bool = False
    join: str = "concat"  # of what a cell hands on; "conv": in the network of shared weights

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.cells < 5:
            raise OfaError(f"{self.base}: cells is {self.cells}, expected at least 5")
        if self.join not in JOINS:
            raise OfaError(f"{self.base}: join is {self.join!r}, expected {' or '.join(JOINS)}")

    @property
    def reductions(self) -> tuple[int, int]:
        """Which cells halve the resolution: 5 and 11 of 17."""
        third = (self.cells - 2) // 3
        return third, 2 * third + 1

    @property
    def auxiliary_block(self) -> str:  # type: ignore[override]
        """The cell after the second reduction."""
        return f"cell{min(self.reductions[1] + 1, self.cells - 1)}"

    def _handed_on(self, kind: str) -> HandedOn:
        nodes = range(INPUTS, INPUTS + self.nodes)
        choices = tuple(f"{kind}.node{node}.inputs" for node in nodes)
        # the inputs of a reduction cell are of twice the resolution
        return HandedOn(choices, partial(loose_ends, INPUTS if kind == "reduce" else 0), self.nodes + INPUTS - 1)

    def _width(self, cell: Cell) -> Width:
        return Width(cell.channels) if self.join == "conv" else super()._width(cell)

    def _output(self, cell: Cell) -> list[Slot]:
        if self.join == "concat":
            return super()._output(cell)
        handed_on, channels, resolution = self._handed_on(cell.kind), cell.channels, cell.resolution // cell.stride
        states = range(INPUTS if cell.kind == "reduce" else 0, INPUTS + self.nodes)
        zeros, stacked, name = spec_of("zeros", channels, channels, resolution), len(states) * channels, cell.name
        concat = spec_of("concat", stacked, stacked, resolution)
        conv = spec_of("relu_conv", stacked, channels, resolution)

        def reads(*chosen: Value) -> tuple[str, ...]:
            loose = handed_on.states(*chosen)
            return tuple(state_name(name, state) if state in loose else f"{name}_nothing" for state in states)

        waiting = self._carried(cell) + (self.nodes + 1) * channels * resolution**2
        return [
            Slot(f"{name}_nothing", (), lambda: zeros, reads=lambda: (state_name(name, INPUTS),), waiting=waiting),
            Slot(f"{name}_all", (), lambda: concat, reads=reads, reads_on=handed_on.choices, waiting=self._carried(cell)),
            Slot(name, (), lambda: conv, waiting=self._carried(cell)),
        ]

    def _inputs(self, cell: Cell) -> list[Slot]:
        slots = super()._inputs(cell)
        base = spec_of("relu_conv", cell.channels, cell.channels, cell.resolution)
        calibrated = replace(slots[1], name=f"{cell.name}_calibrate1")
        return [slots[0], calibrated, replace(slots[1], depends_on=(), choose=lambda: base, reads=None)]


@lru_cache(maxsize=1 << 17)
def loose_ends(first: int, *inputs: str) -> tuple[int, ...]:
    """Return the states from `first` on that no node reads, smallest first.

    Args:
        inputs: for each node the two states that it reads, e.g. "0 2".
    """
    read = {state for pair in inputs for state in numbers_in(pair)}
    return tuple(state for state in range(first, INPUTS + len(inputs)) if state not in read)
