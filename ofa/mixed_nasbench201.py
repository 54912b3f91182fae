"""NAS-Bench-201 as a differentiable space: every edge of the cell is a weighted sum of all five operations.

Network: Dong and Yang 2020 (arXiv 2001.00326), section 2; on every edge all operations at once, as in DARTS (Liu et al. 2019,
section 2.2). The probabilities are arguments, so that a search owns them; one-hot ones give the discrete network.

Written for speed on CPUs: edges that leave the same node share its ReLU and its pooling, their convolutions of one size are one
convolution with stacked output channels, and an operation's probability is the weight of its BatchNorm, which the search network
keeps without a learned one anyway. All BatchNorm uses the statistics of the batch, in eval mode too: nothing is tracked.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ofa.errors import OfaError
from ofa.formats.nasbench201 import EDGES, OPERATIONS

NODES = 4
_, SKIP, POINTWISE, FULL, POOL = range(len(OPERATIONS))
LEAVING = tuple(tuple(i for i, (_, source) in enumerate(EDGES) if source == node) for node in range(NODES - 1))  # edges of a node


class MixedNasBench201(nn.Module):
    """The search network: three stages of cells with a residual block between, all cells with the same probabilities."""

    def __init__(self, num_classes: int, *, cells_per_stage: int = 5, channels: int = 16) -> None:
        """Build it with random weights; the defaults are the published size.

        Raises:
            OfaError: for a size below 1.
        """
        super().__init__()
        for name, value in (("classes", num_classes), ("cells_per_stage", cells_per_stage), ("channels", channels)):
            if value < 1:
                raise OfaError(f"NAS-Bench-201 network with {name} = {value}, expected at least 1")
        self.stem = nn.Sequential(nn.Conv2d(3, channels, 3, padding=1, bias=False), _norm(channels))
        self.layers = nn.ModuleList()
        for width in (channels, 2 * channels, 4 * channels):
            if width > channels:
                self.layers.append(_Reduction(width // 2, width))
            self.layers.extend(_MixedCell(width) for _ in range(cells_per_stage))
        self.norm = _norm(4 * channels)
        self.classifier = nn.Linear(4 * channels, num_classes)
        self.to(memory_format=torch.channels_last)

    def forward(
        self, images: Tensor, edges: Tensor, *, skip_drop: float = 0.0, generator: torch.Generator | None = None
    ) -> Tensor:
        """Return logits, (n, classes).

        Args:
            images: (n, 3, h, w), sides divisible by 4.
            edges: (6, 5) probabilities in the order of EDGES and OPERATIONS.
            skip_drop: probability that a sample does without an edge's skip connection (training only); the others' are
                scaled up in turn.
            generator: of the CPU, which draws the samples.
        Raises:
            OfaError: if `edges` has another shape.
        """
        if edges.shape != (len(EDGES), len(OPERATIONS)):
            raise OfaError(f"probabilities of shape {tuple(edges.shape)}, expected {(len(EDGES), len(OPERATIONS))}")
        drop = skip_drop if self.training else 0.0
        x = self.stem(images.contiguous(memory_format=torch.channels_last))
        weights = _stacked(edges, x.shape[1])
        for layer in self.layers:
            if isinstance(layer, _MixedCell):
                x = layer(x, edges, weights, _kept_skips(x, drop, generator) if drop else None)
            else:
                x = layer(x)
                weights = _stacked(edges, x.shape[1])
        return self.classifier(F.relu(self.norm(x)).mean((2, 3)))


class _MixedCell(nn.Module):
    """Four nodes; node j is the sum over i < j of the mixed edge i -> j."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.pointwise = nn.ParameterList(_conv_weight(len(edges) * channels, channels, 1) for edges in LEAVING)
        self.full = nn.ParameterList(_conv_weight(len(edges) * channels, channels, 3) for edges in LEAVING)

    def forward(self, x: Tensor, edges: Tensor, weights: Sequence[tuple[Tensor, Tensor]], kept: Tensor | None) -> Tensor:
        """Return the last node, (n, channels, h, w) like x.

        Args:
            edges: (6, 5) probabilities.
            weights: for every source node those of its 1x1 and its 3x3 convolutions, a weight for each output channel.
            kept: (6, n) factors of the skip connections; None = 1.
        """
        channels, states = x.shape[1], [x]
        terms: list[list[Tensor]] = [[] for _ in range(NODES)]  # what a node adds up
        plain: list[list[Tensor]] = [[] for _ in range(NODES)]  # and what it adds up with a weight
        factors: list[list[Tensor]] = [[] for _ in range(NODES)]
        for source, leaving in enumerate(LEAVING):
            state = states[source]
            active, pooled = F.relu(state), F.avg_pool2d(state, 3, stride=1, padding=1, count_include_pad=False)
            pointwise = _normalised(F.conv2d(active, self.pointwise[source]), weights[source][0])
            full = _normalised(F.conv2d(active, self.full[source], padding=1), weights[source][1])
            for edge, mixed in zip(leaving, (pointwise + full).split(channels, 1), strict=True):
                to = EDGES[edge][0]
                terms[to].append(mixed)
                plain[to] += [state if kept is None else state * kept[edge].view(-1, 1, 1, 1), pooled]
                factors[to] += [edges[edge, SKIP], edges[edge, POOL]]
            to = source + 1
            states.append(_WeightedSum.apply(torch.stack(factors[to]), *plain[to], *terms[to]))
        return states[-1]


class _Reduction(nn.Module):
    """Residual block that halves the resolution, with learned BatchNorm."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.ReLU(),
            nn.Conv2d(in_channels, out_channels, 3, stride=2, padding=1, bias=False),
            _norm(out_channels),
            nn.ReLU(),
            nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False),
            _norm(out_channels),
        )
        self.shortcut = nn.Sequential(nn.AvgPool2d(2), nn.Conv2d(in_channels, out_channels, 1, bias=False))

    def forward(self, x: Tensor) -> Tensor:
        return self.shortcut(x) + self.body(x)


class _WeightedSum(torch.autograd.Function):
    """Sum of tensors, the first of them with weights, in one pass over memory each and without keeping products."""

    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, weights: Tensor, *tensors: Tensor) -> Tensor:
        """Add them up; weights (k,) belong to the first k tensors."""
        weighted = tensors[: len(weights)]
        ctx.save_for_backward(weights, *weighted)
        ctx.num_terms = len(tensors) - len(weights)  # type: ignore[attr-defined]
        factors = weights.tolist()
        total = torch.mul(weighted[0], factors[0])
        for tensor, factor in zip(weighted[1:], factors[1:], strict=True):
            total.add_(tensor, alpha=factor)
        for term in tensors[len(weights) :]:
            total.add_(term)
        return total

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, gradient: Tensor) -> tuple[Tensor | None, ...]:
        """Written in differentiable operations, so that it can be differentiated once more."""
        weights, *weighted = ctx.saved_tensors  # type: ignore[attr-defined]
        wanted = ctx.needs_input_grad[0]  # type: ignore[attr-defined]
        of_weights = torch.stack([(gradient * tensor).sum() for tensor in weighted]) if wanted else None
        return of_weights, *(gradient * weight for weight in weights), *[gradient] * ctx.num_terms  # type: ignore[attr-defined]


def _stacked(edges: Tensor, channels: int) -> list[tuple[Tensor, Tensor]]:
    """Return for every source node the probabilities of its 1x1 and 3x3 convolutions, one an output channel."""
    return [
        (
            edges[list(leaving), POINTWISE].repeat_interleave(channels),
            edges[list(leaving), FULL].repeat_interleave(channels),
        )
        for leaving in LEAVING
    ]


def _normalised(x: Tensor, weight: Tensor) -> Tensor:
    return F.batch_norm(x, None, None, weight, training=True)


def _norm(channels: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels, track_running_stats=False)


def _conv_weight(out_channels: int, in_channels: int, kernel_size: int) -> nn.Parameter:
    """Draw weights as torch.nn.Conv2d does; stacking outputs changes nothing, their scale depends on the inputs."""
    weight = torch.empty(out_channels, in_channels, kernel_size, kernel_size)
    nn.init.kaiming_uniform_(weight, a=math.sqrt(5))
    return nn.Parameter(weight)


def _kept_skips(x: Tensor, drop: float, generator: torch.Generator | None) -> Tensor:
    """Draw which samples keep which skip connections, (6, n): 0 or 1 / (1 - drop)."""
    kept = torch.rand(len(EDGES), len(x), generator=generator) >= drop
    return kept.to(x) / (1 - drop)
