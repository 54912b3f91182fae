"""The supernet: the weights of all networks of a space; every call names the architecture that it runs."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from ofa.block_spec import IMAGES, BlockSpec, last_readers, wiring
from ofa.blocks import build_block, connect, init_weights
from ofa.elastic import ElasticBlock
from ofa.errors import OfaError
from ofa.space import ArchConfig, SearchSpace, Slot


@dataclass(frozen=True, slots=True)
class Noise:
    """Regularisation of one forward in training mode.

    Masks are drawn on the CPU, so that they are the same on every device.
    """

    dropout: float  # probability of dropping a feature before the classifier
    drop_connect: float  # rate that the last block would have; blocks of the last two stages get their share by position
    generator: torch.Generator  # on the CPU
    drop_path: float = 0.0  # probability of dropping an operation of a cell for an image; identities stay (Larsson et al. 2017)

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
        self.layers = nn.ModuleDict()
        self._groups: dict[str, bool] = {}  # slot -> whether its blocks are of several groups, each with weights of its own
        for slot in space.slots:
            groups = _groups(space, slot)
            self._groups[slot.name] = len(groups) > 1
            for group, specs in groups.items():
                self.layers[f"{slot.name}_{group}" if len(groups) > 1 else slot.name] = ElasticBlock(
                    specs, bn_eps=space.bn_eps, kernel_transforms=space.kernel_transforms, device=device
                )
        # Static blocks without memory that say how to run a spec. A plain dict: they are no part of the state.
        self._skeletons: dict[BlockSpec, nn.Module] = {}
        self._adapted: dict[BlockSpec, nn.Module] = {}
        self._adapt: Callable[[nn.Module], nn.Module] | None = None
        self._drop_shares = _drop_shares(space)
        self._paths = {slot.name for slot in space.slots if slot.is_path}
        init_weights(self)

    def forward(
        self,
        images: Tensor,
        arch: ArchConfig,
        noise: Noise | None = None,
        *,
        observe: Callable[[str, Tensor], None] | None = None,
    ) -> Tensor:
        """Compute logits (n, classes) of images (n, 3, r, r), r = the architecture's resolution.

        In training mode BatchNorm uses the statistics of the batch. The running statistics belong to no architecture in
        particular, so an extracted subnet is calibrated before it is evaluated (ofa.training.calibration).

        Args:
            noise: dropout, drop-connect and drop path, without effect in eval mode.
            observe: is called with every block's name and output, e.g. to put an auxiliary classifier on it.
        """
        x = images
        blocks = self.space.blocks(arch)
        noise = noise if self.training else None
        wires, classifier = wiring(blocks), next(reversed(blocks))
        done, states = last_readers(wires), {IMAGES: images}
        for name, spec in blocks.items():
            first, *others = (states[source] for source in wires[name])
            if noise is not None:
                if name == classifier and noise.dropout:
                    first = first * noise.scale(tuple(first.shape), noise.dropout, x.device)
                rate = noise.drop_connect * self._drop_shares.get(name, 0.0)
                if rate and spec.shortcut != "none":
                    others.append(noise.scale((len(x), 1, 1, 1), rate, x.device))
            x = self.run_block(name, spec, first, *others)
            if noise is not None and noise.drop_path and name in self._paths:
                x = x * noise.scale((len(x), 1, 1, 1), noise.drop_path, x.device)
            if observe is not None:
                observe(name, x)
            states[name] = x
            for source in done[name]:
                del states[source]
        return x

    def run_block(self, name: str, spec: BlockSpec, *inputs: Tensor) -> Tensor:
        """Compute one block of some architecture with the shared weights, for searches that weigh blocks of a slot."""
        first, *others = inputs
        out: Tensor = self._layer(name, spec)(first, self._running_skeleton(spec), *others)
        return out

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
        targets: dict[str, nn.Module] = {name: _elastic(layer).largest for name, layer in self.layers.items()}
        if other.space.dimensions == self.space.dimensions:
            sources, targets = dict(other.layers.items()), dict(self.layers.items())
        elif other.space.size() == 1:
            sources = {name: _elastic(layer).largest for name, layer in other.layers.items()}
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
        blocks = self.space.blocks(arch)
        net = connect(blocks, {name: self.extract_block(name, spec) for name, spec in blocks.items()})
        net.training = False  # as its blocks are
        return net

    def extract_block(self, name: str, spec: BlockSpec) -> nn.Module:
        """Return one block of an architecture as `extract` would."""
        return self._layer(name, spec).extract(self._skeleton(spec))

    def _layer(self, name: str, spec: BlockSpec) -> ElasticBlock:
        return _elastic(self.layers[f"{name}_{self.space.weight_group(spec)}" if self._groups[name] else name])

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


def _elastic(layer: nn.Module) -> ElasticBlock:
    assert isinstance(layer, ElasticBlock)
    return layer


def _groups(space: SearchSpace, slot: Slot) -> dict[str, list[BlockSpec]]:
    """The blocks that can stand in a slot, by the weights that they share."""
    groups: dict[str, list[BlockSpec]] = {}
    for spec in space.slot_blocks(slot):
        groups.setdefault(space.weight_group(spec), []).append(spec)
    return groups


def _drop_shares(space: SearchSpace) -> dict[str, float]:
    """Share of the drop-connect rate that each block of the last two stages gets: its position over the number of blocks.

    Source: Wang et al. 2021 (AlphaNet, arXiv 2102.07954); only the last two stages as in its published configuration.
    """
    staged = [slot for slot in space.slots if slot.stage]
    last = max((slot.stage for slot in staged), default=0)
    return {slot.name: i / len(staged) for i, slot in enumerate(staged) if slot.stage >= last - 1}
