"""Does a file compute what a PyTorch network computes that rounds between its layers?

Two runtimes add up in different orders, so now and then a value that lies on the border of two levels falls to different sides.
What follows then differs by a whole step: a network of few bits and many layers may end up some percent of the largest logit away
without anything being wrong. So the network is given the file's levels, layer by layer. Then its logits must equal the file's as
closely as those of any network in float, and where it would have rounded otherwise there must have been such a border.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from deploy.calibration import run_with_activations
from deploy.device import get_device
from deploy.parity import REFERENCE_DEVICE, parity_error, random_images, relative_error
from deploy.runtimes import open_session
from ofa.layers import ConvBN
from ofa.quantised_layers import RoundedConv2d

BORDER = 1e-3  # steps that a value may lie beside one: sums in another order differ by up to 4e-6 steps of four bits, measured


@torch.no_grad()
def file_parity_error(net: nn.Module, content: bytes, resolution: int) -> float:
    """Return the largest |difference| of logits over the largest |logit|, for batches of 1, 3 and 8 random images.

    Args:
        net: in eval mode. If it rounds, it is given the file's levels; infinity if it rounds otherwise itself.
        content: the file; layers that have no bits of their own are in fp32.
    """
    layers = rounded_layers(net)
    if not layers:
        return parity_error(net, open_session(content, get_device(REFERENCE_DEVICE)), resolution)
    taken = taken_tensors(content)
    names = [taken[name] for name in layers]
    worst = 0.0
    for images, found in run_with_activations(content, random_images(resolution), [*names, "logits"]):
        levels = {name: torch.from_numpy(found[tensor]) for name, tensor in zip(layers, names, strict=True)}
        with given_levels(layers, levels) as beside:
            logits: NDArray[np.float32] = net(torch.from_numpy(images)).numpy()
        error = relative_error(found["logits"], logits)
        worst = max(worst, error if max(beside.values()) <= BORDER else np.inf)
    return worst


def rounded_layers(net: nn.Module) -> dict[str, RoundedConv2d]:
    """Return a network's convolutions with bits by the emitter's names."""
    found: dict[str, RoundedConv2d] = {}
    inside = {module.conv: path for path, module in net.named_modules() if isinstance(module, ConvBN)}
    for path, module in net.named_modules():
        if isinstance(module, RoundedConv2d):
            found[inside.get(module, path)] = module
    return found


def taken_tensors(content: bytes) -> dict[str, str]:
    """Return layer -> the tensor that its operator reads."""
    nodes = onnx.load_from_string(content).graph.node
    return {node.name.rpartition(".")[0]: node.input[0] for node in nodes if node.op_type in ("Conv", "Gemm")}


@contextmanager
def given_levels(layers: Mapping[str, RoundedConv2d], levels: Mapping[str, Tensor]) -> Iterator[dict[str, float]]:
    """Let layers take these values, whatever they read.

    Yields a dict that is filled as they run: by how many steps, at most, a value that the layer itself would have rounded
    otherwise lies beside a border of two levels.
    """
    beside: dict[str, float] = {}

    def take(name: str, x: Tensor) -> Tensor:
        layer, given = layers[name], levels[name]
        own = RoundedConv2d.taken(layer, x)
        step = layer.input_step
        otherwise = (own - given).abs() > step / 2
        off = (x - (own + given) / 2)[otherwise].abs() / step
        beside[name] = float(off.max()) if len(off) else 0.0
        return given

    try:
        for name, layer in layers.items():
            layer.taken = partial(take, name)  # type: ignore[method-assign]
        yield beside
    finally:
        for layer in layers.values():
            del layer.taken
