"""What each part of supernet training is worth, on real images: every row is a training of the same processor time.

    PYTHONPATH=. OMP_NUM_THREADS=1 python benchmarks/training_rules.py --data cifar10 --out runs/rules

Interrupted, the same command goes on; --only runs some of the rows. Five architectures from the smallest to the largest are taken
from each supernet, re-calibrated and shown the test images; "alone" trains each of them for as many epochs as the supernet had.
Budgets are processor time of the training steps, so that other work on the machine does not tip the scales.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from ofa import ArchConfig, Run, SearchSpace, TrainConfig, get_space, train_supernet
from ofa.artefacts import write_bytes
from ofa.counts import macs
from ofa.run_dir import DataSource, max_resolution
from ofa.training.calibration import calibrate, top1
from ofa.training.data import Images, Preprocessing, calibration_batches, load_images, split_validation
from ofa.training.distributed import World
from ofa.training.trainer import Trainer

BASE = TrainConfig(lr=0.15)
ROWS = {
    "sandwich": BASE,
    "single path": replace(BASE, recipe="single_path"),
    "progressive": replace(BASE, recipe="progressive"),
    "attentive": replace(BASE, recipe="attentive"),
    "sandwich, no distillation": replace(BASE, distillation="none"),
    "sandwich, exponential": replace(BASE, schedule="exponential"),
    "sandwich, exponential, constant ending": replace(BASE, schedule="exponential", lr_floor=0.05),
    "sandwich, alpha-divergence": replace(BASE, distillation="alpha"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="cifar10")
    parser.add_argument("--space", default="benchmarks.study_space", help="a space; this one needs PYTHONPATH=.")
    parser.add_argument("--out", type=Path, default=Path("runs/rules"))
    parser.add_argument("--minutes", type=float, default=24, help="processor time of each training")
    parser.add_argument("--only", action="append", help=f"a row: {', '.join([*ROWS, 'alone'])}; may be given again")
    args = parser.parse_args()
    space = get_space(args.space)
    archs = five_archs(space)
    for name in args.only or [*ROWS, "alone"]:
        if name == "alone":
            for label, arch in archs.items():
                config = replace(BASE, epochs=json.loads((args.out / "sandwich" / "row.json").read_text())["epochs"])
                run_row(f"alone {label}", args, config, {label: arch}, only=arch)
        else:
            folder = args.out / name.replace(",", "").replace(" ", "_")
            epochs_file = folder / "epochs.json"
            if not epochs_file.exists():
                epochs = affordable_epochs(args.space, args.data, ROWS[name], args.minutes * 60)
                write_bytes(epochs_file, json.dumps(epochs).encode())
            run_row(name, args, replace(ROWS[name], epochs=json.loads(epochs_file.read_text())), archs)


def five_archs(space: SearchSpace) -> dict[str, ArchConfig]:
    """Smallest, three random ones at equal steps of multiply-adds between the extremes, largest."""
    population = space.sample(np.random.default_rng(0), 2_000)
    cost = macs(space, population)
    ends = macs(space, space.encode([space.smallest, space.largest]))
    targets = np.exp(np.linspace(*np.log(ends.astype(float)), 5)[1:-1])
    chosen = space.decode(population[[int(np.abs(cost - target).argmin()) for target in targets]])
    archs = [space.smallest, *chosen, space.largest]
    return {f"{value / 1e6:.1f} M": arch for value, arch in zip(macs(space, space.encode(archs)), archs, strict=True)}


def affordable_epochs(space: str, data: str, config: TrainConfig, seconds: float) -> int:
    """Number of epochs whose steps take about `seconds` of processor time, from a few timed steps of every phase."""
    images = load_images(data, "train", max_size=round(1.25 * max_resolution(get_space(space))))
    train, validation = split_validation(images, fraction=0.1, seed=config.seed)
    preprocess = Preprocessing.of(train, flip=True)
    with tempfile.TemporaryDirectory() as folder:
        source = DataSource.of(data, images, preprocess, validation_fraction=0.1, seed=config.seed)
        run = Run.create(Path(folder), get_space(space, num_classes=len(images.classes)), source, None)
        trainer = Trainer(run, replace(config, epochs=100), train, validation, preprocess, World(0, 1, torch.device("cpu")))
        total = 0.0
        for phase in trainer.phases:
            trainer.step = phase.start
            trainer.enter(phase)
            times = []
            for i in range(10):
                began = time.process_time()
                trainer.step = phase.start + i
                trainer.one_step(phase, 1e-3, stop=False)
                times.append(time.process_time() - began)
            total += float(np.mean(times[2:])) * (phase.end - phase.start)
    return max(1, round(seconds / (total / 100)))


def run_row(
    name: str, args: argparse.Namespace, config: TrainConfig, archs: dict[str, ArchConfig], *, only: ArchConfig | None = None
) -> None:
    folder = args.out / name.replace(",", "").replace(" ", "_")
    row_file = folder / "row.json"
    if not row_file.exists():
        began = time.process_time()
        run = train_supernet(args.space, args.data, folder, config=config, resume=True, arch=only, device="cpu")
        minutes = (time.process_time() - began) / 60
        train, _ = run.load_train_and_validation()
        test = load_images(args.data, "test", size=run.data.image_size, classes=run.data.classes)
        row = {"row": name, "epochs": config.epochs, "cpu_minutes_last_process": round(minutes, 1)}
        row["test_top1"] = accuracies(run, archs, train, test, calibrated=True)
        if name == "sandwich":
            row["test_top1_not_calibrated"] = accuracies(run, archs, train, test, calibrated=False)
        write_bytes(row_file, json.dumps(row, indent=1).encode())
    row = json.loads(row_file.read_text())
    cells = [" | ".join(f"{value:.4f}" for value in row[key].values()) for key in row if key.startswith("test_top1")]
    print(f"| {row['row']} | {row['epochs']} | {' || '.join(cells)} |", flush=True)


def accuracies(run: Run, archs: dict[str, ArchConfig], train: Images, test: Images, *, calibrated: bool) -> dict[str, float]:
    preprocess: Preprocessing = run.preprocess
    net = run.load_supernet()
    found = {}
    for label, arch in archs.items():
        resolution = net.space.resolution(arch)
        subnet = net.extract(arch).to(memory_format=torch.channels_last)
        if calibrated:
            calibrate(subnet, calibration_batches(train, preprocess, resolution))
        found[label] = top1(subnet, test, preprocess, resolution)
    return found


if __name__ == "__main__":
    main()
