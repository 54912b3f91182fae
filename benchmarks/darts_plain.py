"""The search network of DARTS: every edge of a cell is the sum of all operations, weighted by their probabilities.

Liu et al. 2019 (DARTS, arXiv 1806.09055), section 2. The probabilities are arguments of a pass, never state of the network:
one-hot rows give the discrete network. Edges go node by node and, within a node, source by source.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

PRIMITIVES = (
    "none",
    "max_pool_3x3",
    "avg_pool_3x3",
    "skip_connect",
    "sep_conv_3x3",
    "sep_conv_5x5",
    "dil_conv_3x3",
    "dil_conv_5x5",
)


class MixedNetwork(nn.Module):
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

    def forward(
        self,
        images: Tensor,
        normal: Tensor,
        reduce: Tensor,
        *,
        skip_drop: float = 0.0,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Return logits, (n, classes).

        Args:
            images: (n, 3, h, w) float.
            normal: (edges, 8) probability of every operation on every edge of the normal cells; any real numbers will do.
            reduce: the same for the two reduction cells.
            skip_drop: probability that a sample does without an edge's skip connection (training only); the others' are
                scaled up in turn.
            generator: of the CPU, which draws the samples.
        """
        drop = skip_drop if self.training else 0.0
        before = last = self.stem(images)
        for cell in self.cells:
            before, last = last, cell(before, last, reduce if cell.reduce else normal, drop, generator)
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

    def forward(self, before: Tensor, last: Tensor, weights: Tensor, drop: float, generator: torch.Generator | None) -> Tensor:
        states = [self.preprocess0(before), self.preprocess1(last)]
        sums: list[Tensor] = []
        for (node, source), operations, row in zip(self.edges, self._ops, weights, strict=True):
            if source == 0:
                sums = []
            sums.append(operations(states[source], row, drop, generator))
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

    def forward(self, x: Tensor, row: Tensor, drop: float, generator: torch.Generator | None) -> Tensor:
        outputs = [operation(x) for operation in self._ops[1:]]
        if drop:
            keep = (torch.rand(len(x), 1, 1, 1, generator=generator) >= drop).to(x) / (1 - drop)
            outputs[2] = outputs[2] * keep
        return sum((weight * output for weight, output in zip(row[2:], outputs[1:], strict=True)), row[1] * outputs[0])


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
