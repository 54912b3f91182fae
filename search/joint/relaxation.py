"""What a differentiable search decides, made continuous: cells of DARTS, and the cell of NAS-Bench-201.

The loop knows names, shapes and probabilities; what a network or a cell is it asks these objects.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from ofa.cell_space import CellSpace
from ofa.errors import OfaError
from ofa.formats.nasbench201 import EDGES, OPERATIONS, format_nasbench201
from ofa.genotype import INPUTS, Genotype
from ofa.mixed import PRIMITIVES, MixedNetwork
from ofa.mixed_nasbench201 import MixedNasBench201
from ofa.space import ArchConfig, SearchSpace
from ofa.spaces import darts, nasbench201
from ofa.spaces.nasbench201 import NasBench201Space
from search.cell_drawing import Cell, cells_of, nasbench201_cell
from search.joint.derive import SKIP, derive

Probabilities = Mapping[str, Tensor]  # cell -> (edges, operations), rows sum to 1
Edge = tuple[int, int]  # (to, from), states


@dataclass(frozen=True, slots=True)
class Found:
    """What probabilities decide for."""

    text: str  # the cells as the field writes them
    skips: dict[str, int]  # cell -> number of skip connections
    cells: tuple[Cell, ...]
    arch: ArchConfig


class Relaxation(Protocol):
    """A space of cells in which every edge has a probability for every operation."""

    @property
    def space(self) -> SearchSpace:
        """What is found belongs to it."""
        ...

    @property
    def operations(self) -> tuple[str, ...]:
        """Columns of the probabilities."""
        ...

    @property
    def derives_none(self) -> bool:
        """Whether `none` may be what is found on an edge."""
        ...

    @property
    def edges(self) -> Mapping[str, tuple[Edge, ...]]:
        """Return cell -> rows of its probabilities."""
        ...

    def build(self, num_classes: int) -> nn.Module:
        """Return the network of all operations, with random weights."""
        ...

    def forward(
        self, net: nn.Module, images: Tensor, chosen: Probabilities, *, skip_drop: float, generator: torch.Generator
    ) -> Tensor:
        """Return logits, (n, classes); `generator` draws which images lose a skip."""
        ...

    def derive(self, chosen: Probabilities, max_skips: int | None = None) -> Found:
        """Return the most probable cells with at most so many skips in the first of them."""
        ...


class DartsCells:
    """A normal and a reduction cell of four nodes, each of which keeps two edges. Liu et al. 2019 (DARTS, arXiv 1806.09055)."""

    operations = PRIMITIVES
    derives_none = False

    def __init__(self, *, resolution: int, cells: int = 8, channels: int = 16) -> None:
        """Make it of the numbers of the search network.

        Raises:
            OfaError: for less than three cells, two of which are reductions, or an odd number of channels.
        """
        darts.SPACE.with_numbers(cells=cells, channels=channels)  # which checks them
        self.space: CellSpace = darts.SPACE.with_numbers(resolution=resolution)
        self.cells, self.channels = cells, channels
        edges = tuple((node + INPUTS, source) for node in range(4) for source in range(node + INPUTS))
        self.edges = {"normal": edges, "reduce": edges}

    def build(self, num_classes: int) -> nn.Module:
        return MixedNetwork(num_classes, cells=self.cells, channels=self.channels)

    def forward(
        self, net: nn.Module, images: Tensor, chosen: Probabilities, *, skip_drop: float, generator: torch.Generator
    ) -> Tensor:
        return net(images, chosen["normal"], chosen["reduce"], skip_drop=skip_drop, generator=generator)

    def derive(self, chosen: Probabilities, max_skips: int | None = None) -> Found:
        return found_cells(derive(chosen["normal"], chosen["reduce"], max_skips=max_skips), self.space)


def found_cells(genotype: Genotype, space: CellSpace) -> Found:
    """Return what a genotype is in its space, for those that read a search."""
    nodes = {"normal": genotype.normal, "reduce": genotype.reduce}
    skips = {name: sum(operation == SKIP for node in cell for operation, _ in node) for name, cell in nodes.items()}
    return Found(str(genotype), skips, tuple(cells_of(genotype)), space.from_genotype(genotype))


class NasBench201Cell:
    """The cell of NAS-Bench-201: an operation, or none, on each of six edges. Dong and Yang 2020 (arXiv 2001.00326)."""

    operations = OPERATIONS

    def __init__(self, *, resolution: int, cells: int = 5, channels: int = 16, derives_none: bool = False) -> None:
        """Make it of the numbers of the search network.

        Args:
            derives_none: let `none` win an edge, as the benchmark's authors derive; DARTS' own rule leaves it out.
        """
        self.derives_none = derives_none
        self.space: NasBench201Space = nasbench201.SPACE.with_numbers(resolution=resolution)
        self.cells, self.channels = cells, channels
        self.edges = {"cell": EDGES}

    def build(self, num_classes: int) -> nn.Module:
        return MixedNasBench201(num_classes, cells_per_stage=self.cells, channels=self.channels)

    def forward(
        self, net: nn.Module, images: Tensor, chosen: Probabilities, *, skip_drop: float, generator: torch.Generator
    ) -> Tensor:
        return net(images, chosen["cell"], skip_drop=skip_drop, generator=generator)

    def derive(self, chosen: Probabilities, max_skips: int | None = None) -> Found:
        """Return the most probable operation of every edge."""
        rows, skip = chosen["cell"].detach().cpu().double().clone(), OPERATIONS.index(SKIP)
        if not self.derives_none:
            rows[:, OPERATIONS.index("none")] = 0
        taken = rows.argmax(1)
        excess = int((taken == skip).sum()) - (len(rows) if max_skips is None else max_skips)
        if excess > 0:
            weakest = sorted((float(rows[edge, skip]), edge) for edge in (taken == skip).nonzero().flatten().tolist())
            for _, edge in weakest[:excess]:
                rows[edge, skip] = 0
            taken = rows.argmax(1)
        names = [OPERATIONS[column] for column in taken.tolist()]
        values = {f"node{to}.from{source}": name for name, (to, source) in zip(names, EDGES, strict=True)}
        arch = self.space.arch(**{name.replace(".", "__"): value for name, value in values.items()})
        return Found(format_nasbench201(names), {"cell": names.count(SKIP)}, (nasbench201_cell(names),), arch)


RELAXATIONS: dict[str, type[DartsCells] | type[NasBench201Cell]] = {"darts": DartsCells, "nasbench201": NasBench201Cell}


def open_relaxation(space: str, *, resolution: int, cells: int | None, channels: int) -> Relaxation:
    """Return what to search.

    Args:
        resolution: of the images, px.
        cells: of the search network; None = the published number.
    Raises:
        OfaError: for a space that has no continuous form.
    """
    if space not in RELAXATIONS:
        raise OfaError(f"space {space!r} cannot be searched by gradients; expected one of: {', '.join(RELAXATIONS)}")
    kind = RELAXATIONS[space]
    if cells is None:
        return kind(resolution=resolution, channels=channels)
    return kind(resolution=resolution, channels=channels, cells=cells)
