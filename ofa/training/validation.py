"""A look at accuracy during training: a few fixed subnets, re-calibrated, on some validation images.

The smallest, the largest and some random subnets show how the whole space is doing. How many images and how often is chosen so
that looking costs less than a tenth of the training between two looks, counted in multiply-adds.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from ofa.counts import macs
from ofa.space import ArchConfig, SearchSpace
from ofa.supernet import Supernet
from ofa.training.data import Images, Preprocessing
from ofa.training.evaluation import evaluate

BUDGET = 0.08  # of the training's multiply-adds; small networks are slower than their count says
LEAST_IMAGES, CALIBRATION_IMAGES = 200, 200
NUM_RANDOM = 2


@dataclass(frozen=True)
class Look:
    """What is looked at, and how often."""

    archs: dict[str, ArchConfig]  # name in metrics.jsonl -> architecture
    num_images: int
    every: int  # epochs


def plan_look(space: SearchSpace, *, epoch_images: int, num_validation: int, step_macs: float) -> Look:
    """Choose subnets, number of validation images and interval.

    Args:
        epoch_images: training images an epoch.
        step_macs: multiply-adds of the forward passes of one image's lessons; backward costs twice as much again.
    """
    random = space.decode(space.sample(np.random.default_rng(0), NUM_RANDOM))
    archs = {"top1_largest": space.largest, "top1_smallest": space.smallest}
    archs |= {f"top1_random_{i}": arch for i, arch in enumerate(random, 1)}
    kept = dict(zip(reversed(archs.values()), reversed(archs), strict=True))  # a space of one network is looked at once
    archs = {name: arch for arch, name in reversed(kept.items())}
    cost = float(macs(space, space.encode(list(archs.values()))).sum())
    affordable = BUDGET * 3 * step_macs * epoch_images / cost - CALIBRATION_IMAGES
    least = min(LEAST_IMAGES, num_validation)
    every = 1 if affordable >= least else math.ceil((least + CALIBRATION_IMAGES) / (affordable + CALIBRATION_IMAGES))
    return Look(archs, int(min(num_validation, max(least, affordable))), every)


def look_at(net: Supernet, look: Look, train: Images, validation: Images, preprocess: Preprocessing) -> dict[str, float]:
    """Return top-1 of each of the look's subnets, in [0, 1]."""
    chosen = np.linspace(0, len(validation) - 1, look.num_images).round().astype(np.int64)
    some = validation.subset(np.unique(chosen))
    found = evaluate(net, list(look.archs.values()), train, some, preprocess, num_calibration=CALIBRATION_IMAGES)
    return dict(zip(look.archs, found, strict=True))
