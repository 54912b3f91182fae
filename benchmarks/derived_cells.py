"""Cells that searches found against random cells of the same space: trained alike, measured on test images.

    python benchmarks/derived_cells.py --data cifar10.tar.xz --found darts=runs/darts --found cdarts=runs/cdarts

Every network is trained from scratch with the same settings and seeds; what differs is the cell. A training that was done before
is not repeated. Parameters and multiply-adds stand beside the accuracies: more of them is the simplest way to win.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import torch

from ofa.cell_space import CellSpace
from ofa.counts import macs, params
from ofa.find_arch import find_arch
from ofa.run_dir import Run
from ofa.space import ArchConfig
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
    parser.add_argument("--random", type=int, default=3, help="random cells")
    parser.add_argument("--cells", type=int, default=8)
    parser.add_argument("--channels", type=int, default=8)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--only", nargs="+", help="train these alone, so that several processes share the work")
    parser.add_argument("--out", type=Path, default=Path("runs/derived_cells"))
    given = parser.parse_args()
    torch.set_num_threads(1)  # beside others, threads wait for each other

    space = get_space("darts").with_numbers(cells=given.cells, channels=given.channels)
    assert isinstance(space, CellSpace)
    cells = {
        name: find_arch(word, cells=given.cells, channels=given.channels)[1]
        for name, _, word in (f.partition("=") for f in given.found)
    }
    drawn = space.decode(space.sample(np.random.default_rng(0), given.random))
    cells |= {f"random_{i}": arch for i, arch in enumerate(drawn)}
    for seed in given.seeds:
        for name, arch in cells.items():
            result = given.out / f"{name}_{seed}.json"
            if not result.exists() and (given.only is None or name in given.only):
                config = TrainConfig(
                    epochs=given.epochs, batch_size=given.batch_size, lr=0.05, weight_decay=3e-4, drop_path=0.1, seed=seed
                )
                run = train_supernet(space.name, given.data, given.out / f"{name}_{seed}", arch=arch, config=config, resume=True)
                result.write_text(json.dumps(measure(run, space, arch)))
    print(f"{'cell':12} {'params':>9} {'MACs':>7}  top-1 on test images, a seed each")
    for name, arch in cells.items():
        row = space.encode([arch])
        files = [given.out / f"{name}_{seed}.json" for seed in given.seeds]
        found = [json.loads(path.read_text()) for path in files if path.exists()]
        words = "  ".join(f"{100 * each['top1']:.2f}" for each in found)
        print(f"{name:12} {int(params(space, row)[0]):9,} {macs(space, row)[0] / 1e6:6.1f}M  {words}")


def measure(run: Run, space: CellSpace, arch: ArchConfig) -> dict[str, object]:
    """Return a trained network's top-1 on test images; BatchNorm calibrated as for an export."""
    net = run.load_supernet().extract(arch)
    train, _ = run.load_train_and_validation()
    resolution = space.resolution(arch)
    calibrate(net, calibration_batches(train, run.preprocess, resolution))
    test = load_images(run.data.source, "test", size=run.data.image_size, classes=run.data.classes)
    return {"top1": top1(net, test, run.preprocess, resolution), "genotype": str(space.to_genotype(arch))}


if __name__ == "__main__":
    main()
