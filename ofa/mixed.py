"""The search network of DARTS: every edge of a cell is the sum of all operations, weighted by their probabilities.

Liu et al. 2019 (DARTS, arXiv 1806.09055), section 2. The probabilities are arguments of a pass, never state of the network:
one-hot rows give the discrete network, at its price. Edges go node by node and, within a node, source by source; sources 0 and 1
are the outputs of the last cell but one and of the last, source 2 is the first node.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from ofa.errors import OfaError
from ofa.mixed_cell import MixedCell

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

    def __init__(
        self,
        num_classes: int,
        *,
        cells: int = 8,
        channels: int = 16,
        nodes: int = 4,
        stem_multiplier: int = 3,
        pool_norm: bool = True,
    ) -> None:
        """Build it with random weights; the defaults are the published search network for CIFAR.

        Args:
            num_classes: of the data set.
            cells: number of cells; those at a third and two thirds halve the resolution and double the channels.
            channels: of each node of the first cell, even.
            nodes: of each cell.
            stem_multiplier: channels of the stem, in terms of `channels`.
            pool_norm: whether pools are followed by BatchNorm, as in DARTS; Cyclic-DARTS has them plain.

        Raises:
            OfaError: if a number is below 1, or channels are odd.
        """
        numbers = {
            "classes": num_classes,
            "cells": cells,
            "channels": channels,
            "nodes": nodes,
            "stem_multiplier": stem_multiplier,
        }
        for name, value in numbers.items():
            if value < 1 or (name == "channels" and value % 2):
                raise OfaError(
                    f"search network: {name} is {value}, expected at least {'2, and even' if name == 'channels' else 1}"
                )
        super().__init__()
        self.edges = [(node, source) for node in range(nodes) for source in range(node + 2)]
        width = stem_multiplier * channels
        self.stem = nn.Sequential(nn.Conv2d(3, width, 3, padding=1, bias=False), nn.BatchNorm2d(width))
        before, last, reduced = width, width, False
        self.cells = nn.ModuleList()
        for i in range(cells):
            reduce = i in (cells // 3, 2 * cells // 3)
            channels *= 2 if reduce else 1
            self.cells.append(MixedCell(before, last, channels, nodes, reduce=reduce, reduced=reduced, pool_norm=pool_norm))
            before, last, reduced = last, nodes * channels, reduce
        self.classifier = nn.Linear(last, num_classes)
        self.to(memory_format=torch.channels_last)

    def forward(
        self,
        images: Tensor,
        normal: Tensor,
        reduce: Tensor,
        *,
        skip_drop: float = 0.0,
        generator: torch.Generator | None = None,
        observe: Callable[[str, Tensor], None] | None = None,
    ) -> Tensor:
        """Return logits, (n, classes).

        Operations whose probability is 0 are not run, unless the gradient of the probabilities is wanted.

        Args:
            images: (n, 3, h, w) float, sides divisible by 4.
            normal: (edges, 8) probability of every operation on every edge of the normal cells; any real numbers will do.
            reduce: the same for the two reduction cells.
            skip_drop: probability that a sample does without an edge's skip connection (training only); the others' are
                scaled up in turn. Below 1.
            generator: of the CPU, which draws the samples.
            observe: is called with every cell's name, "cell0", and output, as a supernet does.

        Raises:
            OfaError: if the images' sides cannot be halved twice.
        """
        if images.shape[2] % 4 or images.shape[3] % 4:
            raise OfaError(f"search network: images of {images.shape[2]}x{images.shape[3]} px, expected sides divisible by 4")
        before = last = self.stem(images.contiguous(memory_format=torch.channels_last))
        for i, cell in enumerate(self.cells):
            keep = None
            if skip_drop and self.training:
                drawn = torch.rand(len(self.edges), len(images), generator=generator) >= skip_drop
                keep = drawn.to(before) / (1 - skip_drop)
            before, last = last, cell(before, last, reduce if cell.reduce else normal, keep)
            if observe is not None:
                observe(f"cell{i}", last)
        return self.classifier(last.mean((2, 3)))
