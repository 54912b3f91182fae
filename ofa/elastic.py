"""An elastic block: the weights of the largest block of a slot, from which every smaller one is a slice.

Channels are taken from the front (Cai et al. 2020, section 3.2, "elastic width"); a smaller depthwise kernel is the centre of
the next larger one, times a learned matrix where the space has kernel transforms ("elastic kernel size").
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ofa.block_spec import SHORTCUTS, BlockSpec
from ofa.blocks import build_block


def largest_spec(specs: Sequence[BlockSpec]) -> BlockSpec:
    """Return the block whose weights hold those of every block in `specs` (of one kind)."""
    sizes = ("in_channels", "out_channels", "hidden_channels", "kernel_size", "resolution", "weight_bits", "activation_bits")
    shortcut = max((spec.shortcut for spec in specs), key=SHORTCUTS.index)
    return replace(specs[0], shortcut=shortcut, **{name: max(getattr(s, name) for s in specs) for name in sizes})


class _Place(NamedTuple):
    """One tensor of a skeleton, and where the shared tensor of the same name is."""

    registry: dict[str, Tensor | None]  # the parameters or buffers of one of the skeleton's modules
    name: str
    empty: Tensor  # what stands there between calls
    shared: dict[str, Tensor | None]  # the registry in the largest block


class ElasticBlock(nn.Module):
    """Shared weights of all blocks that can stand in one slot; every call names the block that it runs.

    A block is named by its *skeleton*: the static block on torch's meta device, without memory. Running it means lending it
    slices of the shared tensors. (torch.func.functional_call does the same at twice the cost.)
    """

    def __init__(self, specs: Sequence[BlockSpec], *, bn_eps: float, kernel_transforms: bool, device: str = "cpu") -> None:
        super().__init__()
        self.largest = build_block(largest_spec(specs), bn_eps=bn_eps, device=device)
        # largest first; ParameterDict keeps an order of its own
        self.kernel_sizes = sorted({spec.kernel_size for spec in specs}, reverse=True)
        steps = itertools.pairwise(self.kernel_sizes) if kernel_transforms else ()
        self.kernel_transforms = nn.ParameterDict(
            {f"{large}to{small}": nn.Parameter(torch.eye(small * small, device=device)) for large, small in steps}
        )
        self._places: dict[nn.Module, list[_Place]] = {}

    def forward(self, x: Tensor, skeleton: nn.Module, *extra: Tensor) -> Tensor:
        """Run the static block `skeleton` with the shared weights; `extra` is passed on to it."""
        if skeleton.training != self.training:
            skeleton.train(self.training)
        with self._lend(skeleton, self._slices(skeleton)):
            out: Tensor = skeleton(x, *extra)
        return out

    @torch.no_grad()
    def extract(self, skeleton: nn.Module) -> nn.Module:
        """Return the static block that `skeleton` stands for, in eval mode, with its own copies of what `forward` would use."""
        copies = (part.detach().clone(memory_format=torch.contiguous_format) for part in self._slices(skeleton))
        owned = [
            nn.Parameter(copy) if isinstance(place.empty, nn.Parameter) else copy
            for place, copy in zip(self._find_places(skeleton), copies, strict=True)
        ]
        with self._lend(skeleton, owned):
            return _copy_structure(skeleton)

    @contextmanager
    def _lend(self, skeleton: nn.Module, tensors: Iterable[Tensor]) -> Iterator[None]:
        """Put tensors into the skeleton's places for a while."""
        places = self._find_places(skeleton)
        try:
            for place, tensor in zip(places, tensors, strict=True):
                place.registry[place.name] = tensor
            yield
        finally:
            for place in places:
                place.registry[place.name] = place.empty

    def _slices(self, skeleton: nn.Module) -> list[Tensor]:
        """Return views of the shared tensors in the shapes of the skeleton's, in the order of its places."""
        slices = []
        for place in self._find_places(skeleton):
            tensor, shape = place.shared[place.name], place.empty.shape
            assert tensor is not None
            if tensor.shape != shape:
                tensor = tensor[tuple(slice(n) for n in shape[:2])]
                if tensor.shape[2:] != shape[2:]:
                    tensor = self._smaller_kernel(tensor, shape[-1])
            slices.append(tensor)
        return slices

    def _find_places(self, skeleton: nn.Module) -> list[_Place]:
        if skeleton not in self._places:
            self._places[skeleton] = [
                _Place(registry, name, tensor, shared)
                for path, module in skeleton.named_modules()
                for registry, shared in zip(_registries(module), _registries(self.largest.get_submodule(path)), strict=True)
                for name, tensor in registry.items()
                if tensor is not None
            ]
        return self._places[skeleton]

    def _smaller_kernel(self, kernel: Tensor, size: int) -> Tensor:
        """Derive (c, 1, size, size) from a larger depthwise kernel through the chain of transforms, e.g. 7 -> 5 -> 3."""
        for larger, smaller in itertools.pairwise(self.kernel_sizes):
            if smaller >= size:
                edge = (larger - smaller) // 2
                kernel = kernel[:, :, edge : edge + smaller, edge : edge + smaller]
                if self.kernel_transforms:
                    matrix = self.kernel_transforms[f"{larger}to{smaller}"]
                    kernel = F.linear(kernel.flatten(2), matrix).view(*kernel.shape[:2], smaller, smaller)
        return kernel


def _registries(module: nn.Module) -> tuple[dict[str, Tensor | None], dict[str, Tensor | None]]:
    return module._parameters, module._buffers  # type: ignore[return-value]  # parameters are tensors


def _copy_structure(module: nn.Module) -> nn.Module:
    """Copy a module and its children in eval mode; tensors are handed over. Building anew would take ten times as long."""
    copy = type(module).__new__(type(module))
    attributes = copy.__dict__
    for name, value in module.__dict__.items():
        attributes[name] = value.copy() if isinstance(value, (dict, set)) else value
    attributes["_modules"] = {name: child and _copy_structure(child) for name, child in module._modules.items()}
    attributes["training"] = False
    return copy
