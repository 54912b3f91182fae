"""Does a file compute what the PyTorch network computes?"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from deploy.runtimes import Session

TOLERANCE = 1e-4  # of the largest |logit|: float32 sums in another order differ by 1e-6 to 1e-5 of it
BATCHES = (1, 3, 8)
REFERENCE_DEVICE = "ort_cpu_1t"  # where what a file computes is looked at, in any precision


@torch.no_grad()
def parity_error(net: nn.Module, session: Session, resolution: int) -> float:
    """Return the largest |difference| of logits over the largest |logit|, for batches of 1, 3 and 8 random images."""
    return max(relative_error(session.run(images), net(torch.from_numpy(images)).numpy()) for images in random_images(resolution))


def random_images(resolution: int) -> list[NDArray[np.float32]]:
    """Return a batch of standard normal images (n, 3, resolution, resolution) of each size in BATCHES."""
    return [np.random.default_rng(n).standard_normal((n, 3, resolution, resolution), dtype=np.float32) for n in BATCHES]


def relative_error(found: NDArray[np.float32], expected: NDArray[np.float32]) -> float:
    """Return the largest |difference| over the largest |expected|; infinity for what is not finite."""
    if np.array_equal(found, expected):
        return 0.0  # be it that all are zero
    largest = float(np.abs(found - expected).max() / np.abs(expected).max())
    return largest if np.isfinite(found).all() and np.isfinite(largest) else np.inf
