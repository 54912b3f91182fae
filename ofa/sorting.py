"""Sort the hidden channels of a supernet by importance, so that the first ones, which smaller networks keep, are the best.

Source: Cai et al. 2020 (arXiv 1908.09791), section 3.3, "elastic width": the L1 norm of a channel's weights is its importance.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ofa.blocks import Bottleneck, MBConv, SqueezeExcite
from ofa.elastic import ElasticBlock
from ofa.layers import ConvBN
from ofa.supernet import Supernet


@torch.no_grad()
def sort_channels(net: Supernet, num_trained: int = 0) -> None:
    """Permute the hidden channels of every elastic block in place; the largest network computes what it did before.

    A hidden channel's importance is the L1 norm of the weights that read it. Parameters and statistics keep their identity, so
    that an optimiser still knows them, but its momentum is not permuted.

    Args:
        num_trained: how many hidden widths below the largest have been trained already. The channels of each of these widths stay
            among themselves: sorting goes on inside the groups that the widths delimit.
    """
    for slot in net.space.slots:
        if not slot.stage:
            continue
        layer = net.layers[slot.name]
        assert isinstance(layer, ElasticBlock)
        block = layer.largest
        specs = net.space.slot_blocks(slot)
        outer = max((spec.in_channels, spec.out_channels) for spec in specs)
        widths = {spec.hidden_channels for spec in specs if (spec.in_channels, spec.out_channels) == outer}
        groups = sorted(widths, reverse=True)[: num_trained + 1]
        # an inverted residual block without expansion reads its hidden channels straight from the block before
        if isinstance(block, MBConv) and all(spec.hidden_channels != spec.in_channels for spec in specs):
            _sort_mbconv(block, groups)
        elif isinstance(block, Bottleneck):
            _sort_bottleneck(block, groups)


def _sort_mbconv(block: MBConv, groups: Sequence[int]) -> None:
    order = _order(block.project.conv.weight, groups)
    _permute(block.project.conv.weight, order, dim=1)
    _permute_outputs(block.depthwise, order)
    if isinstance(block.se, SqueezeExcite):
        _permute(block.se.expand.weight, order)
        _permute(block.se.expand.bias, order)
        _permute(block.se.reduce.weight, order, dim=1)
        squeezed = _order(block.se.expand.weight, ())
        _permute(block.se.expand.weight, squeezed, dim=1)
        _permute(block.se.reduce.weight, squeezed)
        _permute(block.se.reduce.bias, squeezed)
    assert isinstance(block.expand, ConvBN)
    _permute_outputs(block.expand, order)


def _sort_bottleneck(block: Bottleneck, groups: Sequence[int]) -> None:
    for reader, writer in ((block.expand, block.spatial), (block.spatial, block.reduce)):
        order = _order(reader.conv.weight, groups)
        _permute(reader.conv.weight, order, dim=1)
        _permute_outputs(writer, order)


def _order(weight: Tensor, groups: Sequence[int]) -> Tensor:
    """Return the input channels of a convolution, the most important first, within the groups that end at these widths."""
    importance = weight.abs().sum((0, 2, 3))
    channels = torch.arange(len(importance), device=weight.device)
    # a channel's group: how many of the widths it lies beyond, so that the smallest width's channels come first
    group = torch.zeros_like(channels)
    for width in groups:
        group += channels >= width
    by_importance = importance.argsort(descending=True, stable=True)
    return by_importance[group[by_importance].argsort(stable=True)]


def _permute(tensor: Tensor | None, order: Tensor, *, dim: int = 0) -> None:
    assert tensor is not None
    tensor.copy_(tensor.index_select(dim, order))


def _permute_outputs(layer: ConvBN, order: Tensor) -> None:
    """Permute the output channels of a convolution and its BatchNorm."""
    _permute(layer.conv.weight, order)
    norm: nn.BatchNorm2d = layer.bn
    for tensor in (norm.weight, norm.bias, norm.running_mean, norm.running_var):
        _permute(tensor, order)
