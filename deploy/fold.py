"""BatchNorm folded into the convolution before it."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from ofa.blocks import ConvBN


def fold(net: nn.Module) -> dict[str, NDArray[np.float32]]:
    """Return a network's weights by the emitter's names, every BatchNorm folded into the convolution before it.

    In float64, so that the only error left is the final rounding.
    """
    weights: dict[str, torch.Tensor] = {}
    folded = {module.conv for module in net.modules() if isinstance(module, ConvBN)}
    for name, module in net.named_modules():
        if isinstance(module, ConvBN):
            norm = module.bn
            mean, var = norm.get_buffer("running_mean").double(), norm.get_buffer("running_var").double()
            scale = norm.weight.double() / (var + norm.eps).sqrt()
            weights[f"{name}.weight"] = module.conv.weight.double() * scale.view(-1, 1, 1, 1)
            weights[f"{name}.bias"] = norm.bias.double() - mean * scale
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
