"""An elastic block: the weights of the largest block of a slot, from which every smaller one is a slice.

Channels are taken from the front (Cai et al. 2020, section 3.2, "elastic width"); a smaller depthwise kernel is the centre of
the next larger one times a learned matrix, shared by all channels of the block ("elastic kernel size").
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from ofa.blocks import build_block
from ofa.space import BlockSpec


def largest_spec(specs: Sequence[BlockSpec]) -> BlockSpec:
    """Return the block whose weights hold those of every block in `specs` (of one kind)."""
    sizes = ("in_channels", "out_channels", "hidden_channels", "kernel_size", "resolution")
    return replace(specs[0], **{name: max(getattr(s, name) for s in specs) for name in sizes})


class ElasticBlock(nn.Module):
    """Shared weights of all blocks that can stand in one slot; every call names the block that it runs."""

    def __init__(self, specs: Sequence[BlockSpec], *, bn_eps: float) -> None:
        super().__init__()
        self.largest = build_block(largest_spec(specs), bn_eps=bn_eps)
        # largest first; ParameterDict keeps an order of its own
        self.kernel_sizes = sorted({spec.kernel_size for spec in specs}, reverse=True)
        self.kernel_transforms = nn.ParameterDict(
            {
                f"{large}to{small}": nn.Parameter(torch.eye(small * small))
                for large, small in itertools.pairwise(self.kernel_sizes)
            }
        )

    def weights(self, skeleton: nn.Module) -> dict[str, Tensor]:
        """Return views of the shared tensors in the shapes of `skeleton`, a static block, under its own names."""
        shared = dict(self.largest.named_parameters()) | dict(self.largest.named_buffers())
        wanted = itertools.chain(skeleton.named_parameters(), skeleton.named_buffers())
        return {name: self._slice(shared[name], tensor.shape) for name, tensor in wanted}

    def forward(self, x: Tensor, skeleton: nn.Module) -> Tensor:
        """Run the static block `skeleton` (any device; its own tensors are not used) with the shared weights."""
        skeleton.train(self.training)
        out: Tensor = functional_call(skeleton, self.weights(skeleton), (x,))
        return out

    def _slice(self, tensor: Tensor, shape: torch.Size) -> Tensor:
        if tensor.shape == shape:
            return tensor
        leading = tensor[tuple(slice(n) for n in shape[:2])]
        return leading if tensor.shape[2:] == shape[2:] else self._smaller_kernel(leading, shape[-1])

    def _smaller_kernel(self, kernel: Tensor, size: int) -> Tensor:
        """Derive (c, 1, size, size) from a larger depthwise kernel through the chain of transforms, e.g. 7 -> 5 -> 3."""
        for larger, smaller in itertools.pairwise(self.kernel_sizes):
            if smaller >= size:
                edge = (larger - smaller) // 2
                centre = kernel[:, :, edge : edge + smaller, edge : edge + smaller]
                matrix = self.kernel_transforms[f"{larger}to{smaller}"]
                kernel = F.linear(centre.flatten(2), matrix).view(*kernel.shape[:2], smaller, smaller)
        return kernel
