"""How to search cells of images by gradients: every setting that the result depends on."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING

from ofa.errors import OfaError
from search.joint.guards import Guards

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

ORDERS = ("1", "2", "exact")
RANGES: dict[str, tuple[float, float]] = {  # least and largest legal value
    "cells": (1, 100),
    "channels": (2, 1024),
    "resolution": (8, 1024),
    "epochs": (1, math.inf),
    "batch_size": (2, math.inf),
    "lr": (0, math.inf),
    "lr_end": (0, math.inf),
    "momentum": (0, 0.9999),
    "weight_decay": (0, math.inf),
    "clip_norm": (0, math.inf),
    "alpha_lr": (0, math.inf),
    "alpha_weight_decay": (0, math.inf),
    "train_portion": (0.05, 0.95),
    "max_images": (0, math.inf),
    "target_ms": (0, math.inf),
    "latency_weight": (0, math.inf),
    "seed": (0, 2**63 - 1),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class DartsConfig:
    """Settings, written to nas/config.json; a resumed search must be given the same.

    Defaults are the published ones for CIFAR-10: Liu et al. 2019 (DARTS, arXiv 1806.09055), section 3.1 and appendix A.1.
    """

    space: str = "darts"  # or nasbench201
    order: str = "1"  # of the alpha gradients: 1, 2 (finite difference, as published) or exact
    cells: int | None = None  # of the search network; None = 8, of nasbench201 5 in each of three stages
    channels: int = 16  # after the stem
    resolution: int = 32  # px that images are trained at
    epochs: int = 50
    batch_size: int = 64  # images a step, of the weights and of the alphas alike
    lr: float = 0.025  # of the weights, in the first epoch
    lr_end: float = 0.001  # that it falls towards, in half a cosine, epoch by epoch
    momentum: float = 0.9
    weight_decay: float = 3e-4
    clip_norm: float = 5.0  # of the weights' gradient; 0 = no clipping
    alpha_lr: float = 3e-4  # Adam with betas (0.5, 0.999)
    alpha_weight_decay: float = 1e-3
    train_portion: float = 0.5  # share of the training images that weights learn from; alphas learn from the others
    max_images: int = 0  # training images to use, of every class alike; 0 = all
    target_ms: float = 0.0  # latency of the derived network to stay below; 0 = latency does not matter
    latency_weight: float = 1.0  # of what the expected latency exceeds the target by, as a share of it
    seed: int = 0
    guards: Guards = field(default_factory=Guards)

    def __post_init__(self) -> None:
        if self.order not in ORDERS:
            raise OfaError(f"unknown order {self.order!r}; known: {', '.join(ORDERS)}")
        check_numbers(self, RANGES)
        if self.guards.warmup_epochs >= self.epochs:
            raise OfaError(
                f"warmup_epochs is {self.guards.warmup_epochs}, but the search has {self.epochs} epochs; alphas would never learn"
            )

    def learning_rate(self, epoch: int) -> float:
        """Return the rate of the weights in an epoch, counted from 0; constant within it, as in the published code."""
        return self.lr_end + (self.lr - self.lr_end) * 0.5 * (1 + math.cos(math.pi * epoch / self.epochs))


def check_numbers(settings: DataclassInstance, ranges: Mapping[str, tuple[float, float]]) -> None:
    """Refuse settings that are no numbers or out of their range; None, and what has no range, passes.

    Raises:
        OfaError: naming the first one.
    """
    for setting in fields(settings):
        value = getattr(settings, setting.name)
        if setting.name not in ranges or value is None:
            continue
        least, largest = ranges[setting.name]
        whole = str(setting.type).startswith("int")
        number = type(value) is int or (type(value) is float and not whole)
        if not number or not math.isfinite(value) or not least <= value <= largest:
            limit = f"of at least {least:g}" if largest == math.inf else f"from {least:g} to {largest:g}"
            raise OfaError(f"{setting.name} is {value!r}, expected a {'whole ' if whole else ''}number {limit}")
