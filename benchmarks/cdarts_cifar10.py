"""A search by two networks that teach each other (Cyclic-DARTS), at a size that one thread of a processor affords.

    OMP_NUM_THREADS=1 python benchmarks/cdarts_cifar10.py --data cifar10 --out runs/cdarts_cifar10

Interrupted, the same command goes on. It ends in OUT/arch.json and genotype.txt; what the cells are worth is seen by training
them: ofa train --arch OUT/arch.json. Alphas learn ten times as fast as published, in a hundredth of the steps.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import torch

from ofa.cell_space import CellSpace
from ofa.counts import macs, params
from ofa.genotype import Genotype, parse_genotype
from ofa.spaces import get_space
from search.joint.cdarts import search_cyclic
from search.joint.cyclic_config import VARIANTS, variant
from search.joint.record import read_search

SIZES = {"cells": 5, "evaluation_cells": 8, "channels": 8, "resolution": 32, "max_images": 5_000, "sample_ratio": 1.0}
SCHEDULE = {"batch_size": 64, "pretrain_epochs": 3, "cycles": 3, "warmup_epochs": 1, "cycle_epochs": 2, "alpha_lr": 6e-3}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="cifar10")
    parser.add_argument("--out", type=Path, default=Path("runs/cdarts_cifar10"))
    parser.add_argument("--variant", choices=tuple(VARIANTS), default="paper")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    config = variant(args.variant, **SIZES, **SCHEDULE, seed=args.seed)
    began, worked = time.monotonic(), time.process_time()
    run = search_cyclic(args.data, args.out, config=config, resume=True)
    wall, processor = time.monotonic() - began, time.process_time() - worked
    record = read_search(run.path)
    assert record is not None
    assert record.genotype is not None
    print(f"{args.variant}, {torch.get_num_threads()} threads, torch {torch.__version__}")
    print(f"{wall / 60:.1f} min, {processor / 60:.1f} min of processor time, in this process")
    for line, decided in zip(record.metrics, record.decided[1:], strict=True):
        shown = (f"{name} {value:.4f}" for name, value in line.items() if isinstance(value, float) and name != "seconds")
        print(f"epoch {line['epoch']:2d} {line['phase']:8s}", ", ".join(shown), f"skips {decided.skips}")
    genotype = parse_genotype(record.genotype)
    space = get_space("darts")
    assert isinstance(genotype, Genotype)
    assert isinstance(space, CellSpace)
    population = space.encode([space.from_genotype(genotype)])
    print(genotype)
    print(f"20 cells from 36 channels: {params(space, population)[0]} parameters, {macs(space, population)[0]} MACs")


if __name__ == "__main__":
    main()
