"""BatchNorm folded into the convolution before it.

A convolution with bits of its own keeps its integers (all of a channel change their sign where BatchNorm changes it); its steps
take up BatchNorm's scale. Besides its weight, on the grid, and its bias it has

    "<layer>.steps"  (out,), what the integers of each channel count
    "<layer>.input"  (2,), the scale of what it takes, and the integer that stands for zero
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ofa.cell_blocks import FactorizedReduce, Norm, RowColumnConv
from ofa.layers import ConvBN
from ofa.quantised_layers import LEAST_STEP, RoundedConv2d, weight_steps


def fold(net: nn.Module) -> dict[str, NDArray[np.float32]]:
    """Return a network's weights by the emitter's names, every BatchNorm folded into the convolution before it.

    In float64, so that the only error left is the final rounding.
    """
    weights: dict[str, Tensor] = {}
    folded: set[nn.Module] = set()
    for name, module in net.named_modules():
        if isinstance(module, ConvBN):
            folded.add(module.conv)
            weights |= _folded(name, module.conv, module.bn)
        elif isinstance(module, FactorizedReduce):
            folded |= {module.conv1, module.conv2}
            weights |= _folded_weight(name, _one_kernel(module.conv1.weight, module.conv2.weight), module.bn)
        elif isinstance(module, RowColumnConv):
            folded.add(module.column)
            weights |= _folded_weight(f"{name}.column", module.column.weight, module.bn)
        elif isinstance(module, Norm):
            weights |= _folded_weight(name, torch.ones(module.bn.num_features, 1, 1, 1), module.bn)
        elif isinstance(module, nn.Conv2d) and module not in folded:
            if isinstance(module, RoundedConv2d):
                weights |= _integers(name, module, torch.ones(module.out_channels, dtype=torch.float64))
            else:
                weights[f"{name}.weight"] = module.weight
            if module.bias is not None:
                weights[f"{name}.bias"] = module.bias
        elif isinstance(module, nn.Linear):
            block = name.removesuffix(".linear")
            weights[f"{block}.weight"] = module.weight
            if module.bias is not None:
                weights[f"{block}.bias"] = module.bias
    return {name: tensor.detach().float().numpy().copy() for name, tensor in weights.items()}  # no views of the network's own


def _folded(name: str, conv: nn.Conv2d, norm: nn.BatchNorm2d) -> dict[str, Tensor]:
    """Tensors of a convolution that does what it and the BatchNorm after it did."""
    if not isinstance(conv, RoundedConv2d):
        return _folded_weight(name, conv.weight, norm)
    scale, bias = _scale_and_bias(norm)
    return {**_integers(name, conv, scale), f"{name}.bias": bias}


def _folded_weight(name: str, weight: Tensor, norm: nn.BatchNorm2d) -> dict[str, Tensor]:
    """Weight (out, in, k, k) and bias (out,)."""
    scale, bias = _scale_and_bias(norm)
    return {f"{name}.weight": weight.double() * scale.view(-1, 1, 1, 1), f"{name}.bias": bias}


def _scale_and_bias(norm: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    mean, var = norm.get_buffer("running_mean").double(), norm.get_buffer("running_var").double()
    scale = norm.weight.double() / (var + norm.eps).sqrt()
    return scale, norm.bias.double() - mean * scale


def _integers(name: str, conv: RoundedConv2d, scale: Tensor) -> dict[str, Tensor]:
    """Weight and grids of a convolution with bits whose outputs are multiplied with `scale`, (out,)."""
    integers, step = weight_steps(conv.weight, conv.weight_bits)
    steps = (step.double() * scale).abs().clamp(min=LEAST_STEP)
    weight = integers.double() * (steps * torch.where(scale < 0, -1, 1)).view(-1, *[1] * (integers.ndim - 1))
    taken = torch.stack([conv.input_step.double(), torch.tensor(-conv.levels.low, dtype=torch.float64)])
    return {f"{name}.weight": weight, f"{name}.steps": steps, f"{name}.input": taken}


def _one_kernel(first: Tensor, second: Tensor) -> Tensor:
    """Two 1x1 convolutions of stride 2, the second one pixel further both ways, as one of 2x2, (out, in, 2, 2)."""
    kernel = first.new_zeros(len(first) + len(second), first.shape[1], 2, 2)
    kernel[: len(first), :, 0, 0] = first[:, :, 0, 0]
    kernel[len(first) :, :, 1, 1] = second[:, :, 0, 0]
    return kernel
