"""How to search by binary gates: every setting that the result depends on."""

from __future__ import annotations

import math
from dataclasses import dataclass

from ofa.errors import OfaError
from search.joint.config import check_numbers

LATENCY_LOSSES = ("add", "multiply")
UPDATES = ("gradient", "reinforce")
RANGES: dict[str, tuple[float, float]] = {  # least and largest legal value
    "epochs": (1, math.inf),
    "warmup_epochs": (0, math.inf),
    "batch_size": (2, math.inf),
    "lr": (0, math.inf),
    "weight_decay": (0, math.inf),
    "label_smoothing": (0, 0.99),
    "alpha_lr": (0, math.inf),
    "alpha_every": (1, math.inf),
    "samples": (1, 10_000),
    "baseline_decay": (0, 1),
    "target_ms": (0, math.inf),
    "latency_weight": (0, math.inf),
    "train_portion": (0.05, 0.95),
    "max_images": (0, math.inf),
    "seed": (0, 2**63 - 1),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class GatesConfig:
    """Settings, written to nas/config.json; a resumed search must be given the same.

    Defaults are those of the authors' code for ImageNet (Cai et al. 2019, ProxylessNAS, arXiv 1812.00332), the share of images
    for weights that of its section 4.1 for CIFAR-10. With as few steps as small data have, alphas need a rate of 0.01 or more.
    """

    space: str = "shufflenet"
    fix: tuple[str, ...] = ()  # "PATTERN=OPTION": choices that are not searched
    update: str = "gradient"  # of the alphas: through two paths, or reinforce with a reward
    epochs: int = 160
    warmup_epochs: int | None = None  # of them, before the alphas learn; None = a quarter, as published
    batch_size: int = 256  # images a step, of the weights and of the alphas alike
    lr: float = 0.025  # SGD with Nesterov momentum 0.9, falling to 0 in half a cosine
    weight_decay: float = 4e-5  # of convolutions and linear layers
    label_smoothing: float = 0.1  # of the weights' loss
    alpha_lr: float = 1e-3  # Adam with betas (0, 0.999)
    alpha_every: int = 5  # steps of the weights for one of the alphas
    samples: int = 10  # reinforce: paths of a step of the alphas, each on a batch of its own
    baseline_decay: float = 0.99  # reinforce: how much of its baseline a step keeps
    latency_loss: str = "add"  # or multiply: how expected latency enters the loss of the alphas
    target_ms: float = 0.0  # latency that the loss is relative to
    latency_weight: float = 0.1  # add: of E / target; multiply: the exponent of log E / log target (published: 0.3)
    train_portion: float = 0.9  # share of the training images that weights learn from; the others are the alphas'
    max_images: int = 0  # training images to use, of every class alike; 0 = all
    seed: int = 0

    def __post_init__(self) -> None:
        for name, known in (("update", UPDATES), ("latency_loss", LATENCY_LOSSES)):
            if getattr(self, name) not in known:
                raise OfaError(f"{name} is {getattr(self, name)!r}, expected one of: {', '.join(known)}")
        check_numbers(self, RANGES)
        if self.waits >= self.epochs:
            raise OfaError(
                f"warmup_epochs is {self.warmup_epochs}, but the search has {self.epochs} epochs; alphas would never learn"
            )

    @property
    def waits(self) -> int:
        """Epochs before the alphas learn."""
        return self.epochs // 4 if self.warmup_epochs is None else self.warmup_epochs

    def require_alpha_steps(self, epoch_steps: int) -> None:
        """Refuse a search whose alphas would never learn.

        Args:
            epoch_steps: steps of an epoch.
        Raises:
            OfaError: if no step after the warm-up is one of the alphas.
        """
        total, before = self.epochs * epoch_steps, self.waits * epoch_steps
        if total // self.alpha_every == before // self.alpha_every:
            raise OfaError(
                f"alpha_every is {self.alpha_every}, but steps {before + 1} to {total}, after the warm-up, hold no multiple of "
                "it; alphas would never learn: lower it, or give more epochs"
            )

    def learning_rate(self, done: float) -> float:
        """Return the rate of the weights when a share of all steps is done."""
        return 0.5 * self.lr * (1 + math.cos(math.pi * done))
