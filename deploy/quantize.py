"""Static quantisation that keeps its accuracy: ranges by what they cost, biases corrected, costly layers left in float.

Every choice is made by how far the classes' probabilities move from those of fp32, on calibration images that the ranges were not
taken from; top-1 on validation images only says when to stop. Every figure is one of the emitted file, as ONNX Runtime runs it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from deploy.bias_correction import corrected, layer_means
from deploy.calibration import METHODS, activation_ranges, scales_of
from deploy.device import get_device
from deploy.emit import emit, layer_names
from deploy.graphs import Scales, Weights
from deploy.precision import PrecisionError, grid_of
from deploy.runtimes import open_session
from ofa.block_spec import BlockSpec
from ofa.errors import OfaError
from ofa.progress import progress, say

Images = NDArray[np.float32]  # preprocessed, (n, 3, r, r)
Logits = NDArray[np.float32]  # (n, classes)
Predict = Callable[[Images], Logits]
DEVICE = "ort_cpu_1t"  # of fp32 files by name, but it runs any: this is about accuracy
LEAST_IMAGES = 8
HELD_BACK = 2  # one calibration image in so many; fewer do not tell methods apart (docs/benchmarks.md)
BIAS_IMAGES = 32  # with more, corrections do not get better (docs/benchmarks.md)
BATCH = 16
ROUNDING = 1e-9  # shares that differ by an exact limit do not always do so in floating point


@dataclass(frozen=True, slots=True)
class Trial:
    """Something that was tried: how far it is from fp32 on calibration images, and its top-1 where that was measured."""

    what: str
    error: float  # mean divergence of the classes' probabilities from fp32's, nats
    top1: float | None = None


@dataclass(frozen=True)
class Quantised:
    """How to write a network in integers, and what that costs."""

    weights: Weights = field(repr=False)  # biases corrected if that paid
    scales: Scales = field(repr=False)
    layers: dict[str, str]  # exceptions: those asked for, and "fp32" for those that were left in float
    method: str  # how ranges were found; "given" = before
    bias_corrected: bool
    top1_fp32: float  # on the judge's images, in [0, 1]
    top1_quantised: float
    agreement: float  # share of them that both files put into the same class
    sqnr_db: float  # of the logits on them: fp32's mean square over that of the difference
    tried: tuple[Trial, ...]

    @property
    def drop(self) -> float:
        return self.top1_fp32 - self.top1_quantised


def quantize(
    blocks: Mapping[str, BlockSpec],
    weights: Weights,
    calibration: Iterable[Images],
    judge: Callable[[Predict], float],
    *,
    precision: str = "int8",
    max_drop: float = 0.005,
    layers: Mapping[str, str] | None = None,
    scales: Scales | None = None,
    reference: Weights | None = None,
) -> Quantised:
    """Choose scales for a network in integers, and the layers that stay in float.

    Args:
        blocks: name -> block, in execution order.
        weights: folded weights.
        calibration: batches of preprocessed training images; 256 to 512 images do.
        judge: top-1 in [0, 1] of what maps images to logits, on validation images, always the same ones in the same order.
        precision: of the network, in integers (deploy.precision).
        max_drop: top-1 that may be lost; while more is, one layer after the other is left in float. math.inf: none is.
        layers: layer -> its own precision; these are not touched.
        scales: grids that the weights were fine-tuned for; biases are left as they are then. None = calibrate.
        reference: weights of the fp32 network whose top-1 counts; None = `weights`.

    Raises:
        OfaError: if there are too few images, the precision is none in integers, or no choice of layers loses so little.
    """
    if grid_of(precision) is None:
        raise PrecisionError(f"precision {precision} is none in integers, expected int8, a16w8, ...; it needs no calibration")
    known, held_back = _split(calibration)
    bench = _Bench(blocks, weights, precision, known[:BIAS_IMAGES], held_back)
    if scales is not None:  # weights were trained for them
        choices = [_Choice("given", False, weights, scales, dict(layers or {}))]
    else:
        grids = _calibrated(blocks, weights, known, precision)
        choices = [_Choice(method, False, weights, each, dict(layers or {})) for method, each in grids.items()]
        choices += [bench.corrected(choice) for choice in choices]
    tried = [Trial(str(choice), bench.error(choice)) for choice in choices]
    choice = choices[min(range(len(tried)), key=lambda i: tried[i].error)]

    top1_fp32, expected = _judged(emit(blocks, weights if reference is None else reference), judge)
    top1, logits = _judged(bench.write(choice), judge)
    tried.append(Trial(f"all in {precision}", bench.error(choice), top1))
    if top1_fp32 - top1 > max_drop + ROUNDING:
        in_float = replace(choice, weights=weights, layers={**dict.fromkeys(layer_names(blocks), "fp32"), **choice.layers})
        least = top1_fp32 - _judged(bench.write(in_float), judge)[0]
        if least > max_drop + ROUNDING:
            raise OfaError(
                f"{precision} loses {100 * least:.2f} points of top-1 even with its layers in float, expected at most "
                f"{100 * max_drop:.2f}; allow a larger drop, fine-tune, or choose a16w8 or fp32"
            )
    while top1_fp32 - top1 > max_drop + ROUNDING:
        choice = bench.with_costliest_in_float(choice)
        top1, logits = _judged(bench.write(choice), judge)
        layer = list(choice.layers)[-1]
        tried.append(Trial(f"{layer} in float", bench.error(choice), top1))
        say(f"{layer} stays in float: divergence from fp32 {tried[-2].error:.4f} -> {tried[-1].error:.4f}, top-1 {top1:.4f}")
    return Quantised(
        weights=choice.weights,
        scales=choice.scales,
        layers=choice.layers,
        method=choice.method,
        bias_corrected=choice.bias_corrected,
        top1_fp32=top1_fp32,
        top1_quantised=top1,
        agreement=float((logits.argmax(1) == expected.argmax(1)).mean()),
        sqnr_db=sqnr_db(logits, expected),
        tried=tuple(tried),
    )


def sqnr_db(found: Logits, expected: Logits) -> float:
    """Signal-to-noise ratio: the mean square of what was expected over that of the difference, decibels."""
    signal, noise = (float(np.square(x, dtype=np.float64).mean()) for x in (expected, found - expected))
    return 10 * math.log10(max(signal, 1e-30) / max(noise, 1e-30))


def divergence(found: Logits, expected: Logits) -> float:
    """Mean Kullback-Leibler divergence of the classes' probabilities from those expected, nats."""
    p, q = (_log_softmax(logits) for logits in (expected, found))
    return float((np.exp(p) * (p - q)).sum(1).mean())


def _log_softmax(logits: Logits) -> NDArray[np.float64]:
    shifted = logits.astype(np.float64) - logits.max(1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(1, keepdims=True))


@dataclass(frozen=True, slots=True)
class _Choice:
    """One way to write the network."""

    method: str
    bias_corrected: bool
    weights: Weights
    scales: Scales
    layers: dict[str, str]

    def __str__(self) -> str:
        return f"ranges: {self.method}" + (", biases corrected" if self.bias_corrected else "")


class _Bench:
    """Writes choices and finds how far each is from fp32 on images that no range was taken from."""

    def __init__(
        self, blocks: Mapping[str, BlockSpec], weights: Weights, precision: str, bias_images: Images, held_back: Images
    ) -> None:
        self.blocks, self.weights, self.precision = blocks, weights, precision
        self.bias_images, self.held_back = bias_images, held_back
        fp32 = emit(blocks, weights)
        self.means, self.expected = layer_means(fp32, bias_images), _logits(fp32, held_back)

    def write(self, choice: _Choice) -> bytes:
        return emit(self.blocks, choice.weights, precision=self.precision, scales=choice.scales, layers=choice.layers)

    def error(self, choice: _Choice) -> float:
        return divergence(_logits(self.write(choice), self.held_back), self.expected)

    def corrected(self, choice: _Choice) -> _Choice:
        """Return a choice with the biases of before corrected for what it rounds."""
        content = self.write(replace(choice, weights=self.weights))
        weights = corrected(self.weights, content, self.bias_images, self.means)
        return replace(choice, bias_corrected=True, weights=weights)

    def with_costliest_in_float(self, choice: _Choice) -> _Choice:
        """Return a choice with that layer in float, too, which alone takes most of the error away."""
        layers = [name for name in layer_names(self.blocks) if name not in choice.layers]
        best, least = choice, math.inf
        with progress("layers in float, one at a time", len(layers)) as advance:
            for name in layers:
                other = replace(choice, layers={**choice.layers, name: "fp32"})
                other = self.corrected(other) if choice.bias_corrected else other
                error = self.error(other)
                if error < least:
                    best, least = other, error
                advance(note=f"{list(best.layers)[-1]}: {least:.4f}")
        return best


def _calibrated(
    blocks: Mapping[str, BlockSpec], weights: Weights, images: Images, precision: str
) -> dict[str, dict[str, tuple[float, int]]]:
    grid = grid_of(precision)
    assert grid is not None
    ranges = activation_ranges(blocks, weights, [images])
    methods = [method for method in METHODS if method != "mse" or grid.activation_bits <= 8]  # with more, it is minmax
    return {method: scales_of(ranges, grid.activation_bits, method) for method in methods}


def _split(calibration: Iterable[Images]) -> tuple[Images, Images]:
    """Return the images that ranges are taken from, and those held back to judge them."""
    batches = list(calibration)
    count = sum(map(len, batches))
    if count < LEAST_IMAGES:
        raise OfaError(f"{count} calibration images, expected at least {LEAST_IMAGES}; 256 to 512 do")
    images = np.concatenate(batches)
    back = np.arange(count) % HELD_BACK == 0
    return images[~back], images[back]


def _logits(content: bytes, images: Images) -> Logits:
    session = open_session(content, get_device(DEVICE))
    return np.concatenate([session.run(images[start : start + BATCH]) for start in range(0, len(images), BATCH)])


def _judged(content: bytes, judge: Callable[[Predict], float]) -> tuple[float, Logits]:
    """Return a file's top-1 and the logits of all the judge's images."""
    session, parts = open_session(content, get_device(DEVICE)), []

    def predict(images: Images) -> Logits:
        parts.append(session.run(np.ascontiguousarray(images, dtype=np.float32)))
        return parts[-1]

    return judge(predict), np.concatenate(parts)
