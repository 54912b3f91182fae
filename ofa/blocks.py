"""Static blocks: what a BlockSpec is in PyTorch.

The supernet runs these very modules with slices of shared weights (elastic.py), so each kind has one forward. A new kind is
an entry in KINDS here, in deploy/emit.py and in latency/cost.py.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from ofa.mobilenet import make_divisible
from ofa.space import BlockSpec

ACTIVATIONS: dict[str, type[nn.Module]] = {"none": nn.Identity, "relu": nn.ReLU, "relu6": nn.ReLU6, "h_swish": nn.Hardswish}


def se_channels(hidden_channels: int) -> int:
    """Squeezed width of squeeze-and-excitation (Howard et al. 2019, section 5.3: a quarter of the expanded width)."""
    return make_divisible(hidden_channels // 4)


def activation(name: str) -> nn.Module:
    """Return a new activation module."""
    kind = ACTIVATIONS[name]
    return kind() if kind is nn.Identity else kind(inplace=True)


class ConvBN(nn.Sequential):
    """Convolution with "same" padding and no bias, BatchNorm, activation."""

    conv: nn.Conv2d
    bn: nn.BatchNorm2d

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
        self.residual = spec.residual

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.project(self.se(self.depthwise(self.expand(x))))
        return x + out if self.residual else out


def _conv(spec: BlockSpec, bn_eps: float) -> nn.Module:
    return ConvBN(spec.in_channels, spec.out_channels, spec.kernel_size, spec.stride, spec.act, bn_eps)


def _pool(spec: BlockSpec, bn_eps: float) -> nn.Module:
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(1))  # (n, c, h, w) -> (n, c)


def _linear(spec: BlockSpec, bn_eps: float) -> nn.Module:
    linear = nn.Linear(spec.in_channels, spec.out_channels, bias=spec.bias)
    return nn.Sequential(OrderedDict(linear=linear, act=activation(spec.act)))


KINDS = {"conv": _conv, "mbconv": MBConv, "pool": _pool, "linear": _linear}


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
    | last BatchNorm of a residual    | weight 0: every block starts as the identity            |
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
        if isinstance(module, MBConv) and module.residual:
            nn.init.zeros_(module.project.bn.weight)
