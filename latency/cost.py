"""What a network costs: one interface for multiply-adds, parameters and latency.

A cost model turns a population into numbers by adding up one value a block. Counting functions are a dict from block kind to
function, in plain sight; a test compares them with torch's own counter.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from ofa.blocks import se_channels
from ofa.space import ArchConfig, BlockSpec, Population, SearchSpace


class CostModel(Protocol):
    """Anything that prices architectures."""

    @property
    def quantity(self) -> str:
        """One of "macs", "params" and "latency"."""
        ...

    @property
    def space(self) -> SearchSpace:
        """The space whose architectures are priced."""
        ...

    def __call__(self, arch: ArchConfig) -> float: ...

    def predict(self, population: Population) -> NDArray[np.float64]:
        """Return the cost of every architecture, (n,)."""
        ...


def _conv_macs(s: BlockSpec) -> int:
    return s.in_channels * s.out_channels * s.kernel_size**2 * s.out_resolution**2


def _mbconv_macs(s: BlockSpec) -> int:
    hidden, pixels_in, pixels_out = s.hidden_channels, s.resolution**2, s.out_resolution**2
    expand = s.in_channels * hidden * pixels_in if hidden != s.in_channels else 0
    squeeze = 2 * hidden * se_channels(hidden) if s.se else 0
    return expand + hidden * s.kernel_size**2 * pixels_out + squeeze + hidden * s.out_channels * pixels_out


def _linear_macs(s: BlockSpec) -> int:
    return s.in_channels * s.out_channels


def _conv_params(s: BlockSpec) -> int:
    return s.in_channels * s.out_channels * s.kernel_size**2 + 2 * s.out_channels  # BatchNorm: weight and bias


def _mbconv_params(s: BlockSpec) -> int:
    hidden = s.hidden_channels
    expand = s.in_channels * hidden + 2 * hidden if hidden != s.in_channels else 0
    squeeze = 2 * hidden * se_channels(hidden) + hidden + se_channels(hidden) if s.se else 0
    depthwise = hidden * s.kernel_size**2 + 2 * hidden
    return expand + depthwise + squeeze + hidden * s.out_channels + 2 * s.out_channels


def _linear_params(s: BlockSpec) -> int:
    return s.in_channels * s.out_channels + (s.out_channels if s.bias else 0)


def _nothing(s: BlockSpec) -> int:
    return 0


Count = Callable[[BlockSpec], int]
MACS: dict[str, Count] = {"conv": _conv_macs, "mbconv": _mbconv_macs, "pool": _nothing, "linear": _linear_macs}
PARAMS: dict[str, Count] = {"conv": _conv_params, "mbconv": _mbconv_params, "pool": _nothing, "linear": _linear_params}


@dataclass(frozen=True)
class CountCost:
    """Multiply-adds of convolutions and linear layers for one image, or parameters of the extracted network.

    A fused multiply-add counts once; biases, BatchNorm and activations count as no multiply-adds. BatchNorm's running
    statistics are no parameters.
    """

    quantity: str  # "macs" or "params"
    space: SearchSpace

    @cached_property
    def _values(self) -> NDArray[np.int64]:
        count = {"macs": MACS, "params": PARAMS}[self.quantity]
        # one more entry, zero, at the end: index -1 stands for no block
        return np.array([count[spec.kind](spec) for spec in self.space.all_blocks] + [0], dtype=np.int64)

    def __call__(self, arch: ArchConfig) -> float:
        return float(self.predict(self.space.encode([arch]))[0])

    def predict(self, population: Population) -> NDArray[np.float64]:
        """Return the count of every architecture, (n,)."""
        return self._values[self.space.block_ids(population)].sum(1).astype(np.float64)
