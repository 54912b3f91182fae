"""DARTS on NAS-Bench-201 with a small budget, left alone and with each guard against collapse; accuracies from the table.

    PYTHONPATH=. OMP_NUM_THREADS=1 python benchmarks/darts_nasbench201.py [--data ../shared/data] [--out runs/darts_nasbench201]
    PYTHONPATH=. OMP_NUM_THREADS=1 python benchmarks/darts_nasbench201.py --speed

Left alone, DARTS ends in six skip connections (Dong and Yang 2020, arXiv 2001.00326: 54.30 / 15.61 / 16.32 % on
CIFAR-10, CIFAR-100 and ImageNet16-120). What is found after every epoch is looked up: test accuracy of that cell, trained for 200
epochs by the benchmark's authors. Searches see 3,200 images of CIFAR-10 at 12 px; steps of the alphas are larger than the
published ones because there are fewer. A limit to the skips and an early stop do not change what a search does before it ends, so
that one search serves all of them. `none` is left out of the derivation, as in DARTS itself; with it is what the benchmark's
authors do. Interrupted, the same command goes on.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.nasbench201_straightforward import StraightforwardNetwork
from benchmarks.tables import DATA_SETS, Nasbench201
from ofa.artefacts import write_json
from ofa.formats.nasbench201 import OPERATIONS, parse_nasbench201
from ofa.mixed_nasbench201 import MixedNasBench201
from search.joint.config import DartsConfig
from search.joint.darts import search_images
from search.joint.guards import Guards
from search.joint.record import SearchRecord, read_search
from search.joint.relaxation import NasBench201Cell

CONFIG = DartsConfig(
    space="nasbench201", cells=1, resolution=12, max_images=3_200, epochs=50, lr=0.05, alpha_lr=0.005
)  # 16 channels; 25 steps an epoch
SEARCHES = {
    "plain": Guards(),
    "warm-up": Guards(warmup_epochs=20),
    "skip drop": Guards(skip_drop=0.6),
    "warm-up, skip drop": Guards(warmup_epochs=20, skip_drop=0.6),
}
ENDINGS = {  # what is derived of a search
    "": Guards(),
    "stop at 2 skips": Guards(stop_skips=2),
    "at most 2 skips": Guards(max_skips=2),
    "at most 1 skip": Guards(max_skips=1),
    "stop at 2, at most 1": Guards(stop_skips=2, max_skips=1),
}
NONE, SKIP = OPERATIONS.index("none"), OPERATIONS.index("skip_connect")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path(__file__).parents[2] / "shared" / "data")
    parser.add_argument("--out", type=Path, default=Path("runs/darts_nasbench201"))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--only", choices=SEARCHES, action="append", help="a search; may be given again")
    parser.add_argument("--alpha-lr", type=float, default=CONFIG.alpha_lr)
    parser.add_argument("--epochs", type=int, default=CONFIG.epochs)
    parser.add_argument("--speed", action="store_true", help="instead: time of a pass, beside the plain implementation")
    args = parser.parse_args()
    if args.speed:
        speed()
        return
    table = Table(args.data)
    config = replace(CONFIG, alpha_lr=args.alpha_lr, epochs=args.epochs)
    results: dict[str, list[dict[str, Any]]] = {}
    for seed in range(args.seeds):
        for name in args.only or SEARCHES:
            setup = replace(config, seed=seed, guards=SEARCHES[name])
            out = args.out / f"{name.replace(', ', '_').replace(' ', '_')}_{seed}"
            if not (out / "genotype.txt").exists():
                search_images(str(args.data / "cifar10.tar.xz"), out, config=setup, resume=True, device="cpu")
            record = read_search(out)
            assert record is not None
            endings = {ending: found(record, table, setup.guards, ENDINGS[ending]) for ending in ENDINGS}
            row = {"seed": seed, "seconds": record.metrics[-1]["seconds"], "epochs": history(record, table), "endings": endings}
            results.setdefault(name, []).append(row)
            write_json(args.out / "results.json", {"schema": "darts_nasbench201/1", "searches": results})
            print(f"{name}, seed {seed}: {endings['']['text']} {endings['']['top1_percent']}", flush=True)
    show(results, table)


# -- the table ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Found:
    """A cell and its test accuracies after 200 epochs, percent."""

    text: str
    top1_percent: list[float]

    @property
    def skips(self) -> int:
        return parse_nasbench201(self.text).count("skip_connect")


class Table:
    """Accuracies of all cells."""

    def __init__(self, data: Path) -> None:
        table = Nasbench201(data)
        assert tuple(table.columns["op_names"].tolist()) == OPERATIONS
        self.codes = table.columns["ops"]  # (15625, 6) indices of OPERATIONS
        self.top1_percent = np.stack([100 * table.top1(name, "test_200ep") for name in DATA_SETS], axis=1)  # (15625, 3)

    def look_up(self, text: str) -> Found:
        codes = [OPERATIONS.index(name) for name in parse_nasbench201(text)]
        (row,) = np.flatnonzero((self.codes == codes).all(1))
        return Found(text, [round(float(v), 2) for v in self.top1_percent[row]])

    def means(self, *, none: bool, most_skips: int) -> tuple[int, list[float]]:
        """Return how many cells there are with or without `none` and with so few skips, and what they reach on average."""
        chosen = ((self.codes == SKIP).sum(1) <= most_skips) & (none | (self.codes != NONE).all(1))
        return int(chosen.sum()), self.top1_percent[chosen].mean(0).tolist()


def derive(probabilities: Tensor, *, none: bool, max_skips: int | None) -> str:
    """Return the cell that probabilities (6, 5) decide for."""
    return NasBench201Cell(resolution=CONFIG.resolution, derives_none=none).derive({"cell": probabilities}, max_skips).text


def history(record: SearchRecord, table: Table) -> list[dict[str, Any]]:
    """Return what is found after every epoch, without guards."""
    rows = []
    for decided in record.decided:
        probabilities = torch.tensor(decided.probabilities["cell"])
        row: dict[str, Any] = {"epoch": decided.epoch, "mean_probability": [round(p, 3) for p in probabilities.mean(0).tolist()]}
        for key, none in (("cell", False), ("cell_with_none", True)):
            cell = table.look_up(derive(probabilities, none=none, max_skips=None))
            row[key] = {"text": cell.text, "skips": cell.skips, "top1_percent": cell.top1_percent}
        rows.append(row)
    return rows


def found(record: SearchRecord, table: Table, searched: Guards, ending: Guards) -> dict[str, Any]:
    """Return what a search with these guards ends with."""
    guards = replace(searched, stop_skips=ending.stop_skips, max_skips=ending.max_skips)
    decided = next((d for d in record.decided[1:] if guards.ends(d.epoch - 1, d.skips)), record.decided[-1])
    probabilities = torch.tensor(decided.probabilities["cell"])
    cell = table.look_up(derive(probabilities, none=False, max_skips=guards.max_skips))
    other = table.look_up(derive(probabilities, none=True, max_skips=guards.max_skips))
    facts = {"epoch": decided.epoch, "text": cell.text, "skips": cell.skips, "top1_percent": cell.top1_percent}
    return facts | {"with_none": {"text": other.text, "skips": other.skips, "top1_percent": other.top1_percent}}


def show(results: dict[str, list[dict[str, Any]]], table: Table) -> None:
    print("\n| search | ends with | CIFAR-10 | CIFAR-100 | ImageNet16-120 | skips | epoch | with `none` |\n|" + "---|" * 8)
    for name, runs in results.items():
        for ending in ENDINGS:
            ends = [run["endings"][ending] for run in runs]
            top1 = np.array([end["top1_percent"] for end in ends])  # (seeds, 3)
            cells = [f"{mean:.2f} ± {std:.2f}" for mean, std in zip(top1.mean(0), top1.std(0), strict=True)]
            skips, epochs = ([str(end[key]) for end in ends] for key in ("skips", "epoch"))
            others = np.mean([end["with_none"]["top1_percent"] for end in ends], axis=0)
            print(
                f"| {name} | {ending or 'what is most probable'} | {' | '.join(cells)} | {', '.join(skips)} "
                f"| {', '.join(epochs)} | {' / '.join(f'{value:.2f}' for value in others)} |"
            )
    for label, none, most in (("any cell", True, 6), ("no none", False, 6), ("2 skips", False, 2), ("1 skip", False, 1)):
        count, means = table.means(none=none, most_skips=most)
        print(f"mean of all {count} cells ({label}): {' / '.join(f'{value:.2f}' for value in means)}")


# -- speed -------------------------------------------------------------------------------------------------------------


def speed(rounds: int = 5) -> None:
    """Seconds of a pass forward and back with gradients of weights and alphas, ours and the plain implementation in turn."""
    print(f"{torch.get_num_threads()} threads, torch {torch.__version__}")
    print("| C | N | batch | px | ours s | plain s | plain / ours |\n|" + "---|" * 7)
    for channels, cells, batch, size in ((8, 1, 64, 16), (8, 2, 64, 16), (16, 1, 64, 32), (16, 5, 64, 32)):
        networks = [kind(10, cells_per_stage=cells, channels=channels) for kind in (MixedNasBench201, StraightforwardNetwork)]
        images, labels = torch.randn(batch, 3, size, size), torch.randint(0, 10, (batch,))
        seconds = np.array([[one_pass(net, images, labels) for net in networks] for _ in range(rounds + 1)])[1:]
        ours, plain = np.median(seconds, axis=0)
        ratio = np.median(seconds[:, 1] / seconds[:, 0])
        print(f"| {channels} | {cells} | {batch} | {size} | {ours:.3f} | {plain:.3f} | {ratio:.2f} |", flush=True)


def one_pass(net: nn.Module, images: Tensor, labels: Tensor) -> float:
    alphas = torch.zeros(6, len(OPERATIONS), requires_grad=True)
    net.zero_grad(set_to_none=True)
    began = time.perf_counter()
    F.cross_entropy(net(images, alphas.softmax(1)), labels).backward()
    return time.perf_counter() - began


if __name__ == "__main__":
    main()
