"""How far emitted files are from PyTorch, for random architectures of every space.

    OMP_NUM_THREADS=1 python benchmarks/export_parity.py [--archs 100] [--spaces NAME ...] [--largest-inputs]

For each architecture a subnet of a supernet with random weights, BatchNorm statistics from random images (without, activations
grow from layer to layer), the largest |difference| of logits over the largest |logit|, for batches of 1, 3 and 8 random images.

Random deep networks are chaotic: in each block a rounding error grows by a fifth to a half. Where a block has a shortcut, its
branch therefore counts only --residual of what it would: training starts it at nothing (ofa.blocks.init_weights). What float32 is
worth stands beside: how far PyTorch and the file are from PyTorch in float64 (batch 3). A file that computes something else would
be far from float64 where PyTorch is near.

Networks above 200 M multiply-adds run at the smallest input of their space, unless --largest-inputs asks for what was drawn: what
is emitted hardly differs.
"""

from __future__ import annotations

import argparse
import copy
import time

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from torch import nn

from deploy.device import get_device
from deploy.emit import emit
from deploy.fold import fold
from deploy.parity import random_images, relative_error
from deploy.runtimes import open_session
from ofa import ArchConfig, SearchSpace, Supernet, get_space
from ofa.blocks import Bottleneck, MBConv
from ofa.counts import macs
from ofa.resnet import ResNetSpace
from ofa.spaces import list_elastic_spaces
from ofa.training.calibration import calibrate

LARGE_MACS = 200e6
DEVICE = get_device("ort_cpu_1t")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--archs", type=int, default=100)
    parser.add_argument("--spaces", nargs="+", default=list_elastic_spaces())
    parser.add_argument("--residual", type=float, default=0.2, help="factor of every branch beside a shortcut; 1 is chaotic")
    parser.add_argument("--largest-inputs", action="store_true", help="never at a smaller input than was drawn")
    args = parser.parse_args()
    torch.set_num_threads(1)
    print("| | | | file - PyTorch | | | | PyTorch - float64 | file - float64 | |")
    print(
        "| space | architectures | px | median | largest | bar | above | largest | largest | s |\n" + "|---" * 10 + "|",
        flush=True,
    )
    for name in args.spaces:
        began = time.monotonic()
        space = get_space(name)
        archs = draw(space, args.archs, as_drawn=args.largest_inputs)
        file, own, exact = parity(space, archs, args.residual).T
        bar = 1e-4 if isinstance(space, ResNetSpace) else 1e-5
        sides = sorted({space.resolution(arch) for arch in archs})
        print(
            f"| {name} | {len(archs)} | {sides[0]}-{sides[-1]} | {np.median(file):.1e} | {file.max():.1e} | {bar:.0e} "
            f"| {(file > bar).sum()} | {own.max():.1e} | {exact.max():.1e} | {time.monotonic() - began:.0f} |",
            flush=True,
        )


def draw(space: SearchSpace, count: int, *, as_drawn: bool) -> list[ArchConfig]:
    """Return the largest, the smallest and random architectures."""
    population = np.concatenate([space.encode([space.largest, space.smallest]), space.sample(np.random.default_rng(0), count)])
    population = population[:count]
    if not as_drawn:
        population[macs(space, population) > LARGE_MACS, space.column["resolution"]] = 0
    return space.decode(population)


def parity(space: SearchSpace, archs: list[ArchConfig], residual: float) -> NDArray[np.float64]:
    """Return distances (architectures, 3): the file's from PyTorch, PyTorch's and the file's from PyTorch in float64."""
    torch.manual_seed(0)
    supernet = Supernet(space)
    with torch.no_grad():
        for module in supernet.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.weight.uniform_(0.5, 1.5)
                module.bias.normal_(0, 0.2)
    distances = []
    for arch in archs:
        net, side = supernet.extract(arch), space.resolution(arch)
        for block in net.children():
            if isinstance(block, MBConv | Bottleneck) and block.shortcut is not None:
                last = block.project if isinstance(block, MBConv) else block.expand
                last.bn.weight.data *= residual
        calibrate(net, [torch.randn(16, 3, side, side)])
        content = emit(space.blocks(arch), fold(net))
        onnx.checker.check_model(onnx.load_from_string(content), full_check=True)
        distances.append(distances_of(net, content, side))
    return np.array(distances)


@torch.no_grad()
def distances_of(net: nn.Module, content: bytes, side: int) -> tuple[float, float, float]:
    batches, session = random_images(side), open_session(content, DEVICE)
    found = [session.run(images) for images in batches]
    expected = [net(torch.from_numpy(images)).numpy() for images in batches]
    exact = copy.deepcopy(net).double()(torch.from_numpy(batches[1]).double()).numpy()
    file = max(relative_error(a, b) for a, b in zip(found, expected, strict=True))
    return file, relative_error(expected[1], exact), relative_error(found[1], exact)


if __name__ == "__main__":
    main()
