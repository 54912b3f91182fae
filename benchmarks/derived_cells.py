"""What searches found against random networks of the same space: trained alike, measured on test images.

    python benchmarks/derived_cells.py --data cifar10.tar.xz --found darts=runs/darts --found cdarts=runs/cdarts
    python benchmarks/derived_cells.py --data cifar10.tar.xz --space enas_macro:layers=6,channels=16 --found enas=runs/macro

Every network is trained from scratch with the same settings and seeds; only the architecture differs. What was trained before
is not repeated. Parameters and multiply-adds stand beside the accuracies: more of them is the simplest way to win.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import torch

from ofa.counts import block_macs, block_params
from ofa.find_arch import find_arch
from ofa.run_dir import Run
from ofa.space import ArchConfig, SearchSpace
from ofa.spaces import get_space
from ofa.training.calibration import calibrate, top1
from ofa.training.config import TrainConfig
from ofa.training.data import calibration_batches, load_images
from ofa.training.loop import train_supernet


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="cifar10")
    parser.add_argument(
        "--found", action="append", default=[], metavar="NAME=ARCH", help="an arch.json, its folder, or a published cell"
    )
    parser.add_argument("--random", type=int, default=3, help="random networks")
    parser.add_argument("--space", default="darts:cells=8,channels=8", help="with the numbers of what is trained")
    parser.add_argument("--classes", type=int, default=10, help="of the data, for the counts")
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--lr", type=float, default=0.05)
    parser.add_argument("--drop-path", type=float, default=0.1, help="of cells")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--only", nargs="+", help="train these alone, so that several processes share the work")
    parser.add_argument("--out", type=Path, default=Path("runs/derived_cells"))
    given = parser.parse_args()
    torch.set_num_threads(1)  # beside others, threads wait for each other

    space = get_space(given.space, num_classes=given.classes)
    cells = {name: within(space, *find_arch(word)) for name, _, word in (f.partition("=") for f in given.found)}
    drawn = space.decode(space.sample(np.random.default_rng(0), given.random))
    cells |= {f"random_{i}": arch for i, arch in enumerate(drawn)}
    for seed in given.seeds:
        for name, arch in cells.items():
            result = given.out / f"{name}_{seed}.json"
            if not result.exists() and (given.only is None or name in given.only):
                config = TrainConfig(
                    epochs=given.epochs,
                    batch_size=given.batch_size,
                    lr=given.lr,
                    weight_decay=3e-4,
                    drop_path=given.drop_path,
                    seed=seed,
                )
                run = train_supernet(space.name, given.data, given.out / f"{name}_{seed}", arch=arch, config=config, resume=True)
                result.write_text(json.dumps(measure(run, space, arch)))
    print(f"{'network':12} {'params':>9} {'MACs':>7}  top-1 on test images, a seed each")
    for name, arch in cells.items():
        blocks = space.blocks(arch).values()
        files = [given.out / f"{name}_{seed}.json" for seed in given.seeds]
        found = [json.loads(path.read_text()) for path in files if path.exists()]
        words = "  ".join(f"{100 * each['top1']:.2f}" for each in found)
        print(f"{name:12} {sum(map(block_params, blocks)):9,} {sum(map(block_macs, blocks)) / 1e6:6.1f}M  {words}")


def within(space: SearchSpace, other: SearchSpace, arch: ArchConfig) -> ArchConfig:
    """Return an architecture with the same choices in a space of other numbers."""
    values = dict(zip(other.column, arch.values, strict=True))
    return space.from_values(values | {"resolution": space.dimensions[space.column["resolution"]].options[0]})


def measure(run: Run, space: SearchSpace, arch: ArchConfig) -> dict[str, object]:
    """Return a trained network's top-1 on test images; BatchNorm calibrated as for an export."""
    net = run.load_supernet().extract(arch)
    train, _ = run.load_train_and_validation()
    resolution = space.resolution(arch)
    calibrate(net, calibration_batches(train, run.preprocess, resolution))
    test = load_images(run.data.source, "test", size=run.data.image_size, classes=run.data.classes)
    return {"top1": top1(net, test, run.preprocess, resolution), "arch": space.to_json(arch)}


if __name__ == "__main__":
    main()
