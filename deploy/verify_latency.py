"""How fast a file is, held against its limits: measured, and beside a network whose time was known when it was promised.

A machine may run at another speed than on the day that its latency table was measured: throttled, shared, under another governor.
So a network of that table, the anchor, is timed in turns with the file. Where the anchor is slower than then, the limit is held
against what the file takes at the table's speed: its time over the anchor's, times the anchor's time then. Where the factor is
too large for one machine, what was measured counts.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deploy.device import DeviceSpec
from deploy.emit import emit, input_shape
from deploy.interleave import interleave, paired_ratio
from deploy.limits import Limit, format_value
from deploy.model_record import read_blocks
from deploy.runtimes import Session, open_session
from deploy.timing import Call, Latency, clock_of, measure, median_interval, visit
from ofa.artefacts import is_positive
from ofa.progress import say

MAX_ROUNDS = 4  # a limit inside the interval is measured again, each time longer
SAME_SPEED = 0.05  # share by which an anchor may be slower
MOST_FACTOR = 2.5  # by which throttling and neighbours may slow a machine down; beyond, it is another one
ANCHOR_RUNS = 5  # of each in a round
MIN_ROUNDS, MAX_VISITS = 24, 2000


@dataclass(frozen=True, slots=True)
class Anchor:
    """A network of the device's latency table, timed beside the file."""

    then_ms: float  # when the table was measured
    now_ms: float
    ratio: float  # the file's time over the anchor's, measured in turns, with its 95 % interval
    ratio_low: float
    ratio_high: float

    @property
    def factor(self) -> float:
        """Time now over time then: above 1, the machine is slower."""
        return self.now_ms / self.then_ms

    @property
    def is_slower(self) -> bool:
        """Whether the machine is slower than it has been: other work only ever slows one down."""
        return self.factor > 1 + SAME_SPEED

    @property
    def is_elsewhere(self) -> bool:
        """Whether this cannot be the machine of the table at another speed."""
        return self.factor > MOST_FACTOR


@dataclass(frozen=True, slots=True)
class TimedFile:
    """A file's latency on a device, and what its limits are held against."""

    latency: Latency
    anchor: Anchor | None
    low_ms: float  # of the 95 % interval, at the speed of the latency table where this machine is slower now
    high_ms: float

    def __str__(self) -> str:
        found, anchor = self.latency, self.anchor
        text = (
            f"{found.median_ms:.4g} ms median of {found.n} runs, {found.clock} time "
            f"(95% CI {found.low_ms:.4g}-{found.high_ms:.4g})"
        )
        if anchor is None or not anchor.is_slower:
            return text
        if anchor.is_elsewhere:
            return (
                f"{text}; not the machine of its latency table, a network of which takes {anchor.factor:.2g} times as long here"
            )
        return (
            f"{text}; this machine takes {anchor.factor:.2f} of the time that it took when its latency table was measured "
            f"(a network of the table: {anchor.then_ms:.4g} ms then, {anchor.now_ms:.4g} now): at that speed "
            f"{anchor.ratio * anchor.then_ms:.4g} ms ({self.low_ms:.4g}-{self.high_ms:.4g})"
        )


def time_file(
    content: bytes,
    device: DeviceSpec,
    resolution: int,
    limits: Sequence[Limit],
    *,
    seconds: float,
    anchor: tuple[Call, float] | None = None,
) -> TimedFile:
    """Time a file on a device; while a limit lies inside the interval, twice as long again.

    Args:
        resolution: of its input, px.
        limits: what the latency is held against.
        seconds: of the first measurement.
        anchor: what runs a network of the device's table once, and the milliseconds that it took then.
    """
    images = np.random.default_rng(0).standard_normal((device.batch_size, 3, resolution, resolution), dtype=np.float32)
    call = open_session(content, device).prepare(images)
    for round_ in range(MAX_ROUNDS):
        found = _time(call, clock_of(device), seconds * 2**round_, anchor)
        undecided = [limit for limit in limits if found.low_ms <= limit.bound <= found.high_ms]
        if not undecided or round_ == MAX_ROUNDS - 1:
            break
        say(
            f"{undecided[0]}: measured {format_value('latency', found.low_ms)} to {format_value('latency', found.high_ms)}, "
            "undecided; measuring longer"
        )
    return found


def _time(call: Call, clock: str, seconds: float, anchor: tuple[Call, float] | None) -> TimedFile:
    if anchor is None:
        latency = measure(call, clock=clock, seconds=seconds)
        return TimedFile(latency, None, latency.low_ms, latency.high_ms)
    other, then_ms = anchor
    column = 0 if clock == "cpu" else 1
    once_ms = sum(visit(each, warm_up=2, runs=3)[-1][1] for each in (call, other))
    rounds = max(MIN_ROUNDS, round(1e3 * seconds / (once_ms * (ANCHOR_RUNS + 1))))
    own, others = interleave([call, other], [ANCHOR_RUNS] * 2, rounds=min(rounds, MAX_VISITS), rng=np.random.default_rng(0))
    medians, walls = (np.median(own[:, :, i], axis=1) for i in (column, 1))
    low_ms, high_ms = median_interval(medians)
    latency = Latency(float(np.median(medians)), low_ms, high_ms, own[:, :, 0].size, clock, float(np.median(walls)))
    found = Anchor(then_ms, float(np.median(others[:, :, column])), *paired_ratio(own, others, column))
    if not found.is_slower or found.is_elsewhere:
        return TimedFile(latency, found, low_ms, high_ms)
    return TimedFile(latency, found, found.ratio_low * then_ms, found.ratio_high * then_ms)


def open_anchor(fields: Mapping[str, Any] | None, device: DeviceSpec, source: Path) -> tuple[Call, float] | None:
    """Return what runs a device's anchor once, and its milliseconds when the table was measured; None without one.

    Args:
        fields: "blocks" and "latency_ms", as the export noted them in `source`.
    """
    if not fields or not fields.get("blocks") or not is_positive(fields.get("latency_ms")):
        return None
    blocks = read_blocks(fields["blocks"], source)
    shape = (device.batch_size, *input_shape(next(iter(blocks.values()))))
    images: NDArray[np.float32] = np.random.default_rng(0).standard_normal(shape, dtype=np.float32)
    session: Session = open_session(emit(blocks, precision=device.graph_precision), device)
    call: Callable[[], object] = session.prepare(images)
    return call, float(fields["latency_ms"])
