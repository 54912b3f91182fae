"""CIFAR-10 end to end: one training, three latency limits, three proven files, and one of them trained alone to compare.

    python examples/cifar10.py --data cifar10 --out runs/cifar10 --epochs 12

Interrupted, the same command goes on. Prints a Markdown table; every number in it comes from the files in the run directory.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

from deploy import Verification, export_subnet, verify_model
from latency import ProfileConfig, profile_device
from ofa import Run, TrainConfig, train_supernet
from search import search_run, write_report
from search.demo import limits_between

DEVICE = "ort_cpu_1t"
SHARES = {"fast": 0.15, "middle": 0.4, "accurate": 0.8}  # where a limit lies between the fastest and the slowest network
ALONE = "fast"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="cifar10", help="cifar10, or a directory or archive with train/ and test/")
    parser.add_argument("--out", type=Path, default=Path("runs/cifar10"))
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--lr", type=float, default=0.15)
    parser.add_argument("--evals", type=int, default=100)
    parser.add_argument("--init", type=Path, help="run to start from")
    parser.add_argument("--alone-epochs", type=int, help="for the network trained alone; default: --epochs")
    parser.add_argument("--alone-lr", type=float, help="likewise; default: --lr")
    args = parser.parse_args()
    config = TrainConfig(epochs=args.epochs, lr=args.lr)
    seconds: dict[str, float] = {}

    began = time.monotonic()
    run = train_supernet("mbv3_small_image", args.data, args.out, config=config, resume=True, init=args.init)
    seconds["train"] = time.monotonic() - began
    began = time.monotonic()
    table = profile_device(run, DEVICE, config=ProfileConfig())
    seconds["profile"] = time.monotonic() - began

    verified: dict[str, Verification] = {}
    for tag, limit in limits_between(table, SHARES).items():
        began = time.monotonic()
        found = search_run(run, [limit], tag=tag, evals=args.evals)
        seconds[f"search {tag}"] = time.monotonic() - began
        began = time.monotonic()
        model = export_subnet(found.path / "best", run.path / "export" / tag)
        verified[tag] = verify_model(model.path)
        seconds[f"export and verify {tag}"] = time.monotonic() - began
        row(tag, limit, verified[tag], table(found.best.arch))

    largest = export_subnet(largest_arch(run), run.path / "largest")
    print(f"largest network of the supernet: top-1 {verify_model(largest.path, limits=[]).top1:.4f}", flush=True)
    write_report(run)
    began = time.monotonic()
    alone_config = TrainConfig(epochs=args.alone_epochs or args.epochs, lr=args.alone_lr or args.lr)
    alone = train_alone(run, args.data, alone_config)
    seconds[f"{ALONE} trained alone"] = time.monotonic() - began
    print(f"{ALONE}, the same architecture trained alone for {alone_config.epochs} epochs: top-1 {alone.top1:.4f}")
    print("; ".join(f"{stage} {value:.0f} s" for stage, value in seconds.items()))


def train_alone(run: Run, data: str, config: TrainConfig) -> Verification:
    from ofa.artefacts import read_json
    from ofa.space import ARCH_SCHEMA

    path = run.path / "search" / ALONE / "best" / "arch.json"
    arch = run.space.from_json(read_json(path, schema=ARCH_SCHEMA))
    alone = train_supernet("mbv3_small_image", data, run.path / "alone", config=config, resume=True, arch=arch)
    return verify_model(export_subnet(path, run.path / "alone" / "export", run=alone.path).path, limits=[])


def largest_arch(run: Run) -> Path:
    from ofa.artefacts import write_json

    write_json(run.path / "largest" / "arch.json", run.space.to_json(run.space.largest), sealed=True)
    return run.path / "largest" / "arch.json"


def row(tag: str, limit: str, proof: Verification, predicted_ms: float) -> None:
    found = proof.latency[DEVICE]
    print(
        f"| {tag} | {limit} | {predicted_ms:.3f} ms | {found.median_ms:.3f} ms ({found.low_ms:.3f}-{found.high_ms:.3f}) | "
        f"{proof.top1:.4f} | {'pass' if proof.ok else 'FAIL'} |",
        flush=True,
    )


if __name__ == "__main__":
    main()
