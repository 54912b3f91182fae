"""Training step of the supernet against the same static networks, in the same run.

    python benchmarks/supernet_step.py [--space mbv3_small_image] [--batch-size 128] [--rounds 5]

elastic: the supernet running an architecture. static: that architecture as an ordinary network, same memory layout. nchw: the
same static network in torch's default layout, which is how the published once-for-all code trains. Medians of interleaved rounds.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ofa import ArchConfig, SearchSpace, Supernet, get_space
from ofa.blocks import build_chain, init_weights


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--space", default="mbv3_small_image")
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    space = get_space(args.space)
    drawn = space.decode(space.sample(np.random.default_rng(0), 2))
    archs = {"largest": space.largest, "random 1": drawn[0], "random 2": drawn[1], "smallest": space.smallest}
    print(f"{space.name}, batch {args.batch_size}, {torch.get_num_threads()} threads, torch {torch.__version__}")
    print("| network | elastic s | static s | elastic / static | nchw / elastic |\n|---|---|---|---|---|")
    for name, arch in archs.items():
        elastic, static, nchw = measure(space, arch, args.batch_size, args.rounds)
        print(f"| {name} | {elastic:.3f} | {static:.3f} | {elastic / static:.2f} | {nchw / elastic:.2f} |", flush=True)


def measure(space: SearchSpace, arch: ArchConfig, batch_size: int, rounds: int) -> list[float]:
    """Median seconds of a forward and backward pass and an SGD step: elastic, static, static in NCHW."""
    supernet = Supernet(space).to(memory_format=torch.channels_last)
    steps = [training_step(supernet, lambda images: supernet(images, arch))]
    for layout in (torch.channels_last, torch.contiguous_format):
        net = build_chain(space.blocks(arch), bn_eps=space.bn_eps).to(memory_format=layout)
        init_weights(net)
        steps.append(training_step(net, net))
    resolution = space.resolution(arch)
    images = torch.randn(batch_size, 3, resolution, resolution)
    inputs = [images.contiguous(memory_format=torch.channels_last)] * 2 + [images]
    labels = torch.randint(0, space.num_classes, (batch_size,))
    seconds = np.empty((rounds, len(steps)))
    for round_ in range(-1, rounds):  # the first one warms up
        for i, step in enumerate(steps):
            began = time.perf_counter()
            step(inputs[i], labels)
            seconds[round_, i] = time.perf_counter() - began
    return np.median(seconds, axis=0).tolist()


def training_step(net: torch.nn.Module, forward: Callable[[Tensor], Tensor]) -> Callable[[Tensor, Tensor], None]:
    optimizer = torch.optim.SGD(net.train().parameters(), lr=0.01, momentum=0.9, nesterov=True)

    def step(images: Tensor, labels: Tensor) -> None:
        optimizer.zero_grad(set_to_none=True)
        F.cross_entropy(forward(images), labels).backward()
        optimizer.step()

    return step


if __name__ == "__main__":
    main()
