"""BatchNorm folded into the convolution before it."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ofa.cell_blocks import FactorizedReduce, Norm, RowColumnConv
from ofa.layers import ConvBN


def fold(net: nn.Module) -> dict[str, NDArray[np.float32]]:
    """Return a network's weights by the emitter's names, every BatchNorm folded into the convolution before it.

    In float64, so that the only error left is the final rounding.
    """
    weights: dict[str, Tensor] = {}
    folded: set[nn.Module] = set()
    for name, module in net.named_modules():
        if isinstance(module, ConvBN):
            folded.add(module.conv)
            weights |= _folded(name, module.conv.weight, module.bn)
        elif isinstance(module, FactorizedReduce):
            folded |= {module.conv1, module.conv2}
            weights |= _folded(name, _one_kernel(module.conv1.weight, module.conv2.weight), module.bn)
        elif isinstance(module, RowColumnConv):
            folded.add(module.column)
            weights |= _folded(f"{name}.column", module.column.weight, module.bn)
        elif isinstance(module, Norm):
            weights |= _folded(name, torch.ones(module.bn.num_features, 1, 1, 1), module.bn)
        elif isinstance(module, nn.Conv2d) and module not in folded:
            weights[f"{name}.weight"] = module.weight
            if module.bias is not None:
                weights[f"{name}.bias"] = module.bias
        elif isinstance(module, nn.Linear):
            block = name.removesuffix(".linear")
            weights[f"{block}.weight"] = module.weight
            if module.bias is not None:
                weights[f"{block}.bias"] = module.bias
    return {name: tensor.detach().float().numpy().copy() for name, tensor in weights.items()}  # no views of the network's own


def _folded(name: str, weight: Tensor, norm: nn.BatchNorm2d) -> dict[str, Tensor]:
    """Weight (out, in, k, k) and bias (out,) of a convolution that does what it and the BatchNorm after it did."""
    mean, var = norm.get_buffer("running_mean").double(), norm.get_buffer("running_var").double()
    scale = norm.weight.double() / (var + norm.eps).sqrt()
    return {f"{name}.weight": weight.double() * scale.view(-1, 1, 1, 1), f"{name}.bias": norm.bias.double() - mean * scale}


def _one_kernel(first: Tensor, second: Tensor) -> Tensor:
    """Two 1x1 convolutions of stride 2, the second one pixel further both ways, as one of 2x2, (out, in, 2, 2)."""
    kernel = first.new_zeros(len(first) + len(second), first.shape[1], 2, 2)
    kernel[: len(first), :, 0, 0] = first[:, :, 0, 0]
    kernel[len(first) :, :, 1, 1] = second[:, :, 0, 0]
    return kernel
