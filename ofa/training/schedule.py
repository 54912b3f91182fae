"""Learning rate as a function of the step: nothing to save, nothing to restore."""

import math

EXPONENTIAL_END = 0.0222  # BigNAS: times 0.97 every 2.4 of 300 epochs


def learning_rate(schedule: str, step: int, *, total_steps: int, warmup_steps: int, peak: float, floor: float = 0.0) -> float:
    """Rise linearly to `peak` over the warm-up, then fall to the end, but not below `floor` x `peak`.

    | schedule    | fall                                                                                  |
    |-------------|---------------------------------------------------------------------------------------|
    | cosine      | half a cosine to zero (Loshchilov and Hutter 2017, without restarts)                  |
    | linear      | a line to zero (Guo et al. 2020)                                                      |
    | exponential | to 2.2 % of the peak (Yu et al. 2020, section 3.2; with their constant ending, floor  |
    |             | 0.05, the rate is constant over the last fifth)                                       |
    """
    if step < warmup_steps:
        return peak * (step + 1) / warmup_steps
    progress = min(1.0, (step - warmup_steps) / max(1, total_steps - warmup_steps))
    falls = {
        "cosine": 0.5 * (1 + math.cos(math.pi * progress)),
        "linear": 1 - progress,
        "exponential": EXPONENTIAL_END**progress,
    }
    return peak * max(floor, falls[schedule])
