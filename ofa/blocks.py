"""Static blocks: what a BlockSpec is in PyTorch.

The supernet runs these very modules with slices of shared weights (elastic.py), so each kind has one forward. A new kind is
an entry in KINDS here, in ofa/counts.py, deploy/emitters.py and deploy/footprint.py.

A block with a shortcut takes a second argument, `branch_scale` (n, 1, 1, 1): what its branch is multiplied with before the
shortcut is added (drop-connect).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from ofa.block_spec import IMAGES, Blocks, BlockSpec, last_readers, wiring
from ofa.cell_blocks import (
    BasicBlock,
    Concat,
    DilConv,
    FactorizedReduce,
    Norm,
    ReluConvBN,
    ReluSep,
    RowColumnConv,
    SepConv,
    Sum,
    Zeros,
)
from ofa.layers import ACTIVATIONS, ConvBN, ZeroPad, activation, make_shortcut
from ofa.quantised_layers import give_bits
from ofa.shuffle_blocks import ShuffleBlock, XceptionBlock
from ofa.slots import se_channels


class ResidualConvBN(ConvBN):
    """A ConvBN added to its input, nothing after the addition (the stem of MIT's ResNet50-D)."""

    def forward(self, x: Tensor, branch_scale: Tensor | None = None) -> Tensor:
        return x + _scaled(self.act(self.bn(self.conv(x))), branch_scale)


class SqueezeExcite(nn.Module):
    """Scale channels by a gate computed from their means (Hu et al. 2018), hard sigmoid as in MobileNetV3."""

    def __init__(self, channels: int, squeezed: int) -> None:
        super().__init__()
        self.reduce = nn.Conv2d(channels, squeezed, 1)
        self.act = nn.ReLU(inplace=True)
        self.expand = nn.Conv2d(squeezed, channels, 1)
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
        self.se = SqueezeExcite(hidden, se_channels(spec)) if spec.se else nn.Identity()
        self.project = ConvBN(hidden, spec.out_channels, 1, 1, "none", bn_eps)
        self.shortcut = make_shortcut(spec, bn_eps)

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
        self.shortcut = make_shortcut(spec, bn_eps)
        self.act = activation(spec.act)

    def forward(self, x: Tensor, branch_scale: Tensor | None = None) -> Tensor:
        out: Tensor = self.expand(self.spatial(self.reduce(x)))
        return self.act(out if self.shortcut is None else self.shortcut(x) + _scaled(out, branch_scale))


def _scaled(branch: Tensor, scale: Tensor | None) -> Tensor:
    return branch if scale is None else branch * scale


def _conv(spec: BlockSpec, bn_eps: float) -> nn.Module:
    kind = ResidualConvBN if spec.shortcut == "identity" else ConvBN
    window = (spec.kernel_size, spec.stride)
    return kind(spec.in_channels, spec.out_channels, *window, spec.act, bn_eps, kernel_width=spec.kernel_width)


def _maxpool(spec: BlockSpec, bn_eps: float) -> nn.Module:
    return nn.MaxPool2d(spec.kernel_size, spec.stride, spec.kernel_size // 2)


def _avgpool(spec: BlockSpec, bn_eps: float) -> nn.Module:
    return nn.AvgPool2d(spec.kernel_size, spec.stride, spec.kernel_size // 2, count_include_pad=False)


def _pad(spec: BlockSpec, bn_eps: float) -> nn.Module:
    return ZeroPad(spec)


def _pool(spec: BlockSpec, bn_eps: float) -> nn.Module:
    # (n, c, h, w) -> (n, c); in place would change what an auxiliary classifier reads
    act = {} if spec.act == "none" else {"act": ACTIVATIONS[spec.act]()}
    return nn.Sequential(OrderedDict(**act, mean=nn.AdaptiveAvgPool2d(1), flat=nn.Flatten(1)))


def _linear(spec: BlockSpec, bn_eps: float) -> nn.Module:
    linear = nn.Linear(spec.in_channels, spec.out_channels, bias=spec.bias)
    return nn.Sequential(OrderedDict(linear=linear, act=activation(spec.act)))


KINDS: dict[str, Callable[[BlockSpec, float], nn.Module]] = {
    "conv": _conv,
    "mbconv": MBConv,
    "bottleneck": Bottleneck,
    "maxpool": _maxpool,
    "pad": _pad,
    "pool": _pool,
    "linear": _linear,
    # of cells
    "relu_conv": ReluConvBN,
    "factorized_reduce": FactorizedReduce,
    "sep_conv": SepConv,
    "dil_conv": DilConv,
    "relu_sep": ReluSep,
    "row_column_conv": RowColumnConv,
    "avgpool": _avgpool,
    "basic": BasicBlock,
    "norm": Norm,
    "sum": lambda spec, bn_eps: Sum(),
    "concat": lambda spec, bn_eps: Concat(),
    "zeros": lambda spec, bn_eps: Zeros(),
    # of Single Path One-Shot
    "shuffle": ShuffleBlock,
    "xception": XceptionBlock,
}


class Network(nn.Sequential):
    """Named blocks, each of which reads those that its wiring names."""

    def __init__(self, blocks: Mapping[str, BlockSpec], modules: Mapping[str, nn.Module]) -> None:
        super().__init__(OrderedDict(modules))
        self.wires = wiring(blocks)
        self.done = last_readers(self.wires)

    def forward(self, images: Tensor) -> Tensor:
        """Compute logits (n, classes) of images (n, 3, r, r)."""
        states = {IMAGES: images}
        x = images
        for name, block in self.named_children():
            x = states[name] = block(*(states[source] for source in self.wires[name]))
            for source in self.done[name]:
                del states[source]
        return x


def build_block(spec: BlockSpec, *, bn_eps: float = 1e-5, device: str = "cpu") -> nn.Module:
    """Return a freshly initialised module for a spec; on device "meta" it has shapes but no memory.

    Raises:
        OfaError: if the spec has bits that its kind cannot have.
    """
    with torch.device(device):
        block = KINDS[spec.kind](spec, bn_eps)
        if spec.weight_bits or spec.activation_bits:
            give_bits(block, spec)
        return block


def connect(blocks: Mapping[str, BlockSpec], modules: Mapping[str, nn.Module]) -> nn.Sequential:
    """Return the network of some blocks' modules: of a chain torch's own Sequential, which needs nothing of ours to run."""
    is_chain = not isinstance(blocks, Blocks) and all(spec.num_inputs == 1 for spec in blocks.values())
    return nn.Sequential(OrderedDict(modules)) if is_chain else Network(blocks, modules)


def build_network(blocks: Mapping[str, BlockSpec], *, bn_eps: float = 1e-5, device: str = "cpu") -> nn.Sequential:
    """Return a whole network from its named blocks: (n, 3, r, r) images to (n, classes) logits."""
    return connect(blocks, {name: build_block(spec, bn_eps=bn_eps, device=device) for name, spec in blocks.items()})


def init_weights(net: nn.Module) -> None:
    """Initialise in place, as OFA and BigNAS do.

    | layer                           | law                                                     |
    |---------------------------------|---------------------------------------------------------|
    | convolution                     | normal, variance 2 / (kernel area * out channels)       |
    | convolution of a choice block   | normal, deviation 1 / input channels                    |
    | BatchNorm                       | weight 1, bias 0                                        |
    | last BatchNorm of a residual    | weight 0: every branch starts as nothing                |
    | linear                          | normal 0.01, bias 0                                     |
    | linear, no bias, an activation  | as a 1x1 convolution                                    |

    Source: He et al. 2015 (fan out, as in MIT's he_fout); Yu et al. 2020 (BigNAS), section 3.1 for the zero weights; the release
    of Guo et al. 2020 for choice blocks: before BatchNorm small weights learn faster, which those that few steps draw need.
    """
    followed = {m.linear for m in net.modules() if hasattr(m, "linear") and not isinstance(m.act, nn.Identity)}
    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if module.groups > 1:  # torch counts a depthwise layer's fan out over all groups
                module.weight.data *= module.groups**0.5
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.Linear):
            if module in followed and module.bias is None:
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            else:
                nn.init.normal_(module.weight, std=0.01)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    for module in net.modules():
        # not ResidualConvBN: a ReLU follows its BatchNorm, through which zero would get no gradient
        if isinstance(module, MBConv) and module.shortcut is not None:
            nn.init.zeros_(module.project.bn.weight)
        elif isinstance(module, Bottleneck) and module.shortcut is not None:
            nn.init.zeros_(module.expand.bn.weight)
        elif isinstance(module, ShuffleBlock | XceptionBlock):
            for layer in module.modules():
                if isinstance(layer, nn.Conv2d):
                    nn.init.normal_(layer.weight, std=1 / layer.weight.shape[1])
