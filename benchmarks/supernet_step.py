"""Training step of the supernet against the same static networks, and the price of a teacher, in the same run.

    python benchmarks/supernet_step.py [--space mbv3_small_image] [--batch-size 128] [--rounds 5]

elastic: the supernet running an architecture. static: that architecture as an ordinary network, same memory layout. nchw: the
same static network in torch's default layout, which is how the published once-for-all code trains.
teacher: its share of a step in each phase of progressive shrinking: folded, as ours is asked, and in training mode without
gradient, as the published code asks it. (In sandwich steps the teacher is the step's largest network, at no cost.)
Medians of interleaved rounds; ratios are medians of each round's ratio.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ofa import ArchConfig, SearchSpace, Supernet, TrainConfig, get_space
from ofa.blocks import build_network, init_weights
from ofa.training.phases import make_phases
from ofa.training.rules import Rule
from ofa.training.teacher import fold_batchnorm


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--space", default="mbv3_small_image")
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--precision", action="store_true", help="compare fp32 with bf16 autocast instead")
    args = parser.parse_args()
    space = get_space(args.space)
    print(f"{space.name}, batch {args.batch_size}, {torch.get_num_threads()} threads, torch {torch.__version__}")
    if args.precision:
        precision(space, args.batch_size, args.rounds)
        return
    drawn = space.decode(space.sample(np.random.default_rng(0), 2))
    archs = {"largest": space.largest, "random 1": drawn[0], "random 2": drawn[1], "smallest": space.smallest}
    print("| network | elastic s | static s | elastic / static | nchw / elastic |\n|---|---|---|---|---|")
    for name, arch in archs.items():
        seconds = measure(space, arch, args.batch_size, args.rounds)
        (elastic, static, _), ratio = np.median(seconds, axis=0), np.median(seconds / seconds[:, :1], axis=0)
        print(f"| {name} | {elastic:.3f} | {static:.3f} | {1 / ratio[1]:.3f} | {ratio[2]:.2f} |", flush=True)
    print("\n| phase | subnets s | folded teacher s | its share | published way s | its share |\n|---|---|---|---|---|---|")
    for name, seconds in teachers(space, args.batch_size, args.rounds).items():
        students, folded, published = np.median(seconds, axis=0)
        print(
            f"| {name} | {students:.3f} | {folded:.3f} | {folded / (folded + students):.0%} "
            f"| {published:.3f} | {published / (published + students):.0%} |",
            flush=True,
        )


def measure(space: SearchSpace, arch: ArchConfig, batch_size: int, rounds: int) -> np.ndarray:
    """Seconds of a forward and backward pass and an SGD step: elastic, static, static in NCHW; (rounds, 3)."""
    supernet = Supernet(space).to(memory_format=torch.channels_last)
    steps = [training_step(supernet, lambda images: supernet(images, arch))]
    for layout in (torch.channels_last, torch.contiguous_format):
        net = build_network(space.blocks(arch), bn_eps=space.bn_eps).to(memory_format=layout)
        init_weights(net)
        steps.append(training_step(net, net))
    images, labels = batch(space, arch, batch_size)
    last = images.contiguous(memory_format=torch.channels_last)
    return interleaved([lambda i=i, x=x: steps[i](x, labels) for i, x in enumerate((last, last, images))], rounds)


def teachers(space: SearchSpace, batch_size: int, rounds: int) -> dict[str, np.ndarray]:
    """Seconds of the subnets of a step, a folded teacher and one in training mode, for every phase; (rounds, 3)."""
    supernet = Supernet(space).to(memory_format=torch.channels_last)
    published = supernet.extract(space.largest).to(memory_format=torch.channels_last).train()
    folded = fold_batchnorm(supernet.extract(space.largest)).eval().to(memory_format=torch.channels_last)
    images, labels = batch(space, space.largest, batch_size)
    rng = np.random.default_rng(0)

    def students(rule: Rule) -> None:
        supernet.zero_grad(set_to_none=True)
        for lesson in rule.lessons(rng):
            inputs = resized(images, space.resolution(lesson.arch))
            F.cross_entropy(supernet(inputs, lesson.arch), labels).backward()

    def ask(teacher: torch.nn.Module) -> None:
        with torch.no_grad():
            teacher(resized(images, space.resolution(space.largest)))

    phases = make_phases(space, TrainConfig(recipe="progressive", skip_teacher=True), total_steps=1_000, taught=False)
    actions = {phase.name: [lambda p=phase: students(p.rule), lambda: ask(folded), lambda: ask(published)] for phase in phases}
    return {name: interleaved(three, rounds) for name, three in actions.items()}


def resized(images: Tensor, resolution: int) -> Tensor:
    return F.interpolate(images, (resolution, resolution)).contiguous(memory_format=torch.channels_last)


def precision(space: SearchSpace, batch_size: int, rounds: int) -> None:
    """Step of the largest network in fp32 and under bf16 autocast."""
    supernet = Supernet(space).to(memory_format=torch.channels_last)
    images, labels = batch(space, space.largest, batch_size)
    images = images.contiguous(memory_format=torch.channels_last)

    def reduced(x: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return supernet(x, space.largest).float()

    steps = [training_step(supernet, lambda x: supernet(x, space.largest)), training_step(supernet, reduced)]
    seconds = interleaved([lambda step=step: step(images, labels) for step in steps], rounds)
    print("| fp32 s | bf16 s | bf16 / fp32 |\n|---|---|---|")
    fp32, bf16 = np.median(seconds, axis=0)
    print(f"| {fp32:.3f} | {bf16:.3f} | {bf16 / fp32:.2f} |")


def batch(space: SearchSpace, arch: ArchConfig, batch_size: int) -> tuple[Tensor, Tensor]:
    resolution = space.resolution(arch)
    return torch.randn(batch_size, 3, resolution, resolution), torch.randint(0, space.num_classes, (batch_size,))


def interleaved(actions: list[Callable[[], None]], rounds: int) -> np.ndarray:
    """Seconds of every action in every round, (rounds, actions); a round before the first warms up."""
    seconds = np.empty((rounds, len(actions)))
    for round_ in range(-1, rounds):
        for i, action in enumerate(actions):
            began = time.perf_counter()
            action()
            seconds[round_, i] = time.perf_counter() - began
    return seconds


def training_step(net: torch.nn.Module, forward: Callable[[Tensor], Tensor]) -> Callable[[Tensor, Tensor], None]:
    optimizer = torch.optim.SGD(net.train().parameters(), lr=0.01, momentum=0.9, nesterov=True, fused=True)

    def step(images: Tensor, labels: Tensor) -> None:
        optimizer.zero_grad(set_to_none=True)
        F.cross_entropy(forward(images), labels).backward()
        optimizer.step()

    return step


if __name__ == "__main__":
    main()
