"""The chosen architectures: each drawn once, with what its blocks take on every device."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from latency.open import LatencyModel
from ofa.block_spec import BlockSpec
from ofa.cell_space import CellSpace
from ofa.run_dir import Run
from ofa.space import ArchConfig, SearchSpace
from ofa.spaces.nasbench201 import NasBench201Space
from search.block_latency import BlockLatency, block_latency
from search.cell_drawing import Cell, cells_of, draw_cell, nasbench201_cell
from search.drawing import Band, draw_network, most_channels
from search.evidence import Network
from search.wording import digits


@dataclass(frozen=True)
class Architecture:
    """An architecture that some networks have."""

    names: list[str]
    arch: ArchConfig
    blocks: Mapping[str, BlockSpec]
    latencies: Sequence[BlockLatency]  # one a device
    drawing: Markup
    cells: list[tuple[str, Markup]]  # of a network of cells: title, drawing


def show_architectures(
    run: Run, networks: Iterable[Network], tables: Sequence[LatencyModel]
) -> tuple[list[Architecture], list[str]]:
    """Draw every chosen architecture, all to one scale; with sentences about what is not shown."""
    if not run.space.slots:
        return [], []
    names: dict[ArchConfig, list[str]] = {}
    for network in networks:
        names.setdefault(network.arch, []).append(network.name)
    blocks = {arch: run.space.blocks(arch) for arch in names}
    taken = {arch: block_latency(arch, tables) for arch in names}
    channels = max((most_channels(b) for b in blocks.values()), default=1)
    longest: dict[str, float] = {}
    for latencies, _ in taken.values():
        for found in latencies:
            longest[found.device] = max([longest.get(found.device, 0.0), *found.blocks_ms.values()])
    taken = {arch: ([found.in_unit(longest[found.device]) for found in own], notes) for arch, (own, notes) in taken.items()}
    drawn = []
    for arch, specs in blocks.items():
        latencies, _ = taken[arch]
        bands = [_band(found, longest[found.device]) for found in latencies]
        drawing = draw_network(specs, channels=channels, bands=bands)
        cells = [(cell.title, draw_cell(cell)) for cell in _cells(run.whole_space, arch)]
        drawn.append(Architecture(names[arch], arch, specs, latencies, drawing, cells))
    return drawn, list(dict.fromkeys(note for _, notes in taken.values() for note in notes))


def _cells(space: SearchSpace, arch: ArchConfig) -> list[Cell]:
    """The cells that a network repeats, if it has any."""
    if isinstance(space, CellSpace):
        return cells_of(space.to_genotype(arch))
    if isinstance(space, NasBench201Space):
        return [nasbench201_cell([str(value) for value in arch.values[1:]])]
    return []


def _band(found: BlockLatency, longest_ms: float) -> Band:
    labels = {
        name: ("≈" if name in found.interpolated else "") + digits(ms * found.scale) for name, ms in found.blocks_ms.items()
    }
    return Band(f"{digits(found.total_ms * found.scale)} {found.unit} on {found.device}", found.blocks_ms, labels, longest_ms)
