"""What leaving fp32 costs: a file beside the fp32 file of the same weights, on the same images."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch

from deploy.runtimes import Session
from ofa.errors import OfaError
from ofa.training.data import Images, Preprocessing, in_batches

BATCH = 250
TINY, MOST_DB = 1e-30, 200.0  # of equal logits


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

    Raises:
        OfaError: if one of them computes values that are not finite.
    """
    lost = won = right = same = 0
    signal = noise = 0.0
    for images, labels in in_batches(data, BATCH):
        x = np.ascontiguousarray(preprocess(images, resolution).numpy())
        found, expected = session.run(x), reference.run(x)
        ours, theirs = (torch.from_numpy(logits.argmax(1)) for logits in (found, expected))
        if not (np.isfinite(found).all() and np.isfinite(expected).all()):
            raise OfaError("the file computes values that are not finite; choose another precision")
        lost += int(((theirs == labels) & (ours != labels)).sum())
        won += int(((ours == labels) & (theirs != labels)).sum())
        right += int((ours == labels).sum())
        same += int((ours == theirs).sum())
        signal += float((expected.astype(np.float64) ** 2).sum())
        noise += float(((found.astype(np.float64) - expected) ** 2).sum())
    n = len(data)
    sqnr_db = min(MOST_DB, 10 * math.log10(max(signal, TINY) / max(noise, TINY)))
    return Comparison(n, right / n, (right + lost - won) / n, same / n, paired_interval(lost, won, n), sqnr_db)


def paired_interval(lost: int, won: int, n: int, z: float = 1.96) -> tuple[float, float]:
    """95 % interval of (lost - won) / n, the difference of two proportions on the same n images.

    Half an image is added to each of the four cells, or no difference among a hundred images would be taken for certain
    (Agresti and Min 2005, Statistics in Medicine 24, section 4).
    """
    total = n + 2
    difference = (lost - won) / total
    half = z * math.sqrt((lost + won + 1) / total - difference**2) / math.sqrt(total)
    return max(-1.0, difference - half), min(1.0, difference + half)
