"""Learning rate as a function of the step: nothing to save, nothing to restore."""

import math


def warmup_cosine(step: int, *, total_steps: int, warmup_steps: int, peak: float) -> float:
    """Rise linearly to `peak`, then fall along a half cosine to zero (Loshchilov and Hutter 2017, without restarts)."""
    if step < warmup_steps:
        return peak * (step + 1) / warmup_steps
    progress = (step - warmup_steps) / max(1, total_steps - warmup_steps)
    return peak * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
