"""Layers of the search network of DARTS, each for several edges at once.

Weights and statistics of E edges are one tensor, edge by edge. A pass may be asked for some of the edges only.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ofa.mixed_functions import depthwise

MOMENTUM, EPS = 0.1, 1e-5  # of BatchNorm


class Norm(nn.Module):
    """BatchNorm without learned parameters."""

    mean: Tensor
    var: Tensor

    def __init__(self, channels: int, edges: int = 1) -> None:
        super().__init__()
        self.edges = edges
        self.register_buffer("mean", torch.zeros(edges * channels))
        self.register_buffer("var", torch.ones(edges * channels))

    def forward(self, x: Tensor, chosen: Sequence[int] | None = None, weight: Tensor | None = None) -> Tensor:
        """Normalise the channels of the chosen edges (None = all), (n, chosen * c, h, w), and multiply them by a weight each."""
        if chosen is None or len(chosen) == self.edges:
            return F.batch_norm(x, self.mean, self.var, weight, None, self.training, MOMENTUM, EPS)
        mean, var = _pick(self.mean, self.edges, chosen), _pick(self.var, self.edges, chosen)
        y = F.batch_norm(x, mean, var, weight, None, self.training, MOMENTUM, EPS)
        if self.training:
            self.mean.view(self.edges, -1)[chosen] = mean.view(len(chosen), -1)
            self.var.view(self.edges, -1)[chosen] = var.view(len(chosen), -1)
        return y

    def same(self, x: Tensor, chosen: Sequence[int]) -> list[Tensor]:
        """Normalise one tensor, (n, c, h, w), for each of the chosen edges; in training that is the same for all."""
        means, variances = self.mean.view(self.edges, -1), self.var.view(self.edges, -1)
        if not self.training:
            return [F.batch_norm(x, means[edge], variances[edge], eps=EPS) for edge in chosen]
        mean, var = torch.zeros_like(means[0]), torch.ones_like(means[0])
        y = F.batch_norm(x, mean, var, training=True, momentum=1.0, eps=EPS)  # momentum 1: statistics of this batch alone
        means[chosen] = means[chosen].lerp(mean, MOMENTUM)
        variances[chosen] = variances[chosen].lerp(var, MOMENTUM)
        return [y] * len(chosen)


class ReluConv(nn.Module):
    """ReLU, 1x1 convolution, BatchNorm."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, 1, bias=False)
        self.norm = Norm(outputs)

    def forward(self, x: Tensor) -> Tensor:
        """Return (n, outputs, h, w)."""
        return self.norm(self.conv(F.relu(x)))


class FactorizedReduce(nn.Module):
    """ReLU, half the resolution without losing pixels, BatchNorm: half of the channels from even pixels, half from odd ones."""

    def __init__(self, inputs: int, outputs: int, edges: int = 1) -> None:
        super().__init__()
        self.edges = edges
        self.even = nn.Conv2d(inputs, edges * (outputs // 2), 1, bias=False)
        self.odd = nn.Conv2d(inputs, edges * (outputs // 2), 1, bias=False)
        self.norm = Norm(2 * (outputs // 2), edges)

    def forward(self, x: Tensor, chosen: Sequence[int] = (0,), weight: Tensor | None = None) -> Tensor:
        """Return (n, chosen * outputs, h / 2, w / 2), channels multiplied by a weight each."""
        x = F.relu(x)
        halves = [
            F.conv2d(pixels, _pick(conv.weight, self.edges, chosen)).unflatten(1, (len(chosen), -1))  # (n, chosen, c / 2, h, w)
            for pixels, conv in ((every_second(x, 0), self.even), (every_second(x, 1), self.odd))
        ]
        y = torch.cat(halves, 2).flatten(1, 2).contiguous(memory_format=torch.channels_last)
        return self.norm(y, chosen, weight)


class Separable(nn.Module):
    """Depthwise and pointwise convolution and BatchNorm."""

    def __init__(self, channels: int, edges: int, kernel: int, stride: int = 1) -> None:
        super().__init__()
        self.channels, self.edges, self.stride = channels, edges, stride
        width = edges * channels
        self.depthwise = nn.Conv2d(width, width, kernel, groups=width, bias=False)
        self.pointwise = nn.Conv2d(width, width, 1, groups=edges, bias=False)
        self.norm = Norm(channels, edges)

    def forward(self, x: Tensor, chosen: Sequence[int], weight: Tensor | None = None, *, dilation: int = 1) -> Tensor:
        """Return (n, chosen * c, h, w), channels multiplied by a weight each.

        Args:
            x: (n, c, h, w), which all edges read, or (n, chosen * c, h, w).
            chosen: edges to run.
            weight: (chosen * c,).
            dilation: of the depthwise kernels.
        """
        readers = len(chosen) * self.channels // x.shape[1]
        kernels = _pick(self.depthwise.weight, self.edges, chosen)
        x = depthwise(x, kernels, readers, stride=self.stride, dilation=dilation)
        return self.norm(F.conv2d(x, _pick(self.pointwise.weight, self.edges, chosen), groups=len(chosen)), chosen, weight)


def every_second(x: Tensor, first: int) -> Tensor:
    """Every second pixel of every second row, (n, c, h / 2, w / 2)."""
    pixels = x.permute(0, 2, 3, 1)[:, first::2, first::2]  # sliced this way round, the gradient is channels last too
    return pixels.contiguous().permute(0, 3, 1, 2)


def to_phases(x: Tensor) -> Tensor:
    """Images of even and odd rows and columns, (4 n, c, h / 2, w / 2)."""
    n, c, h, w = x.shape
    x = x.permute(0, 2, 3, 1).reshape(n, h // 2, 2, w // 2, 2, c).permute(0, 2, 4, 1, 3, 5)  # (n, 2, 2, h / 2, w / 2, c)
    return x.reshape(4 * n, h // 2, w // 2, c).permute(0, 3, 1, 2)


def from_phases(x: Tensor) -> Tensor:
    """Put phases in order again: the inverse of `to_phases`."""
    n, c, h, w = x.shape
    x = x.permute(0, 2, 3, 1).reshape(n // 4, 2, 2, h, w, c).permute(0, 3, 1, 4, 2, 5)  # (n, h, 2, w, 2, c)
    return x.reshape(n // 4, 2 * h, 2 * w, c).permute(0, 3, 1, 2)


def _pick(tensor: Tensor, edges: int, chosen: Sequence[int]) -> Tensor:
    """Rows of the chosen edges."""
    return tensor if len(chosen) == edges else tensor.unflatten(0, (edges, -1))[list(chosen)].flatten(0, 1)
