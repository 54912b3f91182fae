"""The two spaces of ENAS for images: the network of shared weights, the network that is to be trained, the controller of both."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from ofa.cell_space import CellSpace
from ofa.formats.enas import format_arc, macro_arc, macro_arch, micro_arc, micro_arch
from ofa.macro_space import MacroSpace
from ofa.space import ArchConfig
from ofa.spaces import get_space
from search.joint.controllers import Controller
from search.joint.controllers.macro import MacroController
from search.joint.controllers.micro import MicroController
from search.joint.enas_config import EnasConfig

Space = CellSpace | MacroSpace
MOST_KNOWN = 4096  # architectures that are kept as tokens were translated to them


@dataclass(frozen=True)
class ChildSpace:
    """The same choices in two networks; both know an architecture by ENAS' tokens."""

    shared: Space  # of the weights that all children share
    whole: Space  # of what is found, as it is to be trained and as limits on costs price it
    _known: dict[tuple[bool, tuple[int, ...]], ArchConfig] = field(default_factory=dict, compare=False, repr=False)

    @classmethod
    def of(cls, config: EnasConfig, num_classes: int) -> ChildSpace:
        """Return the spaces of a search.

        Raises:
            OfaError: for sizes that no network can have.
        """
        whole = get_space(f"enas_{config.space}", num_classes=num_classes)
        assert isinstance(whole, CellSpace | MacroSpace)
        final = {} if config.final_channels is None else {"channels": config.final_channels}
        whole = whole.with_numbers(resolution=config.resolution, **final)
        if isinstance(whole, CellSpace):
            return cls(whole.with_numbers(cells=config.depth, channels=config.channels, join="conv"), whole)
        whole = whole.with_numbers(layers=config.depth)
        shared = whole.with_numbers(channels=config.channels)
        released = config.variant == "release"
        return cls(shared.with_numbers(join="add", growth=1) if released else shared.with_numbers(join="conv"), whole)

    def shared_arch(self, tokens: Tensor) -> ArchConfig:
        """Return an architecture of the network of shared weights; `tokens`: (length,)."""
        return self._arch(self.shared, tuple(tokens.tolist()))

    def arch(self, tokens: Tensor) -> ArchConfig:
        """Return the same in the network that is to be trained."""
        return self._arch(self.whole, tuple(tokens.tolist()))

    def arc(self, arch: ArchConfig) -> str:
        """Return the tokens of an architecture that is to be trained as ENAS writes them, states of a node in order."""
        return format_arc(micro_arc(self.whole, arch) if isinstance(self.whole, CellSpace) else macro_arc(self.whole, arch))

    def controller(self, config: EnasConfig, generator: torch.Generator) -> Controller:
        """Return the controller with fresh weights."""
        if isinstance(self.shared, CellSpace):
            return MicroController(self.shared.nodes, variant=config.variant, generator=generator)
        return MacroController(self.shared.layers, skip_target=config.skip_target, variant=config.variant, generator=generator)

    def _arch(self, space: Space, arc: tuple[int, ...]) -> ArchConfig:
        key = (space is self.whole, arc)
        if key not in self._known:
            if len(self._known) >= MOST_KNOWN:
                del self._known[next(iter(self._known))]
            self._known[key] = micro_arch(space, arc) if isinstance(space, CellSpace) else macro_arch(space, arc)
        return self._known[key]
