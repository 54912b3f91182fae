"""Training step of a supernet by single paths against the same step of the static network, in the same run; and its memory.

    python benchmarks/spos_step.py [--space shufflenet:resolution=32,stem=cifar,channels=8,blocks=2] [--batch-size 128]

Each round draws a path, as `ofa nas spos` does, and takes a step of it twice: of the supernet, drawing included, and of the
network extracted from it, both with the optimiser, clipping and memory layout of training. Medians over the rounds; the ratio is
the median of each round's. Memory of a step: weights with momentum, gradients, and what the forward pass keeps for the backward.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ofa import ArchConfig, Supernet, TrainConfig, get_space
from ofa.training.optimizer import make_optimizer
from ofa.training.rules import SinglePath

MIB = 2**20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--space", default="shufflenet:resolution=32,stem=cifar,channels=8,blocks=2")
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--least-mmacs", type=float, default=0.0, help="draw evenly over bins of multiply-adds from here")
    parser.add_argument("--most-mmacs", type=float, default=0.0, help="to here")
    args = parser.parse_args()
    space = get_space(args.space, num_classes=10)
    config = TrainConfig(recipe="single_path", least_mmacs=args.least_mmacs, most_mmacs=args.most_mmacs)
    rule = SinglePath(space, config)
    torch.manual_seed(0)
    supernet = Supernet(space).to(memory_format=torch.channels_last).train()
    optimizer = make_optimizer(supernet, config)
    resolution = space.resolution(space.largest)
    images = torch.randn(args.batch_size, 3, resolution, resolution).contiguous(memory_format=torch.channels_last)
    labels = torch.randint(0, space.num_classes, (args.batch_size,))
    print(f"{space.name}, batch {args.batch_size}, {torch.get_num_threads()} threads, torch {torch.__version__}")
    seconds = np.empty((args.rounds, 2))
    for round_ in range(-2, args.rounds):  # two to warm up
        (arch,) = (lesson.arch for lesson in rule.lessons(np.random.default_rng((0, abs(round_)))))
        alone = supernet.extract(arch).to(memory_format=torch.channels_last).train()
        own = make_optimizer(alone, config)

        def one_path(round_: int = round_) -> None:
            (lesson,) = rule.lessons(np.random.default_rng((0, abs(round_))))
            step(supernet, optimizer, config, lambda: supernet(images, lesson.arch), labels)

        def static(alone: nn.Module = alone, own: torch.optim.Optimizer = own) -> None:
            step(alone, own, config, lambda: alone(images), labels)

        actions: list[Callable[[], None]] = [one_path, static]
        for column in (0, 1) if round_ % 2 else (1, 0):  # whoever comes first finds cooler caches
            began = time.perf_counter()
            actions[column]()
            seconds[round_, column] = time.perf_counter() - began
    path, network = np.median(seconds, axis=0)
    ratio = np.median(seconds[:, 0] / seconds[:, 1])
    print("| supernet, one path, ms | static network, ms | ratio |\n|---|---|---|")
    print(f"| {path * 1e3:.1f} | {network * 1e3:.1f} | {ratio:.3f} |\n")
    show_memory(supernet, rule, config, images, labels)


def step(
    net: nn.Module, optimizer: torch.optim.Optimizer, config: TrainConfig, forward: Callable[[], Tensor], labels: Tensor
) -> None:
    """What ofa.training.trainer does between a batch and the next."""
    optimizer.zero_grad(set_to_none=True)
    F.cross_entropy(forward(), labels, label_smoothing=config.label_smoothing).backward()
    nn.utils.clip_grad_norm_(net.parameters(), config.clip_norm)
    optimizer.step()


def show_memory(supernet: Supernet, rule: SinglePath, config: TrainConfig, images: Tensor, labels: Tensor) -> None:
    """Print what a step of the first drawn path holds, in the supernet and in the static network."""
    arch: ArchConfig = rule.lessons(np.random.default_rng((0, 0)))[0].arch
    alone = supernet.extract(arch).to(memory_format=torch.channels_last).train()
    print("| | weights and momentum, MiB | gradients, MiB | kept for the backward pass, MiB |\n|---|---|---|---|")
    rows: list[tuple[str, nn.Module, Callable[[], Tensor]]] = [
        ("supernet, one path", supernet, lambda: supernet(images, arch)),
        ("static network", alone, lambda: alone(images)),
    ]
    for name, net, forward in rows:
        net.zero_grad(set_to_none=True)
        owned = {p.untyped_storage().data_ptr() for p in (*net.parameters(), *net.buffers(), images)}
        kept: dict[int, int] = {}

        def keep(tensor: Tensor, owned: set[int] = owned, kept: dict[int, int] = kept) -> Tensor:
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in owned:
                kept[storage.data_ptr()] = storage.nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            loss = F.cross_entropy(forward(), labels, label_smoothing=config.label_smoothing)
        activations = sum(kept.values())
        loss.backward()
        weights = 2 * sum(p.nbytes for p in net.parameters())
        gradients = sum(p.grad.nbytes for p in net.parameters() if p.grad is not None)
        print(f"| {name} | {weights / MIB:.1f} | {gradients / MIB:.1f} | {activations / MIB:.1f} |")


if __name__ == "__main__":
    main()
