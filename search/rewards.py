"""Accuracy and costs as one number to be large: the rewards of MnasNet and MobileNetV3."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ofa.errors import OfaError

REWARDS: dict[str, tuple[float, float]] = {  # alpha, beta
    "mnasnet_soft": (-0.07, -0.07),  # doubling the latency is worth 5 % of the accuracy
    "mnasnet_hard": (0.0, -1.0),
    "mobilenetv3": (-0.15, -0.15),  # for MobileNetV3-Small, whose accuracy changes more with latency
}


def mnasnet_reward(
    top1: NDArray[np.float64], costs: NDArray[np.float64], targets: NDArray[np.float64], *, alpha: float, beta: float
) -> NDArray[np.float64]:
    """Return top1 times (cost / target) ** w for every target; w is alpha where the target is met and beta where it is missed.

    Args:
        top1: (n,), in [0, 1].
        costs: (n, k), above zero, in the units of the targets.
        targets: (k,), above zero.
        alpha: exponent below and at the target; 0 = no reward for being cheaper than asked.
        beta: exponent above the target.
    Returns:
        (n,), to be large.
    Raises:
        OfaError: for a cost or a target that is not above zero.
    Source: Tan et al. 2019 (arXiv 1807.11626), equations 2 and 3, for one target; Howard et al. 2019 (arXiv 1905.02244),
        section 4.1, for -0.15.
    """
    for name, values in (("cost", costs), ("target", targets)):
        if not (np.asarray(values) > 0).all():
            raise OfaError(f"{name} {np.asarray(values).min()}: expected only values above zero")
    ratio = costs / targets
    return top1 * (ratio ** np.where(ratio <= 1, alpha, beta)).prod(1)


def hard_reward(
    score: NDArray[np.float64], violation: NDArray[np.float64], *, scale: float | NDArray[np.float64] = 0.0
) -> NDArray[np.float64]:
    """Return a score of any sign, lowered where limits are missed: MnasNet's hard rule for the sum of relative excesses.

    A positive score becomes score / (1 + violation), which with one limit is mnasnet_hard. That rule would reward a missed limit
    where scores are negative, and say nothing at zero; so the same share is taken off the score's size, or off `scale` where
    that is larger.

    Args:
        score: (n,), to be large.
        violation: (n,), 0 = all limits are met; may be infinite.
        scale: a difference of scores that matters.
    """
    missed = np.maximum(violation, 0)
    share = 1 - 1 / (1 + missed)
    return score - np.maximum(np.abs(score), scale) * share
