"""Multiply-adds and parameters of blocks and of whole populations: closed formulas, a dict from block kind to function.

A fused multiply-add counts once; biases, BatchNorm, pooling and activations count as no multiply-adds. BatchNorm's running
statistics are no parameters. Tests compare the formulas with torch's own counters.

Bit operations are the multiply-adds of layers with bits of their own, times the bits of a weight, times those of an activation;
layers without, such as a network's first and last, count none. So do Guo et al. 2020 (Single Path One-Shot, arXiv 1904.00420,
table of the bit-width search): their ResNet-18 of 2, 3 and 4 bits has 6.32, 14.21 and 25.27 G, of 2^30, which are 4, 9 and 16
times all multiply-adds but those of the first convolution and the classifier.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from ofa.block_spec import BlockSpec
from ofa.shufflenet import branch_channels
from ofa.slots import se_channels
from ofa.space import Population, SearchSpace

Count = Callable[[BlockSpec], int]


def block_macs(spec: BlockSpec) -> int:
    """Return the multiply-adds of a block's convolutions and linear layers for one image."""
    return MACS[spec.kind](spec) + _shortcut_macs(spec)


def block_params(spec: BlockSpec) -> int:
    """Return the number of a block's parameters."""
    return PARAMS[spec.kind](spec) + _shortcut_params(spec) + _clips(spec)


def block_bitops(spec: BlockSpec) -> int:
    """Return the bit operations of a block for one image; squeeze-and-excitation has no bits."""
    return block_macs(replace(spec, se=False)) * spec.weight_bits * spec.activation_bits


def macs(space: SearchSpace, population: Population) -> NDArray[np.int64]:
    """Return the multiply-adds of every architecture for one image, (n,)."""
    return block_counts(space, block_macs)[space.block_ids(population)].sum(1)


def params(space: SearchSpace, population: Population) -> NDArray[np.int64]:
    """Return the number of parameters of every extracted architecture, (n,)."""
    return block_counts(space, block_params)[space.block_ids(population)].sum(1)


def bitops(space: SearchSpace, population: Population) -> NDArray[np.int64]:
    """Return the bit operations of every architecture for one image, (n,)."""
    return block_counts(space, block_bitops)[space.block_ids(population)].sum(1)


@lru_cache(maxsize=16)  # training rules ask at every step
def block_counts(space: SearchSpace, count: Count) -> NDArray[np.int64]:
    """Count every block of a space, (blocks + 1,); the last entry is zero, since index -1 stands for no block."""
    return np.array([count(spec) for spec in space.all_blocks] + [0], dtype=np.int64)


def _kernel_area(s: BlockSpec) -> int:
    return s.kernel_size * (s.kernel_width or s.kernel_size)


def _conv_macs(s: BlockSpec) -> int:
    return s.in_channels * s.out_channels * _kernel_area(s) * s.out_resolution**2


def _mbconv_macs(s: BlockSpec) -> int:
    hidden, pixels_in, pixels_out = s.hidden_channels, s.resolution**2, s.out_resolution**2
    expand = s.in_channels * hidden * pixels_in if hidden != s.in_channels else 0
    squeeze = 2 * hidden * se_channels(s) if s.se else 0
    return expand + hidden * s.kernel_size**2 * pixels_out + squeeze + hidden * s.out_channels * pixels_out


def _bottleneck_macs(s: BlockSpec) -> int:
    hidden, pixels_in, pixels_out = s.hidden_channels, s.resolution**2, s.out_resolution**2
    return s.in_channels * hidden * pixels_in + hidden * (hidden * s.kernel_size**2 + s.out_channels) * pixels_out


def _linear_macs(s: BlockSpec) -> int:
    return s.in_channels * s.out_channels


def _shortcut_macs(s: BlockSpec) -> int:
    return s.in_channels * s.out_channels * s.out_resolution**2 if s.shortcut in ("pool_conv", "pool_conv_bn") else 0


def _conv_params(s: BlockSpec) -> int:
    return s.in_channels * s.out_channels * _kernel_area(s) + 2 * s.out_channels  # BatchNorm: weight and bias


def _mbconv_params(s: BlockSpec) -> int:
    hidden = s.hidden_channels
    expand = s.in_channels * hidden + 2 * hidden if hidden != s.in_channels else 0
    squeeze = 2 * hidden * se_channels(s) + hidden + se_channels(s) if s.se else 0
    depthwise = hidden * s.kernel_size**2 + 2 * hidden
    return expand + depthwise + squeeze + hidden * s.out_channels + 2 * s.out_channels


def _bottleneck_params(s: BlockSpec) -> int:
    hidden = s.hidden_channels
    return hidden * (s.in_channels + hidden * s.kernel_size**2 + s.out_channels) + 2 * (2 * hidden + s.out_channels)


def _linear_params(s: BlockSpec) -> int:
    return s.in_channels * s.out_channels + (s.out_channels if s.bias else 0)


def _shortcut_params(s: BlockSpec) -> int:
    weights = s.in_channels * s.out_channels
    return {"pool_conv": weights, "pool_conv_bn": weights + 2 * s.out_channels}.get(s.shortcut, 0)


def _clips(s: BlockSpec) -> int:
    """Learned ends of what convolutions with bits take: each has one for every bit width up to its own."""
    if not s.activation_bits:
        return 0
    branch = {
        "mbconv": 2 + (s.hidden_channels != s.in_channels),
        "bottleneck": 3,
        "shuffle": 3 + 2 * (s.stride > 1),
        "xception": 6 + 2 * (s.stride > 1),
    }.get(s.kind, 1)
    return (branch + (s.shortcut in ("pool_conv", "pool_conv_bn"))) * s.activation_bits


def _reduce_macs(s: BlockSpec) -> int:
    return s.in_channels * s.out_channels * s.out_resolution**2  # half of the channels from each of two convolutions


def _reduce_params(s: BlockSpec) -> int:
    return s.in_channels * s.out_channels + 2 * s.out_channels


def _sep_conv_macs(s: BlockSpec) -> int:
    depthwise = 2 * s.in_channels * s.kernel_size**2
    return (depthwise + s.in_channels**2 + s.in_channels * s.out_channels) * s.out_resolution**2


def _sep_conv_params(s: BlockSpec) -> int:
    depthwise = 2 * s.in_channels * s.kernel_size**2
    return depthwise + s.in_channels**2 + 2 * s.in_channels + s.in_channels * s.out_channels + 2 * s.out_channels


def _dil_conv_macs(s: BlockSpec) -> int:
    return s.in_channels * (s.kernel_size**2 + s.out_channels) * s.out_resolution**2


def _dil_conv_params(s: BlockSpec) -> int:
    return s.in_channels * (s.kernel_size**2 + s.out_channels) + 2 * s.out_channels


def _row_column_macs(s: BlockSpec) -> int:
    row = s.in_channels**2 * s.kernel_size * s.resolution * s.out_resolution
    return row + s.in_channels * s.out_channels * s.kernel_size * s.out_resolution**2


def _row_column_params(s: BlockSpec) -> int:
    return s.in_channels * s.kernel_size * (s.in_channels + s.out_channels) + 2 * s.out_channels


def _basic_macs(s: BlockSpec) -> int:
    return (s.in_channels + s.out_channels) * s.out_channels * s.kernel_size**2 * s.out_resolution**2


def _basic_params(s: BlockSpec) -> int:
    return (s.in_channels + s.out_channels) * s.out_channels * s.kernel_size**2 + 4 * s.out_channels


def _norm_params(s: BlockSpec) -> int:
    return 2 * s.in_channels


def _shuffle_macs(s: BlockSpec) -> int:
    (before, after), hidden, pixels = branch_channels(s), s.hidden_channels, s.out_resolution**2
    branch = before * hidden * s.resolution**2 + hidden * (s.kernel_size**2 + after) * pixels
    return branch + _projection_macs(s)


def _shuffle_params(s: BlockSpec) -> int:
    (before, after), hidden = branch_channels(s), s.hidden_channels
    return hidden * (before + s.kernel_size**2 + after) + 2 * (2 * hidden + after) + _projection_params(s)


def _xception_macs(s: BlockSpec) -> int:
    return _xception_weights(s) * s.out_resolution**2 + _projection_macs(s)


def _xception_params(s: BlockSpec) -> int:
    (before, after), hidden = branch_channels(s), s.hidden_channels
    return _xception_weights(s) + 2 * (before + 4 * hidden + after) + _projection_params(s)


def _xception_weights(s: BlockSpec) -> int:
    (before, after), hidden = branch_channels(s), s.hidden_channels
    return (before + 2 * hidden) * s.kernel_size**2 + hidden * (before + hidden + after)


def _projection_macs(s: BlockSpec) -> int:
    return s.in_channels * (s.kernel_size**2 + s.in_channels) * s.out_resolution**2 if s.stride > 1 else 0


def _projection_params(s: BlockSpec) -> int:
    return s.in_channels * (s.kernel_size**2 + s.in_channels + 4) if s.stride > 1 else 0


def _nothing(s: BlockSpec) -> int:
    return 0


MACS: dict[str, Count] = {
    "conv": _conv_macs,
    "mbconv": _mbconv_macs,
    "bottleneck": _bottleneck_macs,
    "maxpool": _nothing,
    "pad": _nothing,
    "pool": _nothing,
    "linear": _linear_macs,
    "relu_conv": _conv_macs,
    "factorized_reduce": _reduce_macs,
    "sep_conv": _sep_conv_macs,
    "dil_conv": _dil_conv_macs,
    "relu_sep": _dil_conv_macs,
    "row_column_conv": _row_column_macs,
    "avgpool": _nothing,
    "basic": _basic_macs,
    "norm": _nothing,
    "sum": _nothing,
    "concat": _nothing,
    "zeros": _nothing,
    "shuffle": _shuffle_macs,
    "xception": _xception_macs,
}
PARAMS: dict[str, Count] = {
    "conv": _conv_params,
    "mbconv": _mbconv_params,
    "bottleneck": _bottleneck_params,
    "maxpool": _nothing,
    "pad": _nothing,
    "pool": _nothing,
    "linear": _linear_params,
    "relu_conv": _conv_params,
    "factorized_reduce": _reduce_params,
    "sep_conv": _sep_conv_params,
    "dil_conv": _dil_conv_params,
    "relu_sep": _dil_conv_params,
    "row_column_conv": _row_column_params,
    "avgpool": _nothing,
    "basic": _basic_params,
    "norm": _norm_params,
    "sum": _nothing,
    "concat": _nothing,
    "zeros": _nothing,
    "shuffle": _shuffle_params,
    "xception": _xception_params,
}
