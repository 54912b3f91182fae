"""The supernet: the weights of all networks of a space; every call names the architecture that it runs."""

from __future__ import annotations

from torch import Tensor, nn

from ofa.blocks import build_block, build_chain, init_weights
from ofa.elastic import ElasticBlock
from ofa.space import ArchConfig, BlockSpec, SearchSpace


class Supernet(nn.Module):
    """Shared weights of a search space (Cai et al. 2020). There is no active subnet: the architecture is an argument."""

    def __init__(self, space: SearchSpace) -> None:
        super().__init__()
        self.space = space
        self.layers = nn.ModuleDict(
            {slot.name: ElasticBlock(space.slot_blocks(slot), bn_eps=space.bn_eps) for slot in space.slots}
        )
        # Static blocks without memory that say how to run a spec. A plain dict: they are no part of the state.
        self._skeletons: dict[BlockSpec, nn.Module] = {}
        init_weights(self)

    def forward(self, images: Tensor, arch: ArchConfig) -> Tensor:
        """Compute logits (n, classes) of images (n, 3, r, r), r = the architecture's resolution.

        In training mode BatchNorm uses the statistics of the batch. The running statistics belong to no architecture in
        particular, so an extracted subnet is calibrated before it is evaluated (ofa.training.calibration).
        """
        x = images
        for name, spec in self.space.blocks(arch).items():
            x = self._layer(name)(x, self._skeleton(spec))
        return x

    def extract(self, arch: ArchConfig) -> nn.Sequential:
        """Return a static network with copies of the weights that `forward` would use, in eval mode.

        The copy shares no memory with the supernet, and in eval mode its outputs equal the supernet's.
        """
        blocks = self.space.blocks(arch)
        net = build_chain(blocks, bn_eps=self.space.bn_eps, device="meta")
        for name in blocks:
            weights = self._layer(name).weights(net.get_submodule(name))
            copies = {key: tensor.detach().clone().contiguous() for key, tensor in weights.items()}
            net.get_submodule(name).load_state_dict(copies, assign=True)
        return net.eval()

    def _layer(self, name: str) -> ElasticBlock:
        layer = self.layers[name]
        assert isinstance(layer, ElasticBlock)
        return layer

    def _skeleton(self, spec: BlockSpec) -> nn.Module:
        if spec not in self._skeletons:
            self._skeletons[spec] = build_block(spec, bn_eps=self.space.bn_eps, device="meta")
        return self._skeletons[spec]
