"""How NAS with reinforcement learning searches networks for images: every setting that the result depends on."""

from __future__ import annotations

import math
from dataclasses import dataclass

from ofa.conv_chain_space import ConvChainSpace
from ofa.errors import OfaError
from ofa.space import SearchSpace
from ofa.spaces import get_space
from ofa.training.config import TrainConfig
from search.joint.config import check_numbers
from search.scratch import Scratch

CONVOLUTIONS = "cnn"
SCHEDULES = ("constant", "cosine", "linear")
RANGES: dict[str, tuple[float, float]] = {  # least and largest legal value
    "layers": (1, 64),
    "least_layers": (1, 64),
    "strides": (1, 3),
    "resolution": (2, 1024),
    "grow_every": (1, math.inf),
    "children": (1, math.inf),
    "batch_children": (1, math.inf),
    "controller_lr": (1e-9, math.inf),
    "baseline_decay": (0, 1),
    "entropy_weight": (0, math.inf),
    "reward_power": (0.01, 100),
    "child_epochs": (1, math.inf),
    "last_epochs": (1, math.inf),
    "batch_size": (2, math.inf),
    "lr": (0, math.inf),
    "weight_decay": (0, math.inf),
    "max_images": (0, math.inf),
    "seed": (0, 2**63 - 1),
}
OF_CONVOLUTIONS = ("layers", "least_layers", "strides", "resolution")  # of no effect on spaces that are given by name


@dataclass(frozen=True, slots=True, kw_only=True)
class NasRlConfig:
    """Settings, written to nas/config.json; a resumed search must be given the same.

    Defaults are the published ones for CIFAR-10: Zoph and Le 2017 (arXiv 1611.01578), sections 3.2 and 4.1. Of the decay of the
    baseline, the size of a child's batches and the fall of its learning rate they say nothing.
    """

    space: str = CONVOLUTIONS  # their convolutions, or the name of any space of images
    layers: int = 15  # most
    least_layers: int = 6  # that the search begins with, if there are so many
    grow_every: int = 1_600  # children after which networks may have two layers more; of chains of convolutions alone
    strides: int = 1  # 1: none; 3: layers choose from 1, 2, 3
    resolution: int = 32  # px that images are trained at
    children: int = 12_800  # architectures to train, in all
    batch_children: int = 8  # whose rewards an update of the controller averages
    controller_lr: float = 6e-4  # of Adam
    baseline_decay: float = 0.95  # of the mean of previous rewards, an update
    entropy_weight: float = 0.0  # worth of a nat, in rewards
    reward_power: float = 3.0  # of what a child is rewarded with
    child_epochs: int = 50
    last_epochs: int = 5  # the best accuracy after one of these is the child's
    batch_size: int = 128  # images a step of a child
    lr: float = 0.1  # of a child, Nesterov momentum 0.9
    schedule: str = "constant"  # its fall
    weight_decay: float = 1e-4
    max_images: int = 0  # training images to use, of every class alike; 0 = all
    seed: int = 0

    def __post_init__(self) -> None:
        check_numbers(self, RANGES)
        if self.schedule not in SCHEDULES:
            raise OfaError(f"unknown schedule {self.schedule!r}; known: {', '.join(SCHEDULES)}")
        if self.children % self.batch_children:
            raise OfaError(f"children is {self.children}, expected a multiple of batch_children, {self.batch_children}")

    @property
    def updates(self) -> int:
        """Steps of the controller."""
        return self.children // self.batch_children

    def open_space(self, num_classes: int | None = None) -> SearchSpace:
        """Return what is searched.

        Raises:
            OfaError: for an unknown space, one of a single network or of none that read images, or numbers that no network has.
        """
        space = get_space("nas_rl_cnn" if self.space == CONVOLUTIONS else self.space, num_classes=num_classes)
        if not space.slots:
            raise OfaError(f"space {self.space}: its networks read no images; expected {CONVOLUTIONS} or one of: ofa spaces")
        if space.size() == 1:
            raise OfaError(f"{space.name}: is one network, there is nothing to search; train it: ofa train --arch {space.name}")
        if self.space != CONVOLUTIONS:
            return space
        numbers = {"layers": self.layers, "strides": self.strides, "resolution": self.resolution}
        return space.with_numbers(**numbers, least_depth=min(self.least_layers, self.layers))

    def depth(self, space: SearchSpace, step: int) -> int | None:
        """Return how many layers the children of an update have, counted from 0; None where that is another choice of many."""
        if not isinstance(space, ConvChainSpace):
            return None
        return space.depths[min(step * self.batch_children // self.grow_every, len(space.depths) - 1)]

    def scratch(self) -> Scratch:
        """Return how children are trained."""
        constant = self.schedule == "constant"
        config = TrainConfig(
            epochs=self.child_epochs,
            batch_size=self.batch_size,
            lr=self.lr,
            schedule="cosine" if constant else self.schedule,
            lr_floor=1.0 if constant else 0.0,
            warmup=0.0,
            weight_decay=self.weight_decay,
            label_smoothing=0.0,
            seed=self.seed,
        )
        return Scratch(config, self.last_epochs, self.max_images)
