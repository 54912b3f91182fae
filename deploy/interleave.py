"""Time several calls side by side, so that whatever slows the machine down for a while hits all of them alike."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from deploy.timing import Call, median_interval, visit

Samples = NDArray[np.float64]  # of one call: (rounds, runs, 2), CPU time of the calling thread and wall time, ms


def interleave(
    calls: Sequence[Call],
    runs: Sequence[int],
    *,
    rounds: int,
    rng: np.random.Generator,
    advance: Callable[[], None] = lambda: None,
) -> list[Samples]:
    """Visit every call once a round, each round in another order.

    Args:
        calls: what to time.
        runs: of each call, timed runs in a visit, after one that fills the caches.
        rounds: how often each is visited.
        rng: draws the orders.
        advance: called after every visit.
    """
    samples: list[list[list[tuple[float, float]]]] = [[] for _ in calls]
    for _ in range(rounds):
        for i in rng.permutation(len(calls)):
            samples[i].append(visit(calls[i], warm_up=1, runs=runs[i]))
            wait_until_idle()
            advance()
    return [np.array(of_call) for of_call in samples]


def wait_until_idle(limit_s: float = 0.2) -> None:
    """Wait until no thread of this process works, or the next call would share its core.

    The threads of ONNX Runtime spin for some 50 ms after a run in case that another follows, those of PyTorch for 10.
    """
    end = time.monotonic() + limit_s
    busy = True
    while busy and time.monotonic() < end:
        cpu, wall = time.process_time(), time.monotonic()
        time.sleep(0.002)
        busy = time.process_time() - cpu > 0.2 * (time.monotonic() - wall)


def paired_ratio(own: Samples, other: Samples, column: int) -> tuple[float, float, float]:
    """Return (median, low, high) of the rounds' ratios of two calls' times, with a 95 % interval; it holds where times drift.

    Args:
        own: samples of the call in question.
        other: of the call that it is compared with, from the same rounds.
        column: 0 = CPU time, 1 = wall time.
    """
    ratios = np.median(own[:, :, column], axis=1) / np.median(other[:, :, column], axis=1)
    return (float(np.median(ratios)), *median_interval(ratios))
