"""A cell of the search network of DARTS, run source by source instead of edge by edge.

Tensors are channels last. All edges that leave a state (their "source") run together: a kind of operation holds the weights of
its edges in one tensor, target by target, so that it is one depthwise convolution, one grouped pointwise convolution and one
BatchNorm of edges * c channels. The last BatchNorm of an operation has the probabilities as its weight: weighing costs nothing,
and their gradient comes out of BatchNorm's. A source is pooled once and, in training, its pools normalised once, since BatchNorm
of the same tensor is the same on all edges; a node adds up pools and identities with their probabilities in one pass.

Dilated convolutions are ordinary ones on "phases", the four images of even and odd rows and columns, stacked in the batch.
Pointwise convolutions, BatchNorm and sums do not care where a pixel is, so that only a node's sum is put in order again.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ofa.mixed_blocks import FactorizedReduce, Norm, ReluConv, Separable, every_second, from_phases, to_phases
from ofa.mixed_functions import weighted_sum

NONE, MAX_POOL, AVG_POOL, SKIP, SEP3, SEP5, DIL3, DIL5 = range(8)  # columns of probabilities
SEPARABLE, DILATED = {SEP3: 3, SEP5: 5}, {DIL3: 3, DIL5: 5}  # column -> kernel size

Term = tuple[Tensor, Tensor]  # a probability and what it weighs


class MixedCell(nn.Module):
    """A cell of mixed edges; its output are the nodes' channels one after the other."""

    def __init__(
        self, before: int, last: int, channels: int, nodes: int, *, reduce: bool, reduced: bool, pool_norm: bool = True
    ) -> None:
        """Build a cell.

        Args:
            before: channels of the last cell but one.
            last: channels of the last cell.
            channels: of each node.
            nodes: number of nodes.
            reduce: whether edges from the cell's inputs halve the resolution.
            reduced: whether the last cell did, so that the one before it has twice the resolution.
            pool_norm: whether pools are followed by BatchNorm.
        """
        super().__init__()
        self.reduce, self.nodes = reduce, nodes
        self.preprocess0 = FactorizedReduce(before, channels) if reduced else ReluConv(before, channels)
        self.preprocess1 = ReluConv(last, channels)
        self.sources = nn.ModuleList(
            Source(channels, nodes - max(0, s - 1), 2 if reduce and s < 2 else 1, pool_norm=pool_norm) for s in range(nodes + 1)
        )

    def forward(self, before: Tensor, last: Tensor, p: Tensor, keep: Tensor | None = None) -> Tensor:
        """Run the cell.

        Args:
            before: (n, before, h, w) output of the last cell but one; 2h and 2w if the last one reduced.
            last: (n, last, h, w).
            p: (edges, 8) probabilities.
            keep: (edges, n) factors of the skip connections of every edge and sample; None = 1.
        """
        states = [self.preprocess0(before), self.preprocess1(last)]
        sums = [NodeSum() for _ in range(self.nodes)]
        for s, source in enumerate(self.sources):
            targets = range(max(0, s - 1), self.nodes)
            rows = [node * (node + 3) // 2 + s for node in targets]
            source(states[s], p[rows], sums[targets.start :], None if keep is None else keep[rows])
            if s > 0:
                states.append(sums[s - 1].total(states[s], 2 if self.reduce and s == 1 else 1))
        return torch.cat(states[2:], 1)


class NodeSum:
    """What has reached a node so far."""

    def __init__(self) -> None:
        self.weighted: list[Term] = []
        self.plain: list[Tensor] = []
        self.phases: list[Tensor] = []

    def total(self, like: Tensor, stride: int) -> Tensor:
        """Add everything up; zeros of the shape that `like` has after a stride, if there is nothing."""
        plain = [*self.plain, from_phases(_added(self.phases))] if self.phases else self.plain
        if not self.weighted:
            return _added(plain) if plain else torch.zeros_like(like[:, :, ::stride, ::stride])
        return weighted_sum(torch.stack([p for p, _ in self.weighted]), [x for _, x in self.weighted], plain)


class Source(nn.Module):
    """All operations of all edges that leave one state."""

    def __init__(self, channels: int, edges: int, stride: int, *, pool_norm: bool = True) -> None:
        super().__init__()
        self.channels, self.edges, self.stride = channels, edges, stride
        self.max_norm = Norm(channels, edges) if pool_norm else None
        self.avg_norm = Norm(channels, edges) if pool_norm else None
        if stride == 2:
            self.skip = FactorizedReduce(channels, channels, edges)
        self.sep_first = nn.ModuleList(Separable(channels, edges, k, stride) for k in SEPARABLE.values())
        self.sep_second = nn.ModuleList(Separable(channels, edges, k) for k in SEPARABLE.values())
        self.dil = nn.ModuleList(Separable(channels, edges, k) for k in DILATED.values())

    def forward(self, x: Tensor, p: Tensor, sums: Sequence[NodeSum], keep: Tensor | None) -> None:
        """Add to the node sums of the targets.

        Args:
            x: (n, c, h, w).
            p: (edges, 8) probabilities.
            sums: of the targets, in the order of the edges.
            keep: (edges, n) factors of the skip connections, or None.
        """
        wanted = torch.ones_like(p, dtype=torch.bool) if p.requires_grad and torch.is_grad_enabled() else p != 0
        targets = [column.nonzero().flatten().tolist() for column in wanted.unbind(1)]  # of each kind of operation
        self._pool(x, p, targets, sums)
        self._skip(x, p, targets[SKIP], sums, keep)
        r = F.relu(x)
        parts = Parts(self.channels)
        for i, kind in enumerate(SEPARABLE):
            if chosen := targets[kind]:
                between = F.relu(self.sep_first[i](r, chosen), inplace=True)
                parts.add(chosen, self.sep_second[i](between, chosen, self._scale(p, kind, chosen)))
        for target, part in parts:
            sums[target].plain.append(part)
        if not any(targets[kind] for kind in DILATED):
            return
        phased = self.stride == 1 and x.shape[2] % 2 == 0 and x.shape[3] % 2 == 0
        if phased:
            r = to_phases(r)
        elif self.stride == 2:  # even rows and columns are all that is read
            r = every_second(r, 0)
        parts = Parts(self.channels)
        for i, kind in enumerate(DILATED):
            if chosen := targets[kind]:
                dilation = 1 if phased or self.stride == 2 else 2
                parts.add(chosen, self.dil[i](r, chosen, self._scale(p, kind, chosen), dilation=dilation))
        for target, part in parts:
            (sums[target].phases if phased else sums[target].plain).append(part)

    def _scale(self, p: Tensor, kind: int, chosen: Sequence[int]) -> Tensor:
        """Probability of every channel, (chosen * c,)."""
        column = p[:, kind] if len(chosen) == self.edges else p[list(chosen), kind]
        return column.repeat_interleave(self.channels)

    def _pool(self, x: Tensor, p: Tensor, targets: Sequence[Sequence[int]], sums: Sequence[NodeSum]) -> None:
        for kind, norm in ((MAX_POOL, self.max_norm), (AVG_POOL, self.avg_norm)):
            if not targets[kind]:
                continue
            if kind == MAX_POOL:
                pooled = F.max_pool2d(x, 3, self.stride, 1)
            else:
                pooled = F.avg_pool2d(x, 3, self.stride, 1, count_include_pad=False)
            tensors = [pooled] * len(targets[kind]) if norm is None else norm.same(pooled, targets[kind])
            for target, tensor in zip(targets[kind], tensors, strict=True):
                sums[target].weighted.append((p[target, kind], tensor))

    def _skip(self, x: Tensor, p: Tensor, targets: Sequence[int], sums: Sequence[NodeSum], keep: Tensor | None) -> None:
        if not targets:
            return
        if self.stride == 2:
            parts = self.skip(x, targets, self._scale(p, SKIP, targets)).split(self.channels, 1)
        for i, target in enumerate(targets):
            tensor = x if self.stride == 1 else parts[i]
            if keep is not None:
                tensor = tensor * keep[target].view(-1, 1, 1, 1)
            if self.stride == 1:
                sums[target].weighted.append((p[target, SKIP], tensor))
            else:
                sums[target].plain.append(tensor)


class Parts:
    """Sums of outputs that have the same edges; iterates over (edge, its channels)."""

    def __init__(self, channels: int) -> None:
        self.channels, self.sums = channels, dict[tuple[int, ...], Tensor]()

    def add(self, edges: Sequence[int], output: Tensor) -> None:
        """Add (n, edges * c, h, w)."""
        key = tuple(edges)
        self.sums[key] = self.sums[key].add_(output) if key in self.sums else output  # BatchNorm's gradient does not need it

    def __iter__(self) -> Iterator[tuple[int, Tensor]]:
        for edges, total in self.sums.items():
            yield from zip(edges, total.split(self.channels, 1), strict=True)


def _added(tensors: Sequence[Tensor]) -> Tensor:
    return weighted_sum(tensors[0].new_empty(0), [], tensors)
