"""NAS-Bench-201 (Dong and Yang 2020, arXiv 2001.00326): one cell of four nodes, an operation on each of its six edges.

Three stages of the same cell, between them a residual block that halves the resolution and doubles the channels. As it ships 5
cells a stage from 16 channels on, as in the benchmark; other sizes by their numbers, e.g. `nasbench201:cells=1,channels=8`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

from ofa.block_spec import BlockSpec
from ofa.errors import OfaError
from ofa.formats.nasbench201 import EDGES
from ofa.numbered_space import NumberedSpace, Numbers
from ofa.slots import fixed
from ofa.space import Dimension, Slot

OPERATIONS = ("none", "skip_connect", "avg_pool_3x3", "nor_conv_1x1", "nor_conv_3x3")  # cheapest first
BLOCKS = {"avg_pool_3x3": ("avgpool", 3), "nor_conv_1x1": ("relu_conv", 1), "nor_conv_3x3": ("relu_conv", 3)}
NODES, STAGES = 3, 3


@dataclass(frozen=True)
class NasBench201Space(NumberedSpace):
    """The benchmark's networks as numbers."""

    NUMBERS: ClassVar = {"cells": "cells", "channels": "channels", "resolution": "resolution_px"}

    base: str = "nasbench201"
    cells: int = 5  # a stage
    channels: int = 16  # of the first stage; each next has twice as many
    resolution_px: int = 32
    num_classes: int = 10
    bn_eps: float = 1e-5
    kernel_transforms: bool = False
    usual: Numbers = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.cells < 1 or self.channels < 1:
            raise OfaError(f"{self.base}: {self.cells} cells of {self.channels} channels, expected at least 1 of each")
        if self.resolution_px < 4 or self.resolution_px % 4:
            raise OfaError(f"{self.base}: resolution is {self.resolution_px}, expected a multiple of 4 px")

    def weight_group(self, spec: BlockSpec) -> str:
        """Operations share no weights, kernel sizes neither."""
        return f"{spec.kind}{spec.kernel_size}"

    @cached_property
    def dimensions(self) -> tuple[Dimension, ...]:
        edges = (Dimension(f"node{to}.from{source}", OPERATIONS) for to, source in EDGES)
        return (Dimension("resolution", (self.resolution_px,)), *edges)

    @cached_property
    def slots(self) -> tuple[Slot, ...]:
        slots = [fixed("stem", "conv", 3, self.channels, 1, kernel_size=3)]
        before = "stem"
        for stage in range(STAGES):
            channels, resolution = self.channels << stage, self.resolution_px >> stage
            if stage:
                before = f"reduce{stage}"
                slots.append(_fixed(before, "basic", channels // 2, channels, 2 * resolution, 3, 2, shortcut="pool_conv"))
            for cell in range(self.cells):
                name = f"stage{stage + 1}_cell{cell}"
                slots += _cell(name, before, channels, resolution)
                before = f"{name}_node{NODES}"
        slots.append(_fixed("norm", "norm", channels, channels, resolution, act="relu"))
        slots.append(_fixed("pool", "pool", channels, channels, resolution))
        slots.append(fixed("classifier", "linear", channels, self.num_classes, None, bias=True))
        return tuple(slots)


def _fixed(
    name: str,
    kind: str,
    in_channels: int,
    out_channels: int,
    resolution: int,
    kernel_size: int = 1,
    stride: int = 1,
    **fields: str,
) -> Slot:
    spec = BlockSpec(kind, in_channels, out_channels, resolution, kernel_size, stride, **fields)  # type: ignore[arg-type]
    return Slot(name, (), lambda: spec)


def _cell(name: str, before: str, channels: int, resolution: int) -> list[Slot]:
    """The edges of a cell and, at each node, the sum of those that are there; `before`: the block whose output it works on."""
    slots = []
    states = [before, *(f"{name}_node{node}" for node in range(1, NODES + 1))]
    pixels = channels * resolution**2
    for node in range(1, NODES + 1):
        sources = [source for to, source in EDGES if to == node]
        waiting = pixels * node
        for source in sources:
            slots.append(
                Slot(
                    f"{name}_node{node}_from{source}",
                    (f"node{node}.from{source}",),
                    _choose(channels, resolution),
                    reads=_reads(states[source]),
                    is_path=True,
                    waiting=waiting + pixels * source,
                )
            )
        choices = tuple(f"node{node}.from{source}" for source in sources)
        slots.append(
            Slot(
                states[node], choices, _choose_sum(channels, resolution), reads=_reads_edges(name, node, states), waiting=waiting
            )
        )
    return slots


def _choose(channels: int, resolution: int) -> Callable[[str], BlockSpec | None]:
    def choose(operation: str) -> BlockSpec | None:
        if operation not in BLOCKS:
            return None
        kind, kernel_size = BLOCKS[operation]
        return BlockSpec(kind, channels, channels, resolution, kernel_size)

    return choose


def _choose_sum(channels: int, resolution: int) -> Callable[..., BlockSpec]:
    def choose(*operations: str) -> BlockSpec:
        number = sum(operation != "none" for operation in operations)
        return BlockSpec("sum" if number else "zeros", channels, channels, resolution, num_inputs=number or 1)

    return choose


def _reads(state: str) -> Callable[..., tuple[str, ...]]:
    return lambda *_: (state,)


def _reads_edges(cell: str, node: int, states: list[str]) -> Callable[..., tuple[str, ...]]:
    def reads(*operations: str) -> tuple[str, ...]:
        found = [
            states[source] if operation == "skip_connect" else f"{cell}_node{node}_from{source}"
            for source, operation in enumerate(operations)
            if operation != "none"
        ]
        return tuple(found) or (states[0],)

    return reads


SPACE = NasBench201Space()
