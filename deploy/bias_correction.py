"""Bias correction: rounding the weights shifts the mean of a layer's outputs, which its bias can take back.

Source: Nagel et al. 2019 (arXiv 1906.04721), section 4.2, with the mean measured on images instead of derived from BatchNorm.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from deploy.graphs import Weights
from deploy.runtimes.torch_eager import Program


def layer_means(content: bytes, images: NDArray[np.float32]) -> dict[str, Tensor]:
    """Return the mean of every channel of every tensor that a file computes in float, by the tensor's name.

    Args:
        content: a file of any precision.
        images: preprocessed (n, 3, r, r); they run as one batch.
    """
    means: dict[str, Tensor] = {}

    def note(name: str, value: Tensor) -> Tensor:
        if value.is_floating_point():
            means[name] = _mean(value)
        return value

    with torch.inference_mode():
        Program(content)(torch.from_numpy(images), visit=note)
    return means


def corrected(
    weights: Weights, quantised: bytes, images: NDArray[np.float32], means: Mapping[str, Tensor]
) -> dict[str, NDArray[np.float32]]:
    """Return the weights with biases that give every channel of every layer the mean that it has in float.

    Layers are corrected in execution order, each fed with what the corrected ones before it compute. One without a bias is left
    as it is.

    Args:
        weights: folded weights that both files were written from.
        quantised: the network in integers.
        images: preprocessed (n, 3, r, r); they run as one batch, 64 are enough.
        means: of the network in float (`layer_means`), on the same images.
    """
    layers = {f"{name.removesuffix('.bias')}.{op}": name for name in weights if name.endswith(".bias") for op in ("conv", "gemm")}
    found = {name: np.asarray(values) for name, values in weights.items()}

    def correct(name: str, value: Tensor) -> Tensor:
        if name not in layers:
            return value
        shift = means[name] - _mean(value)
        found[layers[name]] = found[layers[name]] + shift.flatten().numpy()
        return value + shift

    with torch.inference_mode():
        Program(quantised)(torch.from_numpy(images), visit=correct)
    return found


def _mean(value: Tensor) -> Tensor:
    """Mean of each channel: (1, c, 1, 1), or (1, c) of a linear layer."""
    return value.mean([axis for axis in range(value.ndim) if axis != 1], keepdim=True)
