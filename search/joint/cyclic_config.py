"""How to search cells with two networks that teach each other: every setting that the result depends on, and the schedule."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from ofa.errors import OfaError
from search.joint.config import check_numbers

Phase = Literal["pretrain", "warmup", "joint"]

CHOICES = {
    "distillation": ("kl", "cosine", "mse", "smooth_l1"),
    "kl_reduction": ("batchmean", "mean"),
    "ensemble": ("sum", "concat"),
    "penalised": ("skip", "skip_and_pools"),
    "edge_weights": ("none", "learned", "equal"),
}
RANGES: dict[str, tuple[float, float]] = {  # least and largest legal value
    "cells": (3, 100),
    "evaluation_cells": (3, 100),
    "channels": (2, 1024),
    "resolution": (12, 1024),  # heads read features of a quarter of it, at least 3 px
    "pretrain_epochs": (0, math.inf),
    "cycles": (1, math.inf),
    "warmup_epochs": (0, math.inf),
    "cycle_epochs": (1, math.inf),
    "batch_size": (2, math.inf),
    "sample_ratio": (1e-6, 1),
    "lr": (0, math.inf),
    "lr_end": (0, math.inf),
    "evaluation_lr": (0, math.inf),
    "momentum": (0, 0.9999),
    "weight_decay": (0, math.inf),
    "clip_norm": (0, math.inf),
    "alpha_lr": (0, math.inf),
    "alpha_weight_decay": (0, math.inf),
    "loss_alpha": (1e-6, 1e6),
    "temperature": (1e-3, 1e3),
    "penalty": (0, math.inf),
    "penalty_ratio": (1e-6, 1),
    "penalty_count": (1, 100),
    "train_portion": (0.05, 0.95),
    "max_images": (0, math.inf),
    "seed": (0, 2**63 - 1),
}
VARIANTS: dict[str, dict[str, Any]] = {  # where the released code is not what the paper says
    "paper": {},
    "released": {
        "kl_reduction": "mean",  # a tenth of equation 4 with ten classes
        "detach_teacher": False,
        "ensemble": "concat",
        "penalised": "skip_and_pools",
        "penalty_count": 3,  # once for every stage, though the stages share their alphas
        "edge_weights": "equal",
    },
}


class Position(NamedTuple):
    """Where an epoch stands in the schedule."""

    phase: Phase
    cycle: int  # counted from 0; 0 in pre-training
    of_cycle: int  # joint epochs of this cycle before this one
    joint: int  # joint epochs of all cycles before this one


@dataclass(frozen=True, slots=True, kw_only=True)
class CyclicConfig:
    """Settings, written to nas/config.json; a resumed search must be given the same.

    Defaults are the sizes and rates of the released configuration, with the losses of the paper: Yu et al. 2022 (Cyclic-DARTS,
    arXiv 2006.10724). An epoch is `sample_ratio` of the passes over one half of the images.
    """

    cells: int = 8  # of the search network
    evaluation_cells: int = 20  # of the evaluation network
    channels: int = 16  # after the stem, of both: they share heads
    resolution: int = 32  # px that images are trained at
    pretrain_epochs: int = 5  # of the search network alone
    cycles: int = 5  # derive, warm up, learn jointly
    warmup_epochs: int = 5  # of a cycle: the evaluation network alone
    cycle_epochs: int = 5  # of a cycle: both networks and the alphas
    batch_size: int = 128
    sample_ratio: float = 0.2
    lr: float = 0.05  # of the search network: in pre-training, and in the first joint epoch
    lr_end: float = 0.001  # that both networks' rates fall towards, in half a cosine, epoch by epoch
    evaluation_lr: float = 0.1  # of the evaluation network and the heads: warming up, and in a cycle's first joint epoch
    momentum: float = 0.9
    weight_decay: float = 3e-4
    clip_norm: float = 5.0  # of the gradient of either network; 0 = no clipping
    alpha_lr: float = 6e-4  # Adam with betas (0.5, 0.999)
    alpha_weight_decay: float = 1e-3
    loss_alpha: float = 1.0  # factor of the distillation, and of the cross-entropies in turn
    distillation: str = "kl"  # between the networks: kl, cosine, mse or smooth_l1
    kl_reduction: str = "batchmean"  # equation 4; "mean" divides by the classes too
    temperature: float = 2.0  # T; every distillation is multiplied by T^2
    detach_teacher: bool = True  # whether the distillation teaches the search network only
    ensemble: str = "sum"  # of the logits of three depths; "concat": they are compared one by one
    learn_ensemble: bool = False  # whether the weights of the three depths learn; else a third each
    penalty: float = 5.0  # coefficient of the L1 term at first
    penalty_ratio: float = 0.5  # share of the joint epochs after which it has fallen to 0, in a line
    penalised: str = "skip"  # alphas of skip connections; "skip_and_pools": of both poolings too
    penalty_count: int = 1  # how often the term is added
    edge_weights: str = "none"  # "learned": a softmax over each node's edges (betas); "equal": that of equal betas
    train_portion: float = 0.5  # share of the training images that the search network's weights learn from
    max_images: int = 0  # training images to use, of every class alike; 0 = all
    seed: int = 0

    def __post_init__(self) -> None:
        for name, known in CHOICES.items():
            if getattr(self, name) not in known:
                raise OfaError(f"{name} is {getattr(self, name)!r}, expected one of: {', '.join(known)}")
        check_numbers(self, RANGES)

    @property
    def joint_epochs(self) -> int:
        return self.cycles * self.cycle_epochs

    @property
    def epochs(self) -> int:
        """All of them, of all phases."""
        return self.pretrain_epochs + self.cycles * (self.warmup_epochs + self.cycle_epochs)

    def position(self, epoch: int) -> Position:
        """Return where an epoch stands, counted from 0."""
        if epoch < self.pretrain_epochs:
            return Position("pretrain", 0, 0, 0)
        cycle, within = divmod(epoch - self.pretrain_epochs, self.warmup_epochs + self.cycle_epochs)
        done = max(0, within - self.warmup_epochs)
        phase: Phase = "warmup" if within < self.warmup_epochs else "joint"
        return Position(phase, cycle, done, cycle * self.cycle_epochs + done)

    def learning_rate(self, epoch: int) -> float:
        """Return the rate of the search network in an epoch, counted from 0."""
        return self._falling(self.lr, self.position(epoch).joint / self.joint_epochs)

    def evaluation_rate(self, epoch: int) -> float:
        """Return the rate of the evaluation network in an epoch: it starts anew with every cycle."""
        return self._falling(self.evaluation_lr, self.position(epoch).of_cycle / self.cycle_epochs)

    def penalty_at(self, epoch: int) -> float:
        """Return the coefficient of the L1 term in an epoch."""
        done = self.position(epoch).joint / (self.joint_epochs * self.penalty_ratio)
        return self.penalty_count * self.penalty * max(0.0, 1 - done)

    def _falling(self, rate: float, done: float) -> float:
        return self.lr_end + (rate - self.lr_end) * 0.5 * (1 + math.cos(math.pi * done))


def variant(name: str, **settings: Any) -> CyclicConfig:
    """Return the settings of a variant: "paper", or "released" for the released code; `settings` take precedence.

    What is our reading of the paper: `detach_teacher`. Algorithm 1 has one loss for the weights of the evaluation network and the
    alphas, and equation 4 does not say that the teacher's logits are constants; the released code differentiates them. We take
    "teacher" at its word: the evaluation network learns from labels alone, the heads through the search network's features alone,
    and the alphas' gradient is the same in either case. Without it, distillation also draws the evaluation network to what the
    search network says already, and a joint step holds the activations of both. `learn_ensemble` is off in both variants: so the
    released code has it by default, and heads that no label anchors are steadier with weights that stay.

    Habits of the released code that neither has: BatchNorm of the evaluation network's cells has no scale and shift during the
    search (ours has both, as when the cells are trained afterwards, so that its optimiser moves more and logits may differ in
    scale); the networks share a stem; gradients of the search network's weights and of the
    alphas have a part in clipping those of the evaluation network; rates never fall, as their schedules are not stepped; every
    cycle forgets the state of all optimisers, not just that of the evaluation network's; and pre-training takes the place of the
    first cycles, so that its own defaults (5 and 5) leave none.

    Raises:
        OfaError: for an unknown variant or an illegal value.
    """
    if name not in VARIANTS:
        raise OfaError(f"unknown variant {name!r}; known: {', '.join(VARIANTS)}")
    return CyclicConfig(**{**VARIANTS[name], **settings})
