"""Ranges of activations on calibration images, and the integer grids that cover them.

A histogram counts a tensor's values by the upper half of their float32 pattern (sign, exponent, seven bits of mantissa): its bins
are 0.8 % wide, wherever the values lie. So one pass suffices, an outlier costs no resolution, and what the rounding to any grid
would cost is known afterwards.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray

from deploy.device import get_device
from deploy.emit import emit
from deploy.graphs import UNNAMED, Weights
from deploy.parity import REFERENCE_DEVICE
from deploy.runtimes.onnxruntime import session_options
from ofa.block_spec import BlockSpec
from ofa.errors import OfaError
from ofa.progress import progress

METHODS = ("minmax", "percentile", "mse")
PERCENTILE = 99.99  # of all values, from either end
MAX_BYTES = 128 * 2**20  # of all activations that are held at once
BINS = 2**16
FINITE = 0x7F80  # patterns below are finite
VANISHING = 1e-20  # a range of nothing but zeros, for any purpose
COARSE = 0.5 ** (np.arange(21) / 2)  # ends that "mse" tries, of the whole: down to its thousandth,
FINE = 0.5 ** (np.arange(-3, 4) / 8)  # then around the best


@dataclass(frozen=True, slots=True)
class Histogram:
    """The values of one tensor: exact least and largest, and how many lie in each occupied bin (zeros in none)."""

    low: float
    high: float
    left: NDArray[np.float64]  # edges of the bins, ascending
    right: NDArray[np.float64]
    counts: NDArray[np.int64]
    zeros: int


Ranges = Mapping[str, Histogram]


def activation_ranges(blocks: Mapping[str, BlockSpec], weights: Weights, batches: Iterable[NDArray[np.float32]]) -> Ranges:
    """Run the fp32 graph and return the histogram of every activation, by its tensor's name.

    Args:
        blocks: name -> block, in execution order.
        weights: folded weights.
        batches: preprocessed images (n, 3, r, r). They run in parts, so that all activations of a part take at most MAX_BYTES
            (or those of one image, if that is more).
    Raises:
        OfaError: if there are no images, or an activation is not finite.
    """
    content = emit(blocks, weights)
    names = activation_names(content)
    totals = {name: np.zeros(BINS, np.int64) for name in ["images", *names]}
    bounds = dict.fromkeys(totals, (np.inf, -np.inf))
    batches = list(batches)
    with progress("calibrating", sum(map(len, batches))) as advance:
        for images, found in run_with_activations(content, batches, names):
            for name, values in {"images": images, **found}.items():
                low, high = bounds[name]
                bounds[name] = min(low, float(values.min())), max(high, float(values.max()))
                if not np.isfinite(bounds[name]).all():
                    raise OfaError(f"activation {name} is not finite on calibration images, expected finite values; train again")
                totals[name] += _count(values)
            advance(len(images))
    if not np.isfinite(bounds["images"]).all():
        raise OfaError("calibration has no images, expected at least one")
    return {name: _histogram(total, *bounds[name]) for name, total in totals.items()}


def activation_names(content: bytes) -> list[str]:
    """Return the names of all tensors in float that nodes of an fp32 file compute from its input."""
    return [
        node.output[0]
        for node in onnx.load_from_string(content).graph.node
        if node.op_type not in UNNAMED and node.output[0] != "logits"
    ]


def run_with_activations(
    content: bytes, batches: Iterable[NDArray[np.float32]], names: list[str]
) -> Iterator[tuple[NDArray[np.float32], dict[str, NDArray[np.float32]]]]:
    """Yield (images, activations by name), a part of a batch at a time."""
    model = onnx.load_from_string(content)
    there = {value.name for value in model.graph.output}
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names if name not in there)
    device = get_device(REFERENCE_DEVICE)
    session = ort.InferenceSession(model.SerializeToString(), session_options(device), providers=[device.provider])
    count = 1
    for batch in batches:
        start = 0
        while start < len(batch):
            images = np.ascontiguousarray(batch[start : start + count], dtype=np.float32)
            found = dict(zip(names, session.run(names, {"images": images}), strict=True))
            yield images, found
            start += len(images)
            count = max(1, MAX_BYTES * len(images) // sum(values.nbytes for values in found.values()))


def scales_of(ranges: Ranges, bits: int = 8, method: str = "percentile") -> dict[str, tuple[float, int]]:
    """Return (scale, zero point) of every tensor for grids of the integers 0 to 2**bits - 1.

    | method     | range                                                                          |
    |------------|--------------------------------------------------------------------------------|
    | minmax     | all values                                                                     |
    | percentile | all but 0.01 % at either end                                                   |
    | mse        | that with the least squared error of rounding and clipping together            |

    Raises:
        OfaError: if there is no such method.
    """
    if method not in METHODS:
        raise OfaError(f"unknown calibration method {method!r}; known: {', '.join(METHODS)}")
    ends: dict[str, Callable[[Histogram], tuple[float, float]]] = {
        "minmax": lambda histogram: (histogram.low, histogram.high),
        "percentile": _percentile,
        "mse": partial(_least_error, bits=bits),
    }
    return {name: grid(*ends[method](histogram), bits) for name, histogram in ranges.items()}


def grid(low: float, high: float, bits: int) -> tuple[float, int]:
    """Return (scale, zero point) of the integers 0 to 2**bits - 1 that cover a range; zero, always inside, is one of them."""
    low, high = min(low, 0.0), max(high, 0.0)
    if high - low < VANISHING:
        return 1.0, 0
    scale = float(np.float32((high - low) / (2**bits - 1)))
    return scale, min(max(round(-low / scale), 0), 2**bits - 1)


def squared_error(histogram: Histogram, scale: float, zero_point: int, bits: int) -> float:
    """Return what rounding and clipping to a grid costs, summed over a tensor's values, which lie evenly within each bin."""

    def integral(x: NDArray[np.float64]) -> NDArray[np.float64]:  # of the squared error, from zero to x
        inside = x.clip(-zero_point * scale, (2**bits - 1 - zero_point) * scale)
        steps = np.rint(inside / scale)
        return steps * (scale**3 / 12) + ((inside - steps * scale) ** 3 + (x - inside) ** 3) / 3

    width = histogram.right - histogram.left
    return float((histogram.counts * (integral(histogram.right) - integral(histogram.left)) / width).sum())


def _percentile(histogram: Histogram) -> tuple[float, float]:
    negative = int(histogram.counts[histogram.right <= 0].sum())
    outside = (1 - PERCENTILE / 100) * (histogram.counts.sum() + histogram.zeros)

    def beyond(left: NDArray[np.float64], right: NDArray[np.float64], counts: NDArray[np.int64]) -> float:
        """Return the value that `outside` values lie beyond, given bins from the outermost on."""
        passed = np.cumsum(counts)
        at = int(np.searchsorted(passed, outside))
        if at == len(counts):
            return 0.0
        return float(left[at] + (right[at] - left[at]) * (passed[at] - outside) / counts[at])

    lower = slice(None, int((histogram.right <= 0).sum()))
    upper = slice(lower.stop, None)
    low = -beyond(-histogram.right[lower], -histogram.left[lower], histogram.counts[lower]) if negative else 0.0
    high = beyond(histogram.left[upper][::-1], histogram.right[upper][::-1], histogram.counts[upper][::-1])
    return max(low, histogram.low), min(high, histogram.high)


def _least_error(histogram: Histogram, bits: int) -> tuple[float, float]:
    """Move the upper end, the lower one, and the upper one again, each to where the squared error is least."""
    ends = [min(histogram.low, 0.0), max(histogram.high, 0.0)]
    if ends[1] - ends[0] < VANISHING:
        return ends[0], ends[1]
    for which, whole in ((1, ends[1]), (0, ends[0]), (1, ends[1])):

        def error(end: float, which: int = which) -> float:
            low, high = (end, ends[1]) if which == 0 else (ends[0], end)
            return squared_error(histogram, *grid(low, high, bits), bits)

        coarse = min((whole * share for share in COARSE), key=error)
        ends[which] = min((coarse * share for share in FINE if abs(coarse * share) <= abs(whole)), key=error)
    return ends[0], ends[1]


def _count(values: NDArray[np.float32]) -> NDArray[np.int64]:
    patterns = np.ascontiguousarray(values).reshape(-1).view(np.uint32) >> 16
    return np.bincount(patterns.astype(np.intp), minlength=BINS)


def _histogram(total: NDArray[np.int64], low: float, high: float) -> Histogram:
    edges = (np.arange(FINITE + 1, dtype=np.uint32) << 16).view(np.float32).astype(np.float64)  # of magnitudes
    positive, negative = total[: BINS // 2], total[BINS // 2 :]
    up, down = np.flatnonzero(positive[1:]) + 1, (np.flatnonzero(negative[1:]) + 1)[::-1]  # the first bin is that of zero
    return Histogram(
        low,
        high,
        left=np.concatenate([-edges[down + 1], edges[up]]),
        right=np.concatenate([-edges[down], edges[up + 1]]),
        counts=np.concatenate([negative[down], positive[up]]),
        zeros=int(positive[0] + negative[0]),
    )
