"""Search steps of DARTS: ours against the straightforward implementation, in the same run.

    python benchmarks/darts_step.py [--threads 2] [--batch-size 16] [--rounds 5] [--orders 1 2]

A step is one of alphas (first or second order, Adam) and one of weights (gradients clipped to 5, SGD with momentum).
Straightforward (darts_plain.py): every operation of every edge by itself, NCHW, gradients of everything by `backward`, a second
network for the unrolled step. Medians of interleaved rounds, ratios are medians of each round's ratio; CPU seconds are of all
threads. Peak memory is of processes of their own, each with one implementation and three steps.
"""

from __future__ import annotations

import argparse
import importlib.util
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ofa.mixed import MixedNetwork
from search.joint.architect import first_order, momentum_buffers, second_order

Batch = tuple[Tensor, Tensor]
LR, MOMENTUM, WEIGHT_DECAY, CLIP = 0.025, 0.9, 3e-4, 5.0
NAMES = ("ours", "straightforward")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--resolution", type=int, default=32)
    parser.add_argument("--cells", type=int, default=8)
    parser.add_argument("--channels", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--orders", type=int, nargs="+", default=[1, 2], choices=[1, 2])
    parser.add_argument("--memory-of", choices=NAMES, help="run three steps of one implementation and print its peak memory")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.memory_of:
        step = make_step(args.memory_of, args)
        for _ in range(3):
            step(args.orders[0])
        print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
        return
    print(f"C={args.channels}, {args.cells} cells, batch {args.batch_size}, {args.resolution} px, ", end="")
    print(f"{args.threads} threads, torch {torch.__version__}")
    peaks = {order: [peak_mib(name, order, args) for name in NAMES] for order in args.orders}  # a process begins at its parent's
    print("| order | ours s | plain s | ratio | ours CPU s | plain CPU s | ratio | ours MiB | plain MiB | ratio |")
    print("|---|---|---|---|---|---|---|---|---|---|")
    steps = [make_step(name, args) for name in NAMES]
    for order in args.orders:
        wall, cpu = interleaved([lambda step=step, order=order: step(order) for step in steps], args.rounds)
        cells = [str(order)]
        for seconds in (wall, cpu):
            ours, plain = np.median(seconds, axis=0)
            cells += [f"{ours:.3f}", f"{plain:.3f}", f"{np.median(seconds[:, 1] / seconds[:, 0]):.2f}"]
        ours, plain = peaks[order]
        print("| " + " | ".join([*cells, f"{ours:.0f}", f"{plain:.0f}", f"{ours / plain:.2f}"]) + " |", flush=True)


def make_step(name: str, args: argparse.Namespace) -> Callable[[int], None]:
    """Return a function that takes one step of an order with an implementation."""
    torch.manual_seed(0)
    shape = (args.batch_size, 3, args.resolution, args.resolution)
    batches = [(torch.randn(shape), torch.randint(0, 10, (args.batch_size,))) for _ in range(2)]
    alphas = [(1e-3 * torch.randn(14, 8)).requires_grad_() for _ in range(2)]
    adam = torch.optim.Adam(alphas, lr=3e-4, betas=(0.5, 0.999), weight_decay=1e-3)
    plain = load_plain() if name == "straightforward" else None
    net = (plain.PlainNetwork if plain else MixedNetwork)(10, cells=args.cells, channels=args.channels)
    weights = list(net.parameters())
    sgd = torch.optim.SGD(weights, lr=LR, momentum=MOMENTUM, weight_decay=WEIGHT_DECAY)

    def loss(batch: Batch) -> Tensor:
        return F.cross_entropy(net(batch[0], *(alpha.softmax(1) for alpha in alphas)), batch[1])

    def plain_gradients(order: int) -> list[Tensor]:
        if order == 1:
            return plain.first_order_gradients(net, alphas, batches[1])
        return plain.second_order_gradients(net, alphas, *batches, sgd)

    def our_gradients(order: int) -> list[Tensor]:
        if order == 1:
            return list(first_order(lambda: loss(batches[1]), alphas, weights=weights).gradients)
        buffers = momentum_buffers(sgd, weights)
        losses = [lambda batch=batch: loss(batch) for batch in batches]
        numbers = {"eta": LR, "momentum": MOMENTUM, "weight_decay": WEIGHT_DECAY}
        return list(second_order(*losses, weights, alphas, buffers=buffers, **numbers).gradients)

    def step(order: int) -> None:
        for alpha, gradient in zip(alphas, (plain_gradients if plain else our_gradients)(order), strict=True):
            alpha.grad = gradient
        adam.step()
        sgd.zero_grad(set_to_none=True)
        loss(batches[0]).backward()
        torch.nn.utils.clip_grad_norm_(weights, CLIP)
        sgd.step()

    return step


def interleaved(actions: list[Callable[[], None]], rounds: int) -> tuple[np.ndarray, np.ndarray]:
    """Wall and CPU seconds of every action in every round, (rounds, actions); a round before the first warms up."""
    wall, cpu = np.empty((rounds, len(actions))), np.empty((rounds, len(actions)))
    for round_ in range(-1, rounds):
        for i, action in enumerate(actions):
            began, spent = time.perf_counter(), time.process_time()
            action()
            wall[round_, i], cpu[round_, i] = time.perf_counter() - began, time.process_time() - spent
    return wall, cpu


def peak_mib(name: str, order: int, args: argparse.Namespace) -> float:
    """Peak memory of a process that takes three steps, MiB."""
    numbers = {key: value for key, value in vars(args).items() if isinstance(value, int)} | {"orders": order}
    options = [text for key, value in numbers.items() for text in (f"--{key.replace('_', '-')}", str(value))]
    command = [sys.executable, __file__, *options, "--memory-of", name]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def load_plain() -> ModuleType:
    spec = importlib.util.spec_from_file_location("darts_plain", Path(__file__).with_name("darts_plain.py"))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


if __name__ == "__main__":
    main()
