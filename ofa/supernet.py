"""The supernet: the weights of all networks of a space; every call names the architecture that it runs."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Collection
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from ofa.block_spec import BlockSpec
from ofa.blocks import build_block, init_weights
from ofa.elastic import ElasticBlock
from ofa.errors import OfaError
from ofa.space import ArchConfig, SearchSpace


@dataclass(frozen=True, slots=True)
class Noise:
    """Regularisation of one forward in training mode.

    Masks are drawn on the CPU, so that they are the same on every device.
    """

    dropout: float  # probability of dropping a feature before the classifier
    drop_connect: float  # rate that the last block would have; blocks of the last two stages get their share by position
    generator: torch.Generator  # on the CPU

    def scale(self, shape: tuple[int, ...], rate: float, device: torch.device) -> Tensor:
        """Return a random factor, 0 with probability `rate`, else 1 / (1 - rate)."""
        kept = torch.rand(shape, generator=self.generator) >= rate
        return (kept / (1 - rate)).to(device)


class Supernet(nn.Module):
    """Shared weights of a search space (Cai et al. 2020). There is no active subnet: the architecture is an argument."""

    def __init__(self, space: SearchSpace, *, device: str = "cpu") -> None:
        """Initialise fresh weights; on device "meta" there are shapes but no memory."""
        super().__init__()
        self.space = space
        self.layers = nn.ModuleDict(
            {
                slot.name: ElasticBlock(
                    space.slot_blocks(slot), bn_eps=space.bn_eps, kernel_transforms=space.kernel_transforms, device=device
                )
                for slot in space.slots
            }
        )
        # Static blocks without memory that say how to run a spec. A plain dict: they are no part of the state.
        self._skeletons: dict[BlockSpec, nn.Module] = {}
        self._adapted: dict[BlockSpec, nn.Module] = {}
        self._adapt: Callable[[nn.Module], nn.Module] | None = None
        self._drop_shares = _drop_shares(space)
        init_weights(self)

    def forward(self, images: Tensor, arch: ArchConfig, noise: Noise | None = None) -> Tensor:
        """Compute logits (n, classes) of images (n, 3, r, r), r = the architecture's resolution.

        In training mode BatchNorm uses the statistics of the batch. The running statistics belong to no architecture in
        particular, so an extracted subnet is calibrated before it is evaluated (ofa.training.calibration).

        Args:
            noise: dropout and drop-connect, without effect in eval mode.
        """
        x = images
        blocks = self.space.blocks(arch)
        noise = noise if self.training else None
        classifier = next(reversed(blocks))
        for name, spec in blocks.items():
            scales = []
            if noise is not None:
                if name == classifier and noise.dropout:
                    x = x * noise.scale(tuple(x.shape), noise.dropout, x.device)
                rate = noise.drop_connect * self._drop_shares.get(name, 0.0)
                if rate and spec.shortcut != "none":
                    scales.append(noise.scale((len(x), 1, 1, 1), rate, x.device))
            x = self._layer(name)(x, self._running_skeleton(spec), *scales)
        return x

    def adapt_blocks(self, change: Callable[[nn.Module], nn.Module]) -> None:
        """Let `forward` run every block as changed by `change`, which may not change its tensors; `extract` does not change."""
        self._adapt = change
        self._adapted.clear()

    def inherit(self, other: Supernet, *, fresh: Collection[str] = ()) -> None:
        """Take over the weights of another supernet of this space.

        One that holds a single network gives the weights of the largest network (a teacher that training starts from). If this
        one holds a single network, it takes what that network is in the other.

        Args:
            fresh: names of layers to leave as they are.
        Raises:
            OfaError: if the other supernet does not hold the network in question.
        """
        targets: dict[str, nn.Module] = {name: self._layer(name).largest for name in self.layers}
        if other.space.dimensions == self.space.dimensions:
            sources, targets = dict(other.layers.items()), dict(self.layers.items())
        elif other.space.size() == 1:
            sources = {name: other._layer(name).largest for name in other.layers}
        else:
            sources = dict(other.extract(self.space.largest).named_children())
        for name, target in targets.items():
            if name in fresh:
                continue
            try:
                target.load_state_dict(sources[name].state_dict())
            except (KeyError, RuntimeError):
                raise OfaError(f"{self.space.name}: the weights to start from have no {name} of this shape") from None

    def extract(self, arch: ArchConfig) -> nn.Sequential:
        """Return a static network with copies of the weights that `forward` would use, in eval mode.

        The copy shares no memory with the supernet, and in eval mode its outputs equal the supernet's.
        """
        steps = self.space.blocks(arch).items()
        net = nn.Sequential(OrderedDict((name, self.extract_block(name, spec)) for name, spec in steps))
        net.training = False  # as its blocks are
        return net

    def extract_block(self, name: str, spec: BlockSpec) -> nn.Module:
        """Return one block of an architecture as `extract` would."""
        return self._layer(name).extract(self._skeleton(spec))

    def _layer(self, name: str) -> ElasticBlock:
        layer = self.layers[name]
        assert isinstance(layer, ElasticBlock)
        return layer

    def _skeleton(self, spec: BlockSpec) -> nn.Module:
        key = replace(spec, resolution=0)  # of no effect on a module
        if key not in self._skeletons:
            self._skeletons[key] = build_block(spec, bn_eps=self.space.bn_eps, device="meta")
        return self._skeletons[key]

    def _running_skeleton(self, spec: BlockSpec) -> nn.Module:
        if self._adapt is None:
            return self._skeleton(spec)
        key = replace(spec, resolution=0)
        if key not in self._adapted:
            self._adapted[key] = self._adapt(build_block(spec, bn_eps=self.space.bn_eps, device="meta"))
        return self._adapted[key]


def _drop_shares(space: SearchSpace) -> dict[str, float]:
    """Share of the drop-connect rate that each block of the last two stages gets: its position over the number of blocks.

    Source: Wang et al. 2021 (AlphaNet, arXiv 2102.07954); only the last two stages as in its published configuration.
    """
    staged = [slot for slot in space.slots if slot.stage]
    last = max((slot.stage for slot in staged), default=0)
    return {slot.name: i / len(staged) for i, slot in enumerate(staged) if slot.stage >= last - 1}
