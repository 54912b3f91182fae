"""Blocks of cells: the operations of DARTS, NASNet and NAS-Bench-201, and what joins their results.

Operations apply ReLU before, not after, their convolutions, and every separable or dilated one ends in BatchNorm. Source: Liu
et al. 2019 (DARTS, arXiv 1806.09055, section 3.1.1), after Zoph et al. 2018 (NASNet, 1707.07012); Dong and Yang 2020
(NAS-Bench-201, 2001.00326) for the residual block between its stages.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ofa.block_spec import BlockSpec
from ofa.layers import ConvBN, activation, make_shortcut


class ReluConvBN(ConvBN):
    """ReLU, convolution, BatchNorm: what brings a cell's inputs to its width, and NAS-Bench-201's convolutions."""

    def __init__(self, spec: BlockSpec, bn_eps: float) -> None:
        super().__init__(spec.in_channels, spec.out_channels, spec.kernel_size, spec.stride, "none", bn_eps)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.bn(self.conv(F.relu(x)))
        return out


class FactorizedReduce(nn.Module):
    """ReLU, two 1x1 convolutions of stride 2 on pixels that do not overlap, side by side in channels, BatchNorm."""

    def __init__(self, spec: BlockSpec, bn_eps: float) -> None:
        super().__init__()
        first = spec.out_channels // 2
        self.conv1 = nn.Conv2d(spec.in_channels, first, 1, 2, bias=False)
        self.conv2 = nn.Conv2d(spec.in_channels, spec.out_channels - first, 1, 2, bias=False)
        self.bn = nn.BatchNorm2d(spec.out_channels, eps=bn_eps)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(x)
        out: Tensor = self.bn(torch.cat([self.conv1(x), self.conv2(x[:, :, 1:, 1:])], 1))
        return out


class SepConv(nn.Module):
    """Twice: ReLU, depthwise convolution (the first with the stride), 1x1 convolution, BatchNorm."""

    def __init__(self, spec: BlockSpec, bn_eps: float) -> None:
        super().__init__()
        channels, kernel_size = spec.in_channels, spec.kernel_size
        self.depthwise1 = _depthwise(channels, kernel_size, spec.stride)
        self.pointwise1 = ConvBN(channels, channels, 1, 1, "none", bn_eps)
        self.depthwise2 = _depthwise(channels, kernel_size, 1)
        self.pointwise2 = ConvBN(channels, spec.out_channels, 1, 1, "none", bn_eps)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pointwise1(self.depthwise1(F.relu(x)))
        out: Tensor = self.pointwise2(self.depthwise2(F.relu(x)))
        return out


class ReluSep(nn.Module):
    """ReLU, depthwise convolution, 1x1 convolution, BatchNorm."""

    dilation = 1

    def __init__(self, spec: BlockSpec, bn_eps: float) -> None:
        super().__init__()
        self.depthwise = _depthwise(spec.in_channels, spec.kernel_size, spec.stride, self.dilation)
        self.pointwise = ConvBN(spec.in_channels, spec.out_channels, 1, 1, "none", bn_eps)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.pointwise(self.depthwise(F.relu(x)))
        return out


class DilConv(ReluSep):
    """The same with dilation 2."""

    dilation = 2


class RowColumnConv(nn.Module):
    """ReLU, a 1 x k and a k x 1 convolution, each with the stride along its own side, BatchNorm (AmoebaNet's conv_7x1_1x7)."""

    def __init__(self, spec: BlockSpec, bn_eps: float) -> None:
        super().__init__()
        k, s = spec.kernel_size, spec.stride
        self.row = nn.Conv2d(spec.in_channels, spec.in_channels, (1, k), (1, s), (0, k // 2), bias=False)
        self.column = nn.Conv2d(spec.in_channels, spec.out_channels, (k, 1), (s, 1), (k // 2, 0), bias=False)
        self.bn = nn.BatchNorm2d(spec.out_channels, eps=bn_eps)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.bn(self.column(self.row(F.relu(x))))
        return out


class BasicBlock(nn.Module):
    """Twice ReLU, 3x3 convolution, BatchNorm, added to the shortcut; the first convolution has the stride."""

    def __init__(self, spec: BlockSpec, bn_eps: float) -> None:
        super().__init__()
        channels = spec.out_channels
        self.conv1 = ConvBN(spec.in_channels, channels, spec.kernel_size, spec.stride, "none", bn_eps)
        self.conv2 = ConvBN(channels, channels, spec.kernel_size, 1, "none", bn_eps)
        self.shortcut = make_shortcut(spec, bn_eps)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.conv2(F.relu(self.conv1(F.relu(x))))
        return out if self.shortcut is None else self.shortcut(x) + out


class Norm(nn.Module):
    """BatchNorm and activation, where no convolution stands before them."""

    def __init__(self, spec: BlockSpec, bn_eps: float) -> None:
        super().__init__()
        self.bn = nn.BatchNorm2d(spec.in_channels, eps=bn_eps)
        self.act = activation(spec.act)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.act(self.bn(x))
        return out


class Sum(nn.Module):
    """Add what is read."""

    def forward(self, first: Tensor, *others: Tensor) -> Tensor:
        return sum(others, first)


class Concat(nn.Module):
    """Stack the channels of what is read."""

    def forward(self, *inputs: Tensor) -> Tensor:
        return torch.cat(inputs, 1)


class Zeros(nn.Module):
    """Nothing, in the shape of what is read: a node without inputs."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.zeros_like(x)


def _depthwise(channels: int, kernel_size: int, stride: int, dilation: int = 1) -> nn.Conv2d:
    padding = dilation * (kernel_size // 2)
    return nn.Conv2d(channels, channels, kernel_size, stride, padding, dilation, groups=channels, bias=False)
