"""Bias correction: rounding the weights shifts the mean of a layer's outputs, which its bias can take back.

Source: Nagel et al. 2019 (arXiv 1906.04721), section 4.2, with the mean measured on images instead of derived from BatchNorm.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from deploy.graphs import Weights
from deploy.runtimes.torch_eager import Program


def corrected(weights: Weights, fp32: bytes, quantised: bytes, images: NDArray[np.float32]) -> dict[str, NDArray[np.float32]]:
    """Return the weights with biases that give every channel of every layer its mean of before.

    Layers are corrected in execution order, each fed with what the corrected ones before it compute. One without a bias is left
    as it is.

    Args:
        weights: folded weights that both files were written from.
        fp32: the network in floating point.
        quantised: the network in integers, of the same tensors by the same names.
        images: preprocessed (n, 3, r, r); they run as one batch, 32 are enough.
    """
    layers = {f"{name.removesuffix('.bias')}.{op}": name for name in weights if name.endswith(".bias") for op in ("conv", "gemm")}
    means: dict[str, Tensor] = {}
    found = {name: np.asarray(values) for name, values in weights.items()}

    def note(name: str, value: Tensor) -> Tensor:
        if name in layers:
            means[name] = _mean(value)
        return value

    def correct(name: str, value: Tensor) -> Tensor:
        if name not in layers:
            return value
        shift = means[name] - _mean(value)
        found[layers[name]] = found[layers[name]] + shift.flatten().numpy()
        return value + shift

    with torch.inference_mode():
        Program(fp32)(torch.from_numpy(images), visit=note)
        Program(quantised)(torch.from_numpy(images), visit=correct)
    return found


def _mean(value: Tensor) -> Tensor:
    """Mean of each channel: (1, c, 1, 1), or (1, c) of a linear layer."""
    return value.mean([axis for axis in range(value.ndim) if axis != 1], keepdim=True)
