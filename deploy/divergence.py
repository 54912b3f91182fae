"""How far a network in integers is from itself in fp32, and which of its layers are to blame.

All figures are of emitted files, as ONNX Runtime runs them on the processor.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from deploy.bias_correction import corrected, layer_means
from deploy.device import get_device
from deploy.emit import emit, layer_names
from deploy.graphs import Scales, Weights
from deploy.parity import REFERENCE_DEVICE
from deploy.runtimes import open_session
from ofa.block_spec import BlockSpec
from ofa.progress import progress

Images = NDArray[np.float32]  # preprocessed, (n, 3, r, r)
Logits = NDArray[np.float32]  # (n, classes)
RANK_IMAGES, SHORTLIST = 64, 3  # that layers are ranked by; how many of them are then looked at more closely
BATCH = 16


@dataclass(frozen=True, slots=True)
class Choice:
    """One way to write the network."""

    method: str
    bias_corrected: bool
    weights: Weights
    scales: Scales
    layers: dict[str, str]

    def __str__(self) -> str:
        return f"ranges: {self.method}" + (", biases corrected" if self.bias_corrected else "")

    @property
    def last(self) -> str:
        """What was done last."""
        return f"{list(self.layers)[-1]} in float"


class Probe:
    """Writes choices and finds how far each is from fp32 on images that no range was taken from."""

    def __init__(
        self, blocks: Mapping[str, BlockSpec], weights: Weights, precision: str, bias_images: Images, held_back: Images
    ) -> None:
        self.blocks, self.weights, self.precision = blocks, weights, precision
        self.bias_images, self.held_back = bias_images, held_back
        fp32 = emit(blocks, weights)
        self.means, self.expected = layer_means(fp32, bias_images), logits_of(fp32, held_back)
        self.share = {name: weights[f"{name}.weight"].size / sum(map(np.size, weights.values())) for name in layer_names(blocks)}

    def write(self, choice: Choice) -> bytes:
        return emit(self.blocks, choice.weights, precision=self.precision, scales=choice.scales, layers=choice.layers)

    def error(self, choice: Choice, most: int | None = None) -> float:
        """Return the divergence from fp32, on so many images."""
        return divergence(logits_of(self.write(choice), self.held_back[:most]), self.expected[:most])

    def corrected(self, choice: Choice) -> Choice:
        """Return a choice with the biases of before corrected for what it rounds."""
        content = self.write(replace(choice, weights=self.weights))
        weights = corrected(self.weights, content, self.bias_images, self.means)
        return replace(choice, bias_corrected=True, weights=weights)

    def with_costliest_in_float(self, choice: Choice, layers: Sequence[str]) -> Choice:
        """Return a choice with one more of these layers in float: that which, alone, takes most of the error away."""
        others = [
            replace(choice, weights=self.weights, layers={**choice.layers, name: "fp32"})
            for name in layers
            if name not in choice.layers
        ]
        errors = []
        with progress("layers in float, one at a time", len(others)) as advance:
            for other in others:
                errors.append(self.error(other, RANK_IMAGES))
                advance(note=f"{other.last}: {errors[-1]:.4f}")
        nearest = [others[i] for i in np.argsort(errors, kind="stable")[:SHORTLIST]]
        return min(map(self.corrected, nearest) if choice.bias_corrected else nearest, key=self.error)


def sqnr_db(found: Logits, expected: Logits) -> float:
    """Signal-to-noise ratio: the mean square of what was expected over that of the difference, decibels."""
    signal, noise = (float(np.square(x, dtype=np.float64).mean()) for x in (expected, found - expected))
    return 10 * math.log10(max(signal, 1e-30) / max(noise, 1e-30))


def divergence(found: Logits, expected: Logits) -> float:
    """Mean Kullback-Leibler divergence of the classes' probabilities from those expected, nats."""
    p, q = (_log_probabilities(logits) for logits in (expected, found))
    return float((np.exp(p) * (p - q)).sum(1).mean())


def _log_probabilities(logits: Logits) -> NDArray[np.float64]:
    shifted = logits.astype(np.float64) - logits.max(1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(1, keepdims=True))


def logits_of(content: bytes, images: Images) -> Logits:
    """Run a file on images."""
    session = open_session(content, get_device(REFERENCE_DEVICE))
    return np.concatenate([session.run(images[start : start + BATCH]) for start in range(0, len(images), BATCH)])
