"""Static blocks: what a BlockSpec is in PyTorch.

The supernet runs these very modules with slices of shared weights (elastic.py), so each kind has one forward. A new kind is
an entry in KINDS here, in ofa/counts.py and in deploy/emit.py.

A block with a shortcut takes a second argument, `branch_scale` (n, 1, 1, 1): what its branch is multiplied with before the
shortcut is added (drop-connect).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ofa.block_spec import BlockSpec
from ofa.slots import se_channels

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
    """Convolution with "same" padding and no bias, BatchNorm, activation."""

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
    ) -> None:
        groups = in_channels if depthwise else 1
        conv = nn.Conv2d(in_channels, out_channels, kernel_size, stride, kernel_size // 2, groups=groups, bias=False)
        super().__init__(OrderedDict(conv=conv, bn=nn.BatchNorm2d(out_channels, eps=bn_eps), act=activation(act)))


class ResidualConvBN(ConvBN):
    """A ConvBN added to its input, nothing after the addition (the stem of MIT's ResNet50-D)."""

    def forward(self, x: Tensor, branch_scale: Tensor | None = None) -> Tensor:
        return x + _scaled(self.act(self.bn(self.conv(x))), branch_scale)


class SqueezeExcite(nn.Module):
    """Scale channels by a gate computed from their means (Hu et al. 2018), hard sigmoid as in MobileNetV3."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.reduce = nn.Conv2d(channels, se_channels(channels), 1)
        self.act = nn.ReLU(inplace=True)
        self.expand = nn.Conv2d(se_channels(channels), channels, 1)
        self.gate = nn.Hardsigmoid(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        mean = x.mean((2, 3), keepdim=True)  # (n, c, 1, 1)
        return x * self.gate(self.expand(self.act(self.reduce(mean))))


class PaddedAvgPool(nn.Module):
    """Average pooling by a stride with zeros around a side that it does not divide; the zeros count (AttentiveNAS)."""

    def __init__(self, stride: int) -> None:
        super().__init__()
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        return F.avg_pool2d(x, self.stride, padding=(-x.shape[-1] % self.stride + 1) // 2)


class MBConv(nn.Module):
    """Inverted residual block: expand 1x1, depthwise, optional squeeze-and-excitation, project 1x1.

    Without expansion (hidden = input channels) the first convolution is left out. Source: Sandler et al. 2018, section 3.3;
    squeeze-and-excitation after the depthwise activation as in Howard et al. 2019.
    """

    def __init__(self, spec: BlockSpec, bn_eps: float) -> None:
        super().__init__()
        hidden = spec.hidden_channels
        expands = hidden != spec.in_channels
        self.expand = ConvBN(spec.in_channels, hidden, 1, 1, spec.act, bn_eps) if expands else nn.Identity()
        self.depthwise = ConvBN(hidden, hidden, spec.kernel_size, spec.stride, spec.act, bn_eps, depthwise=True)
        self.se = SqueezeExcite(hidden) if spec.se else nn.Identity()
        self.project = ConvBN(hidden, spec.out_channels, 1, 1, "none", bn_eps)
        self.shortcut = _shortcut(spec, bn_eps)

    def forward(self, x: Tensor, branch_scale: Tensor | None = None) -> Tensor:
        out: Tensor = self.project(self.se(self.depthwise(self.expand(x))))
        return out if self.shortcut is None else self.shortcut(x) + _scaled(out, branch_scale)


class Bottleneck(nn.Module):
    """Bottleneck residual block: reduce 1x1, 3x3 with the stride, expand 1x1, activation after the addition.

    Source: He et al. 2016; the stride in the 3x3 convolution as in ResNet-B (He et al. 2019, arXiv 1812.01187, section 4.2).
    """

    def __init__(self, spec: BlockSpec, bn_eps: float) -> None:
        super().__init__()
        hidden = spec.hidden_channels
        self.reduce = ConvBN(spec.in_channels, hidden, 1, 1, spec.act, bn_eps)
        self.spatial = ConvBN(hidden, hidden, spec.kernel_size, spec.stride, spec.act, bn_eps)
        self.expand = ConvBN(hidden, spec.out_channels, 1, 1, "none", bn_eps)
        self.shortcut = _shortcut(spec, bn_eps)
        self.act = activation(spec.act)

    def forward(self, x: Tensor, branch_scale: Tensor | None = None) -> Tensor:
        out: Tensor = self.expand(self.spatial(self.reduce(x)))
        return self.act(out if self.shortcut is None else self.shortcut(x) + _scaled(out, branch_scale))


def _scaled(branch: Tensor, scale: Tensor | None) -> Tensor:
    return branch if scale is None else branch * scale


def _shortcut(spec: BlockSpec, bn_eps: float) -> nn.Module | None:
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


def _conv(spec: BlockSpec, bn_eps: float) -> nn.Module:
    kind = ResidualConvBN if spec.shortcut == "identity" else ConvBN
    return kind(spec.in_channels, spec.out_channels, spec.kernel_size, spec.stride, spec.act, bn_eps)


def _maxpool(spec: BlockSpec, bn_eps: float) -> nn.Module:
    return nn.MaxPool2d(spec.kernel_size, spec.stride, spec.kernel_size // 2)


def _pool(spec: BlockSpec, bn_eps: float) -> nn.Module:
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(1))  # (n, c, h, w) -> (n, c)


def _linear(spec: BlockSpec, bn_eps: float) -> nn.Module:
    linear = nn.Linear(spec.in_channels, spec.out_channels, bias=spec.bias)
    return nn.Sequential(OrderedDict(linear=linear, act=activation(spec.act)))


KINDS = {"conv": _conv, "mbconv": MBConv, "bottleneck": Bottleneck, "maxpool": _maxpool, "pool": _pool, "linear": _linear}


def build_block(spec: BlockSpec, *, bn_eps: float = 1e-5, device: str = "cpu") -> nn.Module:
    """Return a freshly initialised module for a spec; on device "meta" it has shapes but no memory."""
    with torch.device(device):
        return KINDS[spec.kind](spec, bn_eps)


def build_chain(blocks: Mapping[str, BlockSpec], *, bn_eps: float = 1e-5, device: str = "cpu") -> nn.Sequential:
    """Return a whole network from its named blocks: (n, 3, r, r) images to (n, classes) logits."""
    return nn.Sequential(OrderedDict((n, build_block(s, bn_eps=bn_eps, device=device)) for n, s in blocks.items()))


def init_weights(net: nn.Module) -> None:
    """Initialise in place, as OFA and BigNAS do.

    | layer                           | law                                                     |
    |---------------------------------|---------------------------------------------------------|
    | convolution                     | normal, variance 2 / (kernel area * out channels)       |
    | BatchNorm                       | weight 1, bias 0                                        |
    | last BatchNorm of a residual    | weight 0: every branch starts as nothing                |
    | linear                          | normal 0.01 with a bias (classifier), else as a 1x1 conv |

    Source: He et al. 2015 (fan out, as in MIT's he_fout); Yu et al. 2020 (BigNAS), section 3.1 for the zero weights.
    """
    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if module.groups > 1:  # torch counts a depthwise layer's fan out over all groups
                module.weight.data *= module.groups**0.5
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.Linear):
            if module.bias is None:
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            else:
                nn.init.normal_(module.weight, std=0.01)
                nn.init.zeros_(module.bias)
    for module in net.modules():
        # not ResidualConvBN: a ReLU follows its BatchNorm, through which zero would get no gradient
        if isinstance(module, MBConv) and module.shortcut is not None:
            nn.init.zeros_(module.project.bn.weight)
        elif isinstance(module, Bottleneck) and module.shortcut is not None:
            nn.init.zeros_(module.expand.bn.weight)
