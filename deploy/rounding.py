"""Rounding: how a run's network is written in another precision than fp32, and the images that decide it."""

from __future__ import annotations

import fnmatch
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from deploy.calibration import activation_ranges
from deploy.comparison import Comparison
from deploy.emit import choose_opset, layer_names, layers_of_bits
from deploy.finetune import finetune_quantised
from deploy.graphs import Scales, Weights
from deploy.precision import PrecisionError, grid_of
from deploy.quantize import Predict, quantize
from ofa.block_spec import BlockSpec
from ofa.run_dir import Run
from ofa.training.calibration import top1
from ofa.training.data import Images, calibration_batches

CALIBRATION_IMAGES = 512  # that ranges of activations are taken from
JUDGED_IMAGES = 5_000  # validation images, at most, that tell what rounding costs
MAX_DROP = 0.005
FP16_IMAGES = 64  # that tell whether activations fit


@dataclass(frozen=True)
class Format:
    """How a network is written."""

    precision: str = "fp32"
    opset: int | None = None  # None: the oldest that will do, from 17 on
    layers: Mapping[str, str] | None = None  # pattern of layers' names -> precision
    max_drop: float = MAX_DROP  # top-1 that rounding may cost before layers stay in float
    finetune_epochs: int = 0  # of training as it will be rounded

    def __post_init__(self) -> None:
        quantised = grid_of(self.precision) is not None
        if self.finetune_epochs and not quantised:
            raise PrecisionError(
                f"finetune {self.finetune_epochs}: is for integers, this export is {self.precision}; for fp32 use: ofa specialize"
            )
        if self.layers and not quantised:
            raise PrecisionError(
                f"layers {dict(self.layers)}: differ in an export in integers only, this one is {self.precision}"
            )
        choose_opset(self.opset, [self.precision, *(self.layers or {}).values()])


class TrainedRun:
    """A run whose supernet and images are loaded once for all networks that are exported from it."""

    def __init__(self, run: Run) -> None:
        self.run = run
        self.supernet = run.load_supernet()
        self.train, self.validation = run.load_train_and_validation()

    @cached_property
    def judged(self) -> Images:
        """The validation images that tell what rounding costs."""
        return self.validation.subset(np.arange(min(JUDGED_IMAGES, len(self.validation))))

    def inputs(self, resolution: int, *, num_images: int) -> list[NDArray[np.float32]]:
        """Return batches of training images as a network takes them, to calibrate activations."""
        batches = calibration_batches(self.train, self.run.preprocess, resolution, num_images=num_images, batch_size=32)
        return [np.ascontiguousarray(batch.numpy()) for batch in batches]


@dataclass(frozen=True)
class Rounded:
    """A network as it will be written."""

    weights: Weights
    scales: Scales | None = None  # None: in floating point
    layers: dict[str, str] = field(default_factory=dict)
    record: dict[str, Any] = field(default_factory=dict)  # how that was found


def round_network(
    trained: TrainedRun, blocks: Mapping[str, BlockSpec], weights: Weights, resolution: int, how: Format
) -> Rounded:
    """Choose how to round a network, and train it so where that was asked for."""
    own = layers_of_bits(blocks)
    if own and how.finetune_epochs:
        raise PrecisionError(
            f"finetune {how.finetune_epochs}: {len(own)} layers have bits of their own and were trained with them; "
            "train further with: ofa specialize"
        )
    if own and how.precision == "fp16":
        raise PrecisionError(
            f"fp16: {len(own)} layers have bits of their own, and their integers stand beside fp32 or int8; choose one"
        )
    if how.precision == "fp16":
        _require_in_fp16(blocks, weights, trained.inputs(resolution, num_images=FP16_IMAGES))
    if grid_of(how.precision) is None:
        return Rounded(weights)
    run, asked = trained.run, _matching(how.layers or {}, layer_names(blocks))
    calibration = trained.inputs(resolution, num_images=CALIBRATION_IMAGES)

    def judge(predict: Predict) -> float:
        by_torch = lambda x: torch.from_numpy(predict(np.ascontiguousarray(x.numpy())))  # noqa: E731
        return top1(by_torch, trained.judged, run.preprocess, resolution)

    quantised = partial(quantize, blocks, calibration=calibration, judge=judge, precision=how.precision, layers=asked)
    if not how.finetune_epochs:
        found = quantised(weights, max_drop=how.max_drop)
    else:
        rough = quantised(weights, max_drop=math.inf)  # what training mends need not stay in float
        tuned = finetune_quantised(
            blocks,
            rough.weights,
            rough.scales,
            rough.layers,
            trained.train,
            trained.validation,
            run.preprocess,
            epochs=how.finetune_epochs,
            precision=how.precision,
            teacher=weights,
        )
        found = quantised(tuned.weights, max_drop=how.max_drop, scales=tuned.scales, reference=weights)
    record = {
        "method": found.method,
        "bias_corrected": found.bias_corrected,
        "max_drop": how.max_drop,
        "finetune_epochs": how.finetune_epochs,
        "left_in_float": [name for name in found.layers if name not in asked],
        "calibration_images": CALIBRATION_IMAGES,
    }
    return Rounded(found.weights, found.scales, found.layers, record)


def _require_in_fp16(blocks: Mapping[str, BlockSpec], weights: Weights, batches: list[NDArray[np.float32]]) -> None:
    """Refuse a network whose activations leave fp16: a processor that computes it in fp32 would not show it."""
    for name, histogram in activation_ranges(blocks, weights, batches).items():
        largest = max(abs(histogram.low), abs(histogram.high))
        if largest > float(np.finfo(np.float16).max):
            raise PrecisionError(f"activation {name} reaches {largest:.3g}, which fp16 cannot hold; export it in fp32 or int8")


def describe(precision: str, cost: Comparison, layers: Mapping[str, str], *, split: str = "validation") -> str:
    """Say what leaving fp32 costs."""
    floats = [name for name, other in layers.items() if other == "fp32"]
    return (
        f"{precision}: top-1 {cost.top1:.4f}, fp32 {cost.top1_fp32:.4f} on {cost.images} {split} images "
        f"(lost {100 * cost.drop:.2f} points, 95% CI {100 * cost.drop_interval[0]:.2f} to {100 * cost.drop_interval[1]:.2f}), "
        f"the same class on {cost.agreement:.1%}" + (f"; in float: {', '.join(floats)}" if floats else "")
    )


def describe_bits(layers: Mapping[str, str], precision: str) -> str:
    """Say which bits layers have of their own, by layer -> precision, and what the others have."""
    counts = ", ".join(f"{number} in {bits}" for bits, number in sorted(Counter(layers.values()).items()))
    return f"{len(layers)} layers in the bits that they were trained with: {counts}; the others in {precision}"


def _matching(patterns: Mapping[str, str], names: Sequence[str]) -> dict[str, str]:
    """Return layer -> precision; where several patterns fit, the last one rules.

    Raises:
        PrecisionError: if a pattern fits no layer.
    """
    found: dict[str, str] = {}
    for pattern, precision in patterns.items():
        fitting = fnmatch.filter(names, pattern)
        if not fitting:
            raise PrecisionError(f"layer {pattern!r} fits none of this network; it has: {', '.join(names)}")
        found.update(dict.fromkeys(fitting, precision))
    return found
