"""What is done to every subnet that is looked at: extraction, BatchNorm re-calibration, accuracy; against the published way.

    python benchmarks/subnet_tools.py [--space ofa_mbv3_w1_0] [--rounds 5]
    python benchmarks/subnet_tools.py --accuracy [--space mbv3_small_image]

Published way (MIT's once-for-all): copy the whole supernet, replace the forward of every BatchNorm by a function that computes
mean and variance by hand, run the batches, write the averages back. Ours: extract the subnet, run torch's own BatchNorm.
Both give the same statistics, which is checked. Medians of interleaved rounds.

--accuracy: calibrating and evaluating subnets together, common blocks computed once, against one after the other, for random
subnets and for a population as evolution breeds it.
"""

from __future__ import annotations

import argparse
import copy
import time
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ofa import ArchConfig, SearchSpace, Supernet, get_space
from ofa.run_dir import max_resolution
from ofa.training.calibration import calibrate, top1
from ofa.training.data import Images, Preprocessing, calibration_batches
from ofa.training.evaluation import evaluate


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--space", default="ofa_mbv3_w1_0")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batches", type=int, default=2)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--accuracy", action="store_true")
    args = parser.parse_args()
    space = get_space(args.space)
    if args.accuracy:
        accuracy(space, args.rounds)
        return
    net = Supernet(space).eval()
    (drawn,) = space.decode(space.sample(np.random.default_rng(0), 1))
    print(f"{space.name}, {torch.get_num_threads()} threads, torch {torch.__version__}")
    print("| network | extraction ms | recalibration: by hand s | ours s | ratio | ours, channels_last s | ratio |")
    print("|---|---|---|---|---|---|---|")
    for name, arch in {"largest": space.largest, "random": drawn, "smallest": space.smallest}.items():
        extraction = np.median([seconds(lambda arch=arch: net.extract(arch)) for _ in range(20)]) * 1e3
        resolution = space.resolution(arch)
        batches = [torch.randn(args.batch_size, 3, resolution, resolution) for _ in range(args.batches)]
        last = [batch.contiguous(memory_format=torch.channels_last) for batch in batches]
        ways = [
            lambda arch=arch, batches=batches: by_hand(net, arch, batches),
            lambda arch=arch, batches=batches: ours(net, arch, batches, torch.contiguous_format),
            lambda arch=arch, last=last: ours(net, arch, last, torch.channels_last),
        ]
        compare(ways[0](), ways[1]())
        times = np.median([[seconds(way) for way in ways] for _ in range(args.rounds)], axis=0)
        print(
            f"| {name} | {extraction:.1f} | {times[0]:.2f} | {times[1]:.2f} | {times[0] / times[1]:.2f} | {times[2]:.2f} "
            f"| {times[0] / times[2]:.2f} |",
            flush=True,
        )


def accuracy(space: SearchSpace, rounds: int) -> None:
    size = max_resolution(space)
    pixels = torch.randint(0, 256, (1_500, 3, size, size), dtype=torch.uint8)
    data = Images(pixels, torch.randint(0, 10, (len(pixels),)), tuple("0123456789"))
    preprocess = Preprocessing.of(data, flip=False)
    net, rng = Supernet(space).eval(), np.random.default_rng(0)
    parents = np.repeat(space.sample(rng, 2), 8, axis=0)
    print("| 16 subnets | one after the other s | together s | ratio |\n|---|---|---|---|")
    for name, population in {"random": space.sample(rng, 16), "evolved": space.mutate(parents, rng, 0.1)}.items():
        archs = space.decode(population)
        ways = [
            lambda archs=archs: one_by_one(net, archs, data, preprocess),
            lambda archs=archs: evaluate(net, archs, data, data, preprocess, num_calibration=500),
        ]
        assert ways[0]() == ways[1]()
        one, together = np.median([[seconds(way) for way in ways] for _ in range(rounds)], axis=0)
        print(f"| {name} | {one:.2f} | {together:.2f} | {one / together:.2f} |", flush=True)


def one_by_one(net: Supernet, archs: list[ArchConfig], data: Images, preprocess: Preprocessing) -> list[float]:
    found = []
    for arch in archs:
        resolution = net.space.resolution(arch)
        subnet = net.extract(arch).to(memory_format=torch.channels_last)
        calibrate(subnet, calibration_batches(data, preprocess, resolution, num_images=500))
        found.append(top1(subnet, data, preprocess, resolution))
    return found


def seconds(action: Callable[[], object]) -> float:
    began = time.perf_counter()
    action()
    return time.perf_counter() - began


def ours(net: Supernet, arch: ArchConfig, batches: list[Tensor], layout: torch.memory_format) -> nn.Module:
    subnet = net.extract(arch).to(memory_format=layout)
    calibrate(subnet, batches)
    return subnet


@torch.no_grad()
def by_hand(net: Supernet, arch: ArchConfig, batches: list[Tensor]) -> nn.Module:
    copied = copy.deepcopy(net)
    subnet = copied.extract(arch)
    norms = [module for module in subnet.modules() if isinstance(module, nn.BatchNorm2d)]
    sums = {norm: [torch.zeros_like(norm.running_mean), torch.zeros_like(norm.running_var), 0] for norm in norms}
    for norm in norms:
        norm.forward = counted(norm, sums[norm])
    for batch in batches:
        subnet(batch)
    for norm, (mean, var, count) in sums.items():
        norm.running_mean.copy_(mean / count)
        norm.running_var.copy_(var / count)
        del norm.forward
    return subnet


def counted(norm: nn.BatchNorm2d, sums: list) -> Callable[[Tensor], Tensor]:
    def forward(x: Tensor) -> Tensor:
        mean = x.mean(0, keepdim=True).mean(2, keepdim=True).mean(3, keepdim=True)
        var = (x - mean) * (x - mean)
        var = var.mean(0, keepdim=True).mean(2, keepdim=True).mean(3, keepdim=True)
        mean, var = mean.flatten(), var.flatten()
        sums[0] += mean * len(x)
        sums[1] += var * len(x)
        sums[2] += len(x)
        return F.batch_norm(x, mean, var, norm.weight, norm.bias, False, 0.0, norm.eps)

    return forward


def compare(a: nn.Module, b: nn.Module) -> None:
    for (name, x), y in zip(a.named_buffers(), b.buffers(), strict=True):
        if "num_batches" not in name:
            torch.testing.assert_close(x, y, rtol=1e-3, atol=1e-4, msg=name)


if __name__ == "__main__":
    main()
