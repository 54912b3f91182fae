"""Static quantisation that keeps its accuracy: ranges by what they cost, biases corrected, costly layers left in float.

Every choice is made by how far the classes' probabilities move from those of fp32, on calibration images that the ranges were not
taken from; top-1 on validation images only says when to stop. Every figure is one of the emitted file, as ONNX Runtime runs it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace

import numpy as np

from deploy.calibration import METHODS, activation_ranges, scales_of
from deploy.device import get_device
from deploy.divergence import Choice, Images, Logits, Probe, sqnr_db
from deploy.emit import emit, layer_names
from deploy.graphs import Scales, Weights
from deploy.parity import REFERENCE_DEVICE
from deploy.precision import PrecisionError, grid_of
from deploy.runtimes import open_session
from ofa.block_spec import BlockSpec
from ofa.errors import OfaError
from ofa.progress import say

Predict = Callable[[Images], Logits]
LEAST_IMAGES = 8
HELD_BACK = 2  # one calibration image in so many; fewer do not tell methods apart (docs/benchmarks.md)
BIAS_IMAGES = 64  # with more, corrections do not get better (docs/benchmarks.md)
OUTLIER, SMALL = 0.2, 0.01  # a layer causes so much of the error, with so few of the weights, that it stays in float anyway
NEGLIGIBLE = 1e-3  # nats: some 99 in 100 images stay in their class
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
        max_drop: top-1 that may be lost; while more is, one layer after the other is left in float. Small layers that cause much
            of the error are in any case, unless this is math.inf: then none is.
        layers: layer -> its own precision; these are not touched.
        scales: grids that the weights were fine-tuned for; biases and small layers are left as they are then. None = calibrate.
        reference: weights of the fp32 network whose top-1 counts; None = `weights`.

    Raises:
        OfaError: if there are too few images, the precision is none in integers, or no choice of layers loses so little.
    """
    if grid_of(precision) is None:
        raise PrecisionError(f"precision {precision} is none in integers, expected int8, a16w8, ...; it needs no calibration")
    known, held_back = _split(calibration)
    probe = Probe(blocks, weights, precision, known[:BIAS_IMAGES], held_back)
    if scales is not None:  # weights were trained for them
        choices = [Choice("given", False, weights, scales, dict(layers or {}))]
    else:
        grids = _calibrated(blocks, weights, known, precision)
        choices = [Choice(method, False, weights, each, dict(layers or {})) for method, each in grids.items()]
        choices += [probe.corrected(choice) for choice in choices]
    tried = [Trial(str(choice), probe.error(choice)) for choice in choices]
    choice = choices[min(range(len(tried)), key=lambda i: tried[i].error)]
    if scales is None and math.isfinite(max_drop):
        choice = _without_outliers(probe, choice, tried)

    top1_fp32, expected = _judged(emit(blocks, weights if reference is None else reference), judge)
    top1, logits = _judged(probe.write(choice), judge)
    tried.append(Trial("judged", probe.error(choice), top1))
    if top1_fp32 - top1 > max_drop + ROUNDING:
        in_float = replace(choice, weights=weights, layers={**dict.fromkeys(layer_names(blocks), "fp32"), **choice.layers})
        least = top1_fp32 - _judged(probe.write(in_float), judge)[0]
        if least > max_drop + ROUNDING:
            raise OfaError(
                f"{precision} loses {100 * least:.2f} points of top-1 even with its layers in float, expected at most "
                f"{100 * max_drop:.2f}; allow a larger drop, fine-tune, or choose a16w8 or fp32"
            )
    while top1_fp32 - top1 > max_drop + ROUNDING:
        choice = probe.with_costliest_in_float(choice, layer_names(blocks))
        top1, logits = _judged(probe.write(choice), judge)
        tried.append(Trial(choice.last, probe.error(choice), top1))
        say(f"{choice.last}: divergence from fp32 {tried[-2].error:.4f} -> {tried[-1].error:.4f}, top-1 {top1:.4f}")
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


def _without_outliers(probe: Probe, choice: Choice, tried: list[Trial]) -> Choice:
    """Leave in float the small layers that cause much of the divergence each: it costs next to no bytes."""
    small = [name for name, share in probe.share.items() if share <= SMALL]
    before = probe.error(choice)
    while before > NEGLIGIBLE and set(small) - set(choice.layers):
        other = probe.with_costliest_in_float(choice, small)
        after = probe.error(other)
        if after > (1 - OUTLIER) * before:
            break
        say(f"{other.last}: divergence from fp32 {before:.4f} -> {after:.4f}")
        tried.append(Trial(other.last, after))
        choice, before = other, after
    return choice


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


def _judged(content: bytes, judge: Callable[[Predict], float]) -> tuple[float, Logits]:
    """Return a file's top-1 and the logits of all the judge's images."""
    session, parts = open_session(content, get_device(REFERENCE_DEVICE)), []

    def predict(images: Images) -> Logits:
        parts.append(session.run(np.ascontiguousarray(images, dtype=np.float32)))
        return parts[-1]

    return judge(predict), np.concatenate(parts)
