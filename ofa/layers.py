"""Layers that blocks are made of: activations, a convolution with its BatchNorm, what a shortcut maps its input to."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import replace

from torch import Tensor, nn
from torch.nn import functional as F

from ofa.block_spec import BlockSpec, padding

ACTIVATIONS: dict[str, type[nn.Module]] = {
    "none": nn.Identity,
    "relu": nn.ReLU,
    "relu6": nn.ReLU6,
    "h_swish": nn.Hardswish,
    "swish": nn.SiLU,
}


def activation(name: str) -> nn.Module:
    """Return a new activation module."""
    kind = ACTIVATIONS[name]
    return kind() if kind is nn.Identity else kind(inplace=True)


class ConvBN(nn.Sequential):
    """Convolution with "same" padding and no bias, BatchNorm, activation; `kernel_width` 0 = as wide as high."""

    conv: nn.Conv2d
    bn: nn.BatchNorm2d
    act: nn.Module

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        stride: int,
        act: str,
        bn_eps: float,
        *,
        depthwise: bool = False,
        kernel_width: int = 0,
    ) -> None:
        groups = in_channels if depthwise else 1
        kernel = (kernel_size, kernel_width or kernel_size)
        padding = (kernel[0] // 2, kernel[1] // 2)
        conv = nn.Conv2d(in_channels, out_channels, kernel, stride, padding, groups=groups, bias=False)
        super().__init__(OrderedDict(conv=conv, bn=nn.BatchNorm2d(out_channels, eps=bn_eps), act=activation(act)))


class ZeroPad(nn.Module):
    """Zeros around what is read, as `padding` says; what is read may be of any resolution up to that."""

    def __init__(self, spec: BlockSpec) -> None:
        super().__init__()
        self.spec = spec

    def forward(self, x: Tensor) -> Tensor:
        return F.pad(x, 2 * padding(replace(self.spec, resolution=x.shape[-1])))


class PaddedAvgPool(nn.Module):
    """Average pooling by a stride with zeros around a side that it does not divide; the zeros count (AttentiveNAS)."""

    def __init__(self, stride: int) -> None:
        super().__init__()
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        return F.avg_pool2d(x, self.stride, padding=(-x.shape[-1] % self.stride + 1) // 2)


def make_shortcut(spec: BlockSpec, bn_eps: float) -> nn.Module | None:
    """What maps a block's input to what is added to its branch; ofa.block_spec.SHORTCUTS says what each does."""
    if spec.shortcut == "none":
        return None
    if spec.shortcut == "identity":
        return nn.Identity()
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    if spec.stride > 1:
        resnet_d = spec.shortcut == "pool_conv_bn"
        layers["pool"] = nn.AvgPool2d(spec.stride, ceil_mode=True) if resnet_d else PaddedAvgPool(spec.stride)
    if spec.shortcut == "pool_conv":
        layers["conv"] = nn.Conv2d(spec.in_channels, spec.out_channels, 1, bias=False)
    if spec.shortcut == "pool_conv_bn":
        layers["conv"] = ConvBN(spec.in_channels, spec.out_channels, 1, 1, "none", bn_eps)
    return nn.Sequential(layers)
