"""What integers cost and gain: networks of a run in int8, a16w8, and int8 after fine-tuning, held against fp32 on test images.

    python benchmarks/quantisation.py RUN ARCH... [--finetune 2] [--max-drop 0.005] [--precisions int8,a16w8]

ARCH is an arch.json or the folder of one, such as a search's best/. Each network is extracted, its BatchNorm calibrated, and
rounded as `ofa export` does it: by calibration images of the training split, judged on validation images; test images are looked
at here alone. Every figure is that of the file in ONNX Runtime on one thread. What is lost has a 95 % interval of paired
proportions: only images that one of both files gets right count. Times are ratios to fp32's of medians of interleaved rounds,
batch 1, CPU time, with 95 % intervals. "unrounded" is what the fine-tuned weights compute in fp32: training on changes a network
by itself. An exclamation mark stands where int8 misses a bar (0.5 points, 0.30 of the bytes).
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch

from deploy.comparison import Comparison, compare
from deploy.device import get_device
from deploy.emit import emit
from deploy.fold import fold
from deploy.interleave import interleave, paired_ratio
from deploy.rounding import Format, Rounded, TrainedRun, round_network
from deploy.runtimes import open_session
from ofa.artefacts import read_json
from ofa.run_dir import Run
from ofa.space import ARCH_SCHEMA
from ofa.training.calibration import calibrate
from ofa.training.data import Images, calibration_batches, load_images

DEVICE = get_device("ort_cpu_1t")
DROP_BAR, SIZE_BAR = 0.005, 0.30  # int8's top-1 below fp32's, at most; its bytes over those of fp32
ROUNDS, RUNS = 40, 10
HEAD = ("network", "file", "top-1 %", "lost, points (95 % CI)", "same class", "SQNR dB", "bytes", "time (95 % CI)", "in float")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", help="a run directory")
    parser.add_argument("arch", nargs="+", type=Path, help="an arch.json, or the folder of one")
    parser.add_argument("--precisions", default="int8,a16w8")
    parser.add_argument("--finetune", type=int, default=2, help="epochs; 0 = none")
    parser.add_argument("--max-drop", type=float, default=0.005, help="before layers stay in float")
    args = parser.parse_args()
    torch.set_num_threads(1)
    trained = TrainedRun(Run(args.run))
    run = trained.run
    test = load_images(run.data.source, "test", size=run.data.image_size, classes=run.data.classes)
    ways = {name: Format(name, max_drop=args.max_drop) for name in args.precisions.split(",")}
    if args.finetune:
        ways[f"int8, {args.finetune} epochs"] = Format("int8", max_drop=args.max_drop, finetune_epochs=args.finetune)
    print(f"{args.run}, {len(test)} test images of {run.data.source}\n| {' | '.join(HEAD)} |\n|{'---|' * len(HEAD)}")
    for path in args.arch:
        one_network(trained, path / "arch.json" if path.is_dir() else path, ways, test)


def one_network(trained: TrainedRun, path: Path, ways: dict[str, Format], test: Images) -> None:
    run, space = trained.run, trained.run.space
    arch = space.from_json(read_json(path, schema=ARCH_SCHEMA))
    blocks, resolution = space.blocks(arch), space.resolution(arch)
    net = trained.supernet.extract(arch)
    calibrate(net, calibration_batches(trained.train, run.preprocess, resolution))
    weights, folder = fold(net), path.resolve().parent
    name = folder.parent.name if folder.name == "best" else folder.name
    fp32 = emit(blocks, weights)
    rounded: dict[str, Rounded] = {"fp32": Rounded(weights)}
    files = {"fp32": fp32}
    for way, how in ways.items():
        found = rounded[way] = round_network(trained, blocks, weights, resolution, how)
        files[way] = emit(blocks, found.weights, precision=how.precision, scales=found.scales, layers=found.layers)
        if how.finetune_epochs:
            files[f"{way}, unrounded"] = emit(blocks, found.weights)
    times = time_ratios(files, resolution)
    for way, content in files.items():
        session, reference = open_session(content, DEVICE), open_session(fp32, DEVICE)
        cost = compare(session, reference, test, run.preprocess, resolution)
        left = [layer for layer, other in rounded[way].layers.items() if other == "fp32"] if way in rounded else []
        print(row(name, way, cost, len(content) / len(fp32), times[way], left), flush=True)


def time_ratios(files: dict[str, bytes], resolution: int) -> dict[str, tuple[float, float, float]]:
    """Time of each file over that of fp32: median and interval."""
    images = np.random.default_rng(0).standard_normal((1, 3, resolution, resolution), dtype=np.float32)
    calls = [open_session(content, DEVICE).prepare(images) for content in files.values()]
    samples = interleave(calls, [RUNS] * len(calls), rounds=ROUNDS, rng=np.random.default_rng(0))
    return {name: paired_ratio(own, samples[0], 0) for name, own in zip(files, samples, strict=True)}


def row(name: str, way: str, cost: Comparison, size: float, time: tuple[float, float, float], left: list[str]) -> str:
    low, high = (100 * end for end in cost.drop_interval)
    barred = way.startswith("int8") and not way.endswith("unrounded")
    missed = ["!" if barred and value > bar else "" for value, bar in ((cost.drop, DROP_BAR), (size, SIZE_BAR))]
    lost = f"{100 * cost.drop:+.2f} ({low:+.2f} to {high:+.2f}){missed[0]}"
    against_fp32 = [lost, f"{cost.agreement:.3f}", f"{cost.sqnr_db:.1f}"] if way != "fp32" else [""] * 3
    bytes_and_time = [f"{size:.3f}{missed[1]}", f"{time[0]:.2f} ({time[1]:.2f}-{time[2]:.2f})"]
    return f"| {' | '.join([name, way, f'{100 * cost.top1:.2f}', *against_fp32, *bytes_and_time, ', '.join(left)])} |"


if __name__ == "__main__":
    main()
