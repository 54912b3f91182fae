"""Choice blocks of Single Path One-Shot: two halves of the channels, one of which passes a branch.

Where the stride is 1, a block reads every second channel and hands on the others as they are: with the next block's the split is
a channel shuffle between two groups. Where it is 2, the input passes both a branch and a projection, and their outputs are
stacked. Sources: Ma et al. 2018 (ShuffleNet V2, arXiv 1807.11164, section 3.2), Guo et al. 2020 (1904.00420, section 4).
"""

from __future__ import annotations

from collections import OrderedDict

import torch
from torch import Tensor, nn

from ofa.block_spec import BlockSpec
from ofa.layers import ConvBN
from ofa.shufflenet import branch_channels


class ShuffleBlock(nn.Module):
    """Branch of a 1x1, a depthwise and a 1x1 convolution; BatchNorm after each, ReLU after the 1x1 ones."""

    def __init__(self, spec: BlockSpec, bn_eps: float) -> None:
        super().__init__()
        branch_in, branch_out = branch_channels(spec)
        kernel, stride, hidden = spec.kernel_size, spec.stride, spec.hidden_channels
        self.branch = nn.Sequential(
            OrderedDict(
                expand=ConvBN(branch_in, hidden, 1, 1, spec.act, bn_eps),
                depthwise=ConvBN(hidden, hidden, kernel, stride, "none", bn_eps, depthwise=True),
                project=ConvBN(hidden, branch_out, 1, 1, spec.act, bn_eps),
            )
        )
        self.projection = _projection(spec, bn_eps)

    def forward(self, x: Tensor) -> Tensor:
        return _two_halves(x, self.branch, self.projection)


class XceptionBlock(nn.Module):
    """Branch of three times a depthwise and a 1x1 convolution, the first with the stride; BatchNorm and ReLU likewise."""

    def __init__(self, spec: BlockSpec, bn_eps: float) -> None:
        super().__init__()
        branch_in, branch_out = branch_channels(spec)
        widths = (branch_in, spec.hidden_channels, spec.hidden_channels, branch_out)
        layers: OrderedDict[str, nn.Module] = OrderedDict()
        for number in (1, 2, 3):
            stride, before, after = spec.stride if number == 1 else 1, widths[number - 1], widths[number]
            layers[f"depthwise{number}"] = ConvBN(before, before, spec.kernel_size, stride, "none", bn_eps, depthwise=True)
            layers[f"pointwise{number}"] = ConvBN(before, after, 1, 1, spec.act, bn_eps)
        self.branch = nn.Sequential(layers)
        self.projection = _projection(spec, bn_eps)

    def forward(self, x: Tensor) -> Tensor:
        return _two_halves(x, self.branch, self.projection)


def _projection(spec: BlockSpec, bn_eps: float) -> nn.Module | None:
    if spec.stride == 1:
        return None
    channels = spec.in_channels
    return nn.Sequential(
        OrderedDict(
            depthwise=ConvBN(channels, channels, spec.kernel_size, spec.stride, "none", bn_eps, depthwise=True),
            pointwise=ConvBN(channels, channels, 1, 1, spec.act, bn_eps),
        )
    )


def _two_halves(x: Tensor, branch: nn.Module, projection: nn.Module | None) -> Tensor:
    if projection is not None:
        return torch.cat([projection(x), branch(x)], 1)
    # one step backwards too, which two slices would need three for
    kept, read = x.unflatten(1, (-1, 2)).unbind(2)  # (n, c, h, w) -> twice (n, c / 2, h, w): the even and the odd channels
    return torch.cat([kept, branch(read)], 1)
