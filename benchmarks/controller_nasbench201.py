"""REINFORCE on NAS-Bench-201, with independent choices and with a recurrent controller, beside recorded curves.

    python benchmarks/controller_nasbench201.py [--seeds N] [--batch N] [--strategies reinforce controller] [--data DIRECTORY]

Validation accuracy after 12 epochs is asked for and rewarded; what is reported is the test accuracy after 200 epochs of the best
by validation among so many different cells. The recorded REINFORCE has independent choices and Adam at 0.1, too. One thread;
NumPy and torch read OMP_NUM_THREADS.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks.tables import DATA_SETS, Nasbench201
from search.strategies import get_strategy

QUERIES = (50, 100, 200, 500)
RECORDED = "reinforce_lr0.1"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path(__file__).parents[2] / "shared" / "data")
    parser.add_argument("--seeds", type=int, default=100)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--batch", type=int, default=10, help="cells that one ask returns")
    parser.add_argument("--strategies", nargs="+", default=["reinforce", "controller"])
    parser.add_argument("--data-sets", nargs="+", choices=DATA_SETS, default=DATA_SETS)
    args = parser.parse_args()
    table, seeds = Nasbench201(args.data), range(args.first_seed, args.first_seed + args.seeds)
    print("| data set | queries | recorded | ± | " + " | ".join(f"{name} | ±" for name in args.strategies) + " | s |")
    print("|---" * (5 + 2 * len(args.strategies)) + "|")
    for data_set in args.data_sets:
        theirs = recorded(args.data, data_set)
        began = time.perf_counter()
        ours = [mean_and_error(curves(table, data_set, name, seeds, batch=args.batch)) for name in args.strategies]
        seconds = (time.perf_counter() - began) / len(seeds)
        for i, queries in enumerate(QUERIES):
            cells = [f"{value[i]:.2f}" for pair in (theirs, *ours) for value in pair]
            print(f"| {data_set} | {queries} | {' | '.join(cells)} | {seconds:.2f} |", flush=True)


def recorded(data: Path, data_set: str, name: str = RECORDED) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return mean test accuracy in percent and its standard error, (queries,) each, of a recorded search."""
    curve = json.loads((data / "nasbench201_baseline_curves.json").read_text())[f"{data_set}:{name}"]
    at = [curve["queries"].index(queries) for queries in QUERIES]
    return np.array(curve["test200_mean"])[at], np.array(curve["test200_std"])[at] / curve["runs"] ** 0.5


def curves(
    table: Nasbench201, data_set: str, strategy: str, seeds: Sequence[int], *, batch: int, queries: Sequence[int] = QUERIES
) -> NDArray[np.float64]:
    """Return the test accuracy in percent of the best cell by validation, (seeds, queries)."""
    validation, test = table.top1(data_set, "val_12ep"), 100 * table.top1(data_set, "test_200ep")
    found = []
    for seed in seeds:
        search = get_strategy(strategy)(table.space, np.random.default_rng(seed), batch=batch)
        asked = np.empty(0, dtype=np.int64)
        while len(asked) < max(queries):
            population = search.ask()
            rows = table.find(population)
            search.tell(population, -validation[rows][:, None], np.zeros(len(rows)))
            asked = np.concatenate([asked, rows])
        assert len(np.unique(asked)) == len(asked)
        found.append([test[asked[:n]][validation[asked[:n]].argmax()] for n in queries])
    return np.array(found)


def mean_and_error(found: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the mean over the seeds and its standard error."""
    return found.mean(0), found.std(0, ddof=1) / len(found) ** 0.5


if __name__ == "__main__":
    main()
