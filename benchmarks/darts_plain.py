"""The search network and steps of DARTS written straightforwardly: what benchmarks and tests compare the fast ones with.

Every operation of every edge is a module of its own that runs by itself, in torch's default layout; parameters are
named as in the original code. The unrolled step builds a second network. Nothing here is shared with the package.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class PlainNetwork(nn.Module):
    """The weights of all operations of all edges."""

    def __init__(self, num_classes: int, *, cells: int = 8, channels: int = 16, nodes: int = 4, stem_multiplier: int = 3) -> None:
        super().__init__()
        self.edges = [(node, source) for node in range(nodes) for source in range(node + 2)]
        width = stem_multiplier * channels
        self.stem = nn.Sequential(nn.Conv2d(3, width, 3, padding=1, bias=False), nn.BatchNorm2d(width))
        before, last, reduced = width, width, False
        self.cells = nn.ModuleList()
        for i in range(cells):
            reduce = i in (cells // 3, 2 * cells // 3)
            channels *= 2 if reduce else 1
            self.cells.append(MixedCell(before, last, channels, self.edges, reduce=reduce, reduced=reduced))
            before, last, reduced = last, nodes * channels, reduce
        self.classifier = nn.Linear(last, num_classes)

    def forward(self, images: Tensor, normal: Tensor, reduce: Tensor) -> Tensor:
        before = last = self.stem(images)
        for cell in self.cells:
            before, last = last, cell(before, last, reduce if cell.reduce else normal)
        return self.classifier(last.mean((2, 3)))


class MixedCell(nn.Module):
    """A cell of mixed edges; its output are the nodes' channels one after the other."""

    def __init__(
        self, before: int, last: int, channels: int, edges: list[tuple[int, int]], *, reduce: bool, reduced: bool
    ) -> None:
        super().__init__()
        self.edges, self.reduce = edges, reduce
        self.preprocess0 = FactorizedReduce(before, channels) if reduced else ReluConv(before, channels)
        self.preprocess1 = ReluConv(last, channels)
        self._ops = nn.ModuleList(MixedEdge(channels, 2 if reduce and source < 2 else 1) for _, source in edges)

    def forward(self, before: Tensor, last: Tensor, weights: Tensor) -> Tensor:
        states = [self.preprocess0(before), self.preprocess1(last)]
        sums: list[Tensor] = []
        for (node, source), operations, row in zip(self.edges, self._ops, weights, strict=True):
            if source == 0:
                sums = []
            sums.append(operations(states[source], row))
            if source == node + 1:
                states.append(sum(sums[1:], sums[0]))
        return torch.cat(states[2:], 1)


class MixedEdge(nn.Module):
    """All operations of an edge."""

    def __init__(self, channels: int, stride: int) -> None:
        super().__init__()
        c, s = channels, stride
        self._ops = nn.ModuleList(
            [
                nn.Identity(),
                nn.Sequential(nn.MaxPool2d(3, s, 1), nn.BatchNorm2d(c, affine=False)),
                nn.Sequential(nn.AvgPool2d(3, s, 1, count_include_pad=False), nn.BatchNorm2d(c, affine=False)),
                FactorizedReduce(c, c) if s == 2 else nn.Identity(),
                SepConv(c, 3, s),
                SepConv(c, 5, s),
                DilConv(c, 3, s),
                DilConv(c, 5, s),
            ]
        )

    def forward(self, x: Tensor, row: Tensor) -> Tensor:
        return sum(weight * operation(x) for weight, operation in zip(row[1:], self._ops[1:], strict=True))


class ReluConv(nn.Module):
    """ReLU, 1x1 convolution, BatchNorm."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.op = nn.Sequential(nn.ReLU(), nn.Conv2d(inputs, outputs, 1, bias=False), nn.BatchNorm2d(outputs, affine=False))

    def forward(self, x: Tensor) -> Tensor:
        return self.op(x)


class FactorizedReduce(nn.Module):
    """Half the resolution without losing pixels: 1x1 convolutions of the even and of the odd ones."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv_1 = nn.Conv2d(inputs, outputs // 2, 1, stride=2, bias=False)
        self.conv_2 = nn.Conv2d(inputs, outputs // 2, 1, stride=2, bias=False)
        self.bn = nn.BatchNorm2d(outputs, affine=False)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(x)
        return self.bn(torch.cat([self.conv_1(x), self.conv_2(x[:, :, 1:, 1:])], 1))


class SepConv(nn.Module):
    """ReLU, depthwise, pointwise, BatchNorm, all that twice."""

    def __init__(self, channels: int, kernel: int, stride: int) -> None:
        super().__init__()
        self.op = nn.Sequential(*_separable(channels, kernel, stride, 1), *_separable(channels, kernel, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.op(x)


class DilConv(nn.Module):
    """ReLU, dilated depthwise, pointwise, BatchNorm."""

    def __init__(self, channels: int, kernel: int, stride: int) -> None:
        super().__init__()
        self.op = nn.Sequential(*_separable(channels, kernel, stride, 2))

    def forward(self, x: Tensor) -> Tensor:
        return self.op(x)


def _separable(channels: int, kernel: int, stride: int, dilation: int) -> list[nn.Module]:
    return [
        nn.ReLU(),
        nn.Conv2d(channels, channels, kernel, stride, kernel // 2 * dilation, dilation=dilation, groups=channels, bias=False),
        nn.Conv2d(channels, channels, 1, bias=False),
        nn.BatchNorm2d(channels, affine=False),
    ]


def loss_of(net: nn.Module, alphas: Sequence[Tensor], batch: tuple[Tensor, Tensor]) -> Tensor:
    """Cross-entropy of the network with softmaxed alphas."""
    return F.cross_entropy(net(batch[0], *(alpha.softmax(1) for alpha in alphas)), batch[1])


def first_order_gradients(net: nn.Module, alphas: Sequence[Tensor], valid: tuple[Tensor, Tensor]) -> list[Tensor]:
    """Gradients of alphas as the original takes them: of everything, by `backward`."""
    for variable in (*net.parameters(), *alphas):
        variable.grad = None
    loss_of(net, alphas, valid).backward()
    return [alpha.grad for alpha in alphas]


def second_order_gradients(
    net: nn.Module,
    alphas: Sequence[Tensor],
    train: tuple[Tensor, Tensor],
    valid: tuple[Tensor, Tensor],
    optimizer: torch.optim.SGD,
) -> list[Tensor]:
    """Gradients of alphas through one step of the optimiser, taken by a second network."""
    group = optimizer.param_groups[0]
    weights = list(net.parameters())
    gradients = torch.autograd.grad(loss_of(net, alphas, train), weights)
    unrolled = copy.deepcopy(net)
    with torch.no_grad():
        for weight, new, gradient in zip(weights, unrolled.parameters(), gradients, strict=True):
            moment = optimizer.state[weight].get("momentum_buffer", 0) if weight in optimizer.state else 0
            new.copy_(weight - group["lr"] * (group["momentum"] * moment + gradient + group["weight_decay"] * weight))
    direct = first_order_gradients(unrolled, alphas, valid)
    vector = [weight.grad for weight in unrolled.parameters()]
    radius = 0.01 / torch.cat([v.flatten() for v in vector]).norm()
    sides = []
    for factor in (radius, -2 * radius):
        with torch.no_grad():
            for weight, v in zip(weights, vector, strict=True):
                weight.add_(factor * v)
        sides.append(torch.autograd.grad(loss_of(net, alphas, train), alphas))
    with torch.no_grad():
        for weight, v in zip(weights, vector, strict=True):
            weight.add_(radius * v)
    return [d - group["lr"] * (p - m) / (2 * radius) for d, p, m in zip(direct, *sides, strict=True)]
