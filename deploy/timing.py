"""Time calls on this machine: the clock, interleaved rounds, and a median with its confidence interval.

With one thread the clock is the thread's CPU time: it equals wall time when nothing else runs, and stays true when another
process takes the core away. With more threads, or where a runtime hands the work to a thread of its own, only wall time says how
long a caller waits, and it is noisier.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from deploy.device import DeviceSpec

Call = Callable[[], object]
SLICES = 40  # of one measurement
# (runtime, provider) that run one thread's work in the thread that calls; tests/unit/test_runtimes.py measures it
IN_CALLING_THREAD = (("onnxruntime", "CPUExecutionProvider"), ("openvino", "CPU"), ("torch_eager", "cpu"))


@dataclass(frozen=True, slots=True)
class Latency:
    """Median of n timed runs in milliseconds, with a 95 % confidence interval (see `measure`)."""

    median_ms: float
    low_ms: float
    high_ms: float
    n: int
    clock: str  # "cpu" or "wall"
    wall_median_ms: float


def clock_of(device: DeviceSpec) -> str:
    """Which clock times a device: "cpu" where one thread, the caller's, does all the work, else "wall"."""
    return "cpu" if device.num_threads == 1 and (device.runtime, device.provider) in IN_CALLING_THREAD else "wall"


def time_once(call: Call) -> tuple[float, float]:
    """Run once; return (CPU time of this thread, wall time) in milliseconds."""
    wall, cpu = time.perf_counter_ns(), time.thread_time_ns()
    call()
    return (time.thread_time_ns() - cpu) / 1e6, (time.perf_counter_ns() - wall) / 1e6


def visit(call: Call, *, warm_up: int, runs: int) -> list[tuple[float, float]]:
    """Run `warm_up` times unmeasured (after another call used the caches), then `runs` times measured."""
    for _ in range(warm_up):
        call()
    return [time_once(call) for _ in range(runs)]


def measure(call: Call, *, clock: str, seconds: float = 2.0) -> Latency:
    """Time one call alone, as a process that serves one model runs it.

    Successive runs are alike because the machine's state is, so counting each as new evidence would claim far too much: the time
    is cut into slices, and the interval is that of the median over the slices' medians.
    """
    visit(call, warm_up=5, runs=0)
    column = 0 if clock == "cpu" else 1
    medians, walls, n = [], [], 0
    for _ in range(SLICES):
        samples: list[tuple[float, float]] = []
        end = time.monotonic() + seconds / SLICES
        while not samples or time.monotonic() < end:
            samples.append(time_once(call))
        medians.append(float(np.median([sample[column] for sample in samples])))
        walls.append(float(np.median([sample[1] for sample in samples])))
        n += len(samples)
    low, high = median_interval(np.array(medians))
    return Latency(float(np.median(medians)), low, high, n, clock, float(np.median(walls)))


def median_interval(samples: NDArray[np.float64], confidence: float = 0.95) -> tuple[float, float]:
    """Distribution-free confidence interval of the median from order statistics (David and Nagaraja 2003, section 7.1)."""
    from scipy.stats import binom

    ordered = np.sort(samples)
    n = len(ordered)
    rank = int(binom.ppf((1 - confidence) / 2, n, 0.5))  # P(fewer than `rank` values below the median) <= (1 - c) / 2
    return float(ordered[max(0, rank - 1)]), float(ordered[min(n - 1, n - rank)])
