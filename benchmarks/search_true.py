"""What a search returns, measured, against the best of 200 random networks under the same limit.

    python benchmarks/search_true.py RUN [--device ort_cpu_1t] [--random 200] [--evals 100] [--seeds 3]

Three limits between the fastest and the slowest network of the run's space. Random networks are drawn uniformly among those that
meet the limit; all accuracies are measured: extracted, BatchNorm re-calibrated, on images that no training saw. The best of many
measured values is a lucky one, for random networks as for a search; the test images were used by neither. Every seed searches
on a journal of its own, so that searches know nothing of each other, and measures so many networks for all limits together.
"""

from __future__ import annotations

import argparse

import numpy as np

from deploy.limits import format_value
from latency.table import LatencyTable
from ofa.run_dir import Run
from ofa.space import ArchConfig
from ofa.training.data import load_images
from ofa.training.evaluation import evaluate
from search import SearchResult, SupernetAccuracy, search_targets
from search.constraints import Constraints

SHARES = (0.1, 0.3, 0.6)  # where the limits lie between the fastest and the slowest network


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run")
    parser.add_argument("--device", default="ort_cpu_1t")
    parser.add_argument("--random", type=int, default=200, help="random networks under each limit")
    parser.add_argument("--evals", type=int, default=100, help="networks that the searches measure, for all limits together")
    parser.add_argument("--seeds", type=int, default=3, help="searches")
    args = parser.parse_args()
    run = Run(args.run)
    table = LatencyTable.load(run.latency_path(args.device), run.space)
    low, high = sorted(table.upper(run.space.encode([run.space.smallest, run.space.largest])).tolist())
    targets = {}
    for share in SHARES:
        bound = format_value("latency", low + share * (high - low))
        targets[bound] = [f"latency@{args.device} <= {bound}"]
    random: dict[str, tuple[ArchConfig, float]] = {}
    for name, limits in targets.items():
        drawn = random_feasible(Constraints.for_run(run, limits), args.random)
        top1 = SupernetAccuracy(run, run.path / "search" / "random.jsonl")(drawn)
        random[name] = drawn[top1.argmax()], float(top1.max())
    results = []
    for seed in range(args.seeds):
        journal = run.path / "search" / f"true_{seed}.jsonl"
        found = search_targets(
            run, targets, evals=args.evals, tag=f"true{seed}", seed=seed, accuracy=SupernetAccuracy(run, journal)
        )
        results.append(found)
    print("| limit | networks | validation top-1 | test top-1 |\n|---|---|---|---|")
    for name in targets:
        print(f"| {name} | best of {args.random} random | {random[name][1]:.4f} | {on_test(run, random[name][0]):.4f} |")
        best = [result.best for result in (found[name] for found in results) if isinstance(result, SearchResult)]
        validation = " ".join(f"{candidate.top1:.4f}" for candidate in best)
        test = " ".join(f"{on_test(run, candidate.arch):.4f}" for candidate in best)
        print(f"| {name} | {args.seeds} searches, {args.evals} networks each | {validation} | {test} |")


def on_test(run: Run, arch: ArchConfig) -> float:
    """Measure a network on images that neither training nor any search saw."""
    train, _ = run.load_train_and_validation()
    test = load_images(run.data.source, "test", size=run.data.image_size, classes=run.data.classes)
    return evaluate(run.load_supernet(), [arch], train, test, run.preprocess, num_calibration=1000)[0]


def random_feasible(constraints: Constraints, n: int) -> list[ArchConfig]:
    """Draw n different architectures that meet the limits, uniformly."""
    rng = np.random.default_rng(0)
    found: dict[ArchConfig, None] = {}
    for _ in range(100):
        drawn = constraints.space.sample(rng, 100_000)
        found.update(dict.fromkeys(constraints.space.decode(drawn[constraints.violation(drawn) == 0])))
        if len(found) >= n:
            return list(found)[:n]
    raise SystemExit(f"only {len(found)} of ten million random networks meet the limit, expected {n}")


if __name__ == "__main__":
    main()
