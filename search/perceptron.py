"""Small multi-layer perceptrons as arrays: several of one shape, whose spread says where they disagree."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from search.features import Inputs, Layout

if TYPE_CHECKING:
    from typing_extensions import Self  # a part of Python from 3.11 on

CHUNK = 1024


@dataclass(frozen=True)
class Perceptrons:
    """Networks of ReLU layers; inputs are standardised first."""

    mean: NDArray[np.float32]  # (features,)
    scale: NDArray[np.float32]  # (features,)
    weights: tuple[NDArray[np.float32], ...]  # of every layer, (members, inputs, outputs)
    biases: tuple[NDArray[np.float32], ...]  # (members, 1, outputs)

    @classmethod
    def restore(cls, arrays: Mapping[str, NDArray[Any]], width: int) -> Perceptrons:
        """Make networks of their arrays.

        Raises:
            KeyError, ValueError: if they do not belong together.
        """
        layers = sum(name.startswith("weight") for name in arrays)
        found = cls(
            arrays["mean"],
            arrays["scale"],
            tuple(arrays[f"weight{i}"] for i in range(layers)),
            tuple(arrays[f"bias{i}"] for i in range(layers)),
        )
        if not layers or found.mean.shape != (width,) or found.scale.shape != (width,):
            raise ValueError(f"a perceptron for {found.mean.shape} inputs, expected {width}")
        members, inputs = len(found.weights[0]), width
        for i, (weight, bias) in enumerate(zip(found.weights, found.biases, strict=True)):
            outputs = 1 if i == layers - 1 else weight.shape[-1]
            if weight.shape != (members, inputs, outputs) or bias.shape != (members, 1, outputs):
                raise ValueError(f"weight{i} is {weight.shape}, expected {(members, inputs, outputs)}")
            inputs = outputs
        if not all(np.isfinite(array).all() for array in arrays.values()):
            raise ValueError("a perceptron holds numbers that are not finite")
        return found

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Return the arrays to store."""
        named = {f"weight{i}": weight for i, weight in enumerate(self.weights)}
        named |= {f"bias{i}": bias for i, bias in enumerate(self.biases)}
        return {"mean": self.mean, "scale": self.scale, **named}

    def members(self, inputs: Inputs) -> NDArray[np.float64]:
        """Return the output of every member, (n, members)."""
        found = np.empty((len(inputs), len(self.weights[0])))
        for start in range(0, len(inputs), CHUNK):
            hidden = ((inputs[start : start + CHUNK] - self.mean) * self.scale)[None]
            for i, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
                hidden = hidden @ weight + bias  # (members, chunk, outputs)
                if i < len(self.weights) - 1:
                    np.maximum(hidden, 0, out=hidden)
            found[start : start + CHUNK] = hidden[:, :, 0].T
        return found


def standardisation(inputs: Inputs) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return mean and one over the standard deviation of every column; 0 for a column that never changes."""
    deviation = inputs.std(0, dtype=np.float64)
    scale = np.where(deviation > 1e-6, 1 / np.maximum(deviation, 1e-6), 0)
    return inputs.mean(0, dtype=np.float64).astype(np.float32), scale.astype(np.float32)


def stack(members: Sequence[Sequence[NDArray[Any]]]) -> tuple[NDArray[np.float32], ...]:
    """Put the arrays of several members together, one for each layer."""
    return tuple(np.stack(layer).astype(np.float32) for layer in zip(*members, strict=True))


@dataclass(frozen=True)
class PerceptronMean:
    """What regressors share that are the mean of perceptrons; how they are fitted is theirs."""

    networks: Perceptrons

    @staticmethod
    def supports(layout: Layout) -> str:
        return ""

    @classmethod
    def restore(cls, arrays: Mapping[str, NDArray[Any]], layout: Layout) -> Self:
        return cls(Perceptrons.restore(arrays, layout.width))

    def arrays(self) -> dict[str, NDArray[Any]]:
        return self.networks.arrays()

    def predict(self, inputs: Inputs) -> NDArray[np.float64]:
        return self.networks.members(inputs).mean(1)

    def spread(self, inputs: Inputs) -> NDArray[np.float64]:
        return self.networks.members(inputs).std(1)
