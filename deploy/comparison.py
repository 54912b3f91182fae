"""What leaving fp32 costs: a file beside the fp32 file of the same weights, on the same images."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch

from deploy.runtimes import Session
from ofa.training.data import Images, Preprocessing, in_batches

BATCH = 250


@dataclass(frozen=True, slots=True)
class Comparison:
    """Two files on the same images; top-1 in [0, 1]."""

    images: int
    top1: float
    top1_fp32: float
    agreement: float  # share of the images that both put into the same class
    drop_interval: tuple[float, float]  # 95 %, of top1_fp32 - top1
    sqnr_db: float  # of the logits: fp32's mean square over that of the difference

    @property
    def drop(self) -> float:
        return self.top1_fp32 - self.top1


def compare(session: Session, reference: Session, data: Images, preprocess: Preprocessing, resolution: int) -> Comparison:
    """Run a file and its fp32 reference on images.

    The interval is that of a difference between paired proportions: only images that one file gets right and the other does not
    count (Agresti 2013, Categorical Data Analysis, section 11.1).
    """
    lost = won = right = same = 0
    signal = noise = 0.0
    for images, labels in in_batches(data, BATCH):
        x = np.ascontiguousarray(preprocess(images, resolution).numpy())
        found, expected = session.run(x), reference.run(x)
        ours, theirs = (torch.from_numpy(logits.argmax(1)) for logits in (found, expected))
        lost += int(((theirs == labels) & (ours != labels)).sum())
        won += int(((ours == labels) & (theirs != labels)).sum())
        right += int((ours == labels).sum())
        same += int((ours == theirs).sum())
        signal += float((expected.astype(np.float64) ** 2).sum())
        noise += float(((found.astype(np.float64) - expected) ** 2).sum())
    n = len(data)
    drop = (lost - won) / n
    half = 1.96 * math.sqrt(max(0.0, (lost + won) / n - drop**2) / n)
    sqnr_db = 10 * math.log10(signal / noise) if noise > 0 else 200.0  # equal: as good as float64 would show
    return Comparison(n, right / n, (right + lost - won) / n, same / n, (drop - half, drop + half), sqnr_db)
