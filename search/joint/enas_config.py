"""How to search with a controller and shared weights: every setting that the result depends on."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ofa.errors import OfaError
from search.joint.config import check_numbers

if TYPE_CHECKING:
    from search.joint.controllers import Variant

RANGES: dict[str, tuple[float, float]] = {  # least and largest legal value
    "depth": (1, 200),
    "channels": (2, 1024),
    "final_channels": (2, 1024),
    "resolution": (8, 1024),
    "epochs": (1, math.inf),
    "batch_size": (2, math.inf),
    "lr": (0, math.inf),
    "lr_end": (0, math.inf),
    "restart_epochs": (1, math.inf),
    "restart_factor": (1, math.inf),
    "momentum": (0, 0.9999),
    "l2": (0, math.inf),
    "clip_norm": (0, math.inf),
    "dropout": (0, 0.99),
    "controller_steps": (1, math.inf),
    "samples": (1, 10_000),
    "controller_lr": (1e-9, math.inf),
    "baseline_decay": (0, 1),
    "initial_baseline": (-math.inf, math.inf),
    "entropy_weight": (0, math.inf),
    "skip_target": (0.01, 0.99),
    "skip_weight": (0, math.inf),
    "candidates": (1, 1000),
    "train_portion": (0.05, 0.95),
    "max_images": (0, math.inf),
    "seed": (0, 2**63 - 1),
}
SPACES: dict[str, dict[str, Any]] = {  # the released settings of each search, where they are not the defaults below
    "micro": {},
    "macro": {
        "depth": 12,
        "channels": 36,
        "epochs": 310,
        "batch_size": 128,
        "l2": 2.5e-4,
        "controller_steps": 50,
        "samples": 20,
        "controller_lr": 1e-3,
    },
}
VARIANTS: dict[str, dict[str, Any]] = {  # where the released code does otherwise than the paper, or than it means to
    "paper": {},
    "release": {
        "clip_norm": 0.0,  # it computes clipped gradients and then applies the others
        "moves_unused": True,
        "dropout_in_reward": True,
        "initial_baseline": 0.0,
    },
}


@dataclass(frozen=True, slots=True, kw_only=True)
class EnasConfig:
    """Settings, written to nas/config.json; a resumed search must be given the same.

    Defaults are the numbers of the released micro search on CIFAR-10, in both variants, with the rules of the paper: Pham et al.
    2018 (ENAS, arXiv 1802.03268), sections 2.2 and 3.2. See `configure`.
    """

    space: str = "micro"  # or macro
    variant: Variant = "paper"  # of the controller and of the network of shared weights: see `configure`
    depth: int = 8  # of the network of shared weights: cells (micro), layers (macro)
    channels: int = 20  # after the stem; a cell's, before the first reduction
    final_channels: int | None = None  # of the network that is to be trained, which limits price; None = 36
    resolution: int = 32  # px that images are trained at
    epochs: int = 150  # each a pass over the images of the weights, then steps of the controller
    batch_size: int = 160  # images of a step of the weights, and of a reward
    lr: float = 0.05  # of the weights, where a cosine begins
    lr_end: float = 0.0005  # that it falls towards
    restart_epochs: int = 10  # of the first cosine
    restart_factor: int = 2  # how many times as long as the one before each further cosine is
    momentum: float = 0.9  # Nesterov's
    l2: float = 1e-4  # the loss has this times the sum of the squares of all weights that it depends on
    moves_unused: bool = False  # whether weights that a step does not use decay, and move with their momentum
    clip_norm: float = 5.0  # of the whole gradient of the weights; 0 = no clipping
    dropout: float = 0.1  # before the classifier
    dropout_in_reward: bool = False
    controller_steps: int = 30  # an epoch
    samples: int = 10  # architectures of a step of the controller, each with a batch of images of its own
    controller_lr: float = 3.5e-3  # Adam with betas (0, 0.999), eps 1e-3
    baseline_decay: float = 0.99
    initial_baseline: float | None = None  # None = the first rewards
    entropy_weight: float = 1e-4  # worth of a nat, in rewards
    skip_target: float = 0.4  # macro: wanted rate of skips
    skip_weight: float = 0.8  # macro: price of a nat of divergence from it
    candidates: int = 10  # architectures drawn at the end, the best of which is found
    train_portion: float = 0.9  # share of the training images that weights learn from; the others are the controller's
    max_images: int = 0  # training images to use, of every class alike; 0 = all
    seed: int = 0

    def __post_init__(self) -> None:
        for name, known in (("space", SPACES), ("variant", VARIANTS)):
            if getattr(self, name) not in known:
                raise OfaError(f"{name} is {getattr(self, name)!r}, expected one of: {', '.join(known)}")
        check_numbers(self, RANGES)

    def learning_rate(self, epoch: int) -> float:
        """Return the rate of the weights in an epoch, counted from 0: cosines with restarts, constant within an epoch.

        Source: Loshchilov and Hutter 2017 (arXiv 1608.03983), equation 5.
        """
        length = self.restart_epochs
        while epoch >= length:
            epoch, length = epoch - length, length * self.restart_factor
        return self.lr_end + (self.lr - self.lr_end) * 0.5 * (1 + math.cos(math.pi * epoch / length))


def configure(space: str, variant: str = "paper", **settings: Any) -> EnasConfig:
    """Return the settings of a search: those of its space, of the variant, and `settings`, which take precedence.

    "release" is what the published code does where "paper" is what it says, or means:

    - the controller has 64 units instead of 100; in the macro space its penalty and its entropy are others (MacroController);
    - the macro network of shared weights adds skips and keeps its channels, instead of stacking skips and doubling the channels
      where the resolution halves, as the network does that is trained in the end;
    - gradients of the weights are not clipped: it computes clipped ones, and applies the others;
    - weights that a step does not use decay and move by their momentum, instead of staying as they are;
    - rewards are measured with dropout;
    - the baseline begins at 0, so that at first everything that is drawn becomes more likely, instead of at the first rewards.

    A variant is about rules. Numbers are those of the released code in both, also where the paper names others: it has a
    temperature of 5, a tanh constant of 2.5, a controller's learning rate of 0.00035 and an entropy weight of 0.1; the code
    has no temperature, tanh constants of 1.1 (micro) and 1.5 (macro), rates of 0.0035 and 0.001, and a weight of 0.0001.

    Neither has what has no effect there, or an odd one: drop path,
    which its network of shared weights does not read, and the auxiliary classifier, whose own weights it never trains.

    Raises:
        OfaError: for an unknown space or variant, or an illegal value.
    """
    for name, given, known in (("space", space, SPACES), ("variant", variant, VARIANTS)):
        if given not in known:
            raise OfaError(f"{name} is {given!r}, expected one of: {', '.join(known)}")
    return EnasConfig(**{"space": space, "variant": variant, **SPACES[space], **VARIANTS[variant], **settings})
