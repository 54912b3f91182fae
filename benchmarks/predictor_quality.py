"""How well accuracy predictors rank networks that they were not fitted to, by the number that they were fitted to.

    OMP_NUM_THREADS=1 python benchmarks/predictor_quality.py [--data ../shared/data] [--seeds 10] [--kinds ridge mlp ...]

Tables: NAS-Bench-201 (Dong and Yang 2020; three data sets; fitted to 12-epoch validation accuracy, judged by held-out networks'
12-epoch validation and 200-epoch test accuracy) and NAS-Bench-Macro (Su et al. 2021; fitted to one training of each network,
judged by the mean of three). Each number is Kendall's tau, the mean over seeds: over all held-out networks, and among the most
accurate twentieth of them, which is what a search is about. MACs alone are the reference.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ofa.space import Dimension, Population
from search.choice_space import ChoiceSpace
from search.features import Features
from search.predictor import DEFAULT_KINDS, fit_predictor, kendall_tau
from search.regressors import get_regressor, list_regressors
from search.scale import Scale
from search.tabular import TableRows, TabularCost

SIZES = (10, 20, 50, 100, 200, 500)
KINDS = tuple(kind for kind in list_regressors() if kind not in ("macs", "mlp", "torch_mlp"))  # the last two take minutes
TOP = 0.05
CHOSEN = "chosen"
Values = NDArray[np.float64]


@dataclass(frozen=True)
class Task:
    """A table of accuracies: what is measured of a network, and what it is judged by."""

    name: str
    features: Features
    population: Population
    measured: Values
    judges: dict[str, Values]

    @property
    def macs(self) -> Values:
        return self.features.costs["macs"].predict(self.population)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path(__file__).parents[2] / "shared" / "data")
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES)
    parser.add_argument("--kinds", nargs="+", default=KINDS, choices=list_regressors())
    parser.add_argument("--tables", nargs="+", help="part of the names of the tables to judge by; default: all")
    parser.add_argument("--held-out", type=int, default=5000, help="networks to rank")
    args = parser.parse_args()
    for task in [*nasbench201(args.data), *nasbench_macro(args.data)]:
        if args.tables is None or any(part in task.name for part in args.tables):
            report(task, args.sizes, args.kinds, args.seeds, args.held_out)


def report(task: Task, sizes: Sequence[int], kinds: Sequence[str], seeds: int, held_out: int) -> None:
    """Print a table for every judge, and where MACs are not beaten."""
    rows = ("macs", CHOSEN, *kinds)
    found = np.full((len(task.judges), len(rows), len(sizes), seeds, 2), np.nan)
    choices: list[dict[str, int]] = [{} for _ in sizes]
    for i, n in enumerate(sizes):
        for seed in range(seeds):
            order = np.random.default_rng((seed, n)).permutation(len(task.population))
            train, test = order[:n], order[n : n + held_out]
            predictor = fit_predictor(
                task.features.space, task.population[train], task.measured[train], costs=task.features.costs, seed=seed
            )
            choices[i][predictor.kind] = choices[i].get(predictor.kind, 0) + 1
            predictions = [task.macs[test], predictor.predict(task.population[test])]
            predictions += [predict(kind, task, train, test, seed) for kind in kinds]
            for j, truth in enumerate(task.judges.values()):
                for k, predicted in enumerate(predictions):
                    found[j, k, i, seed] = both_taus(predicted, truth[test])
    for taus, judge in zip(found, task.judges, strict=True):
        print(f"\n### {task.name}, judged by {judge}: tau over all / among the best {TOP:.0%}, mean of {seeds} seeds\n")
        print(f"| networks measured | {' | '.join(map(str, sizes))} |\n|---|{'---|' * len(sizes)}")
        for row, name in zip(taus.mean(2), rows, strict=True):
            print(f"| {name} | {' | '.join(f'{whole:.3f} / {top:.3f}' for whole, top in row)} |")
        print()
        for part, where in enumerate(("over all networks", f"among the best {TOP:.0%}")):
            print(compare(taus[1, ..., part] - taus[0, ..., part], sizes, where))
    print(
        f"\nChosen of {', '.join(DEFAULT_KINDS)}:",
        "; ".join(f"{n}: {c}" for n, c in zip(sizes, choices, strict=True)),
        flush=True,
    )


def compare(gains: NDArray[np.float64], sizes: Sequence[int], where: str) -> str:
    """Say where the chosen predictor does not beat MACs, of the differences of tau, (sizes, seeds)."""
    error = gains.std(1, ddof=1) / gains.shape[1] ** 0.5 if gains.shape[1] > 1 else np.zeros(len(sizes))
    lost = [str(n) for n, mean, e in zip(sizes, gains.mean(1), error, strict=True) if mean <= 2 * e]
    if lost:
        return f"The chosen predictor does NOT rank better than MACs alone {where} with {', '.join(lost)} measured."
    return f"The chosen predictor ranks better than MACs alone {where} at every size, by more than two standard errors."


def predict(kind: str, task: Task, train: NDArray[np.int64], test: NDArray[np.int64], seed: int) -> Values:
    """Fit one kind, without cross-validation; predictions rank as top-1 would."""
    inputs = task.features(task.population)
    scores = Scale.of(task.measured[train]).to_scores(task.measured[train])
    return get_regressor(kind).fit(inputs[train], scores, task.features.layout, seed).predict(inputs[test])


def both_taus(predicted: Values, truth: Values) -> tuple[float, float]:
    """Return the rank correlation over all networks, and among those that are the best."""
    best = np.argsort(-truth)[: int(TOP * len(truth))]
    return kendall_tau(predicted, truth), kendall_tau(predicted[best], truth[best])


# -- tables ------------------------------------------------------------------------------------------------------------


def nasbench201(data: Path) -> list[Task]:
    table = load(data / "nasbench201_accuracy.npz")
    operations = tuple(table["op_names"].tolist())
    space = ChoiceSpace("nasbench201", tuple(Dimension(str(edge), operations) for edge in table["edge_order"]))
    features, population = with_costs(space, table["ops"].astype(np.int16), table)
    return [
        Task(
            f"NAS-Bench-201 {name}",
            features,
            population,
            table[f"{key}_val_12ep"].astype(float) / 100,
            {
                "12-epoch validation": table[f"{key}_val_12ep"].astype(float) / 100,
                "200-epoch test": table[f"{key}_test_200ep"].astype(float) / 100,
            },
        )
        for name, key in (("CIFAR-10", "cifar10"), ("CIFAR-100", "cifar100"), ("ImageNet16-120", "in16"))
    ]


def nasbench_macro(data: Path) -> list[Task]:
    table = load(data / "nasbench_macro_cifar10.npz")
    arch = table["arch"].astype(np.int16)
    layers = tuple(Dimension(f"layer{i}", ("identity", "mb3_k3", "mb6_k5")) for i in range(arch.shape[1]))
    features, population = with_costs(ChoiceSpace("nasbench_macro", layers, num_classes=10), arch, table)
    top1 = table["test_acc"].astype(float) / 100  # (networks, seeds)
    return [Task("NAS-Bench-Macro CIFAR-10", features, population, top1[:, 0], {"mean of three trainings": top1.mean(1)})]


def with_costs(space: ChoiceSpace, population: Population, table: dict[str, NDArray[np.generic]]) -> tuple[Features, Population]:
    rows = TableRows(space, population)
    return Features(space, {name: TabularCost(name, rows, table[name].astype(float)) for name in ("params", "macs")}), population


def load(path: Path) -> dict[str, NDArray[np.generic]]:
    if not path.exists():
        raise SystemExit(f"{path}: no such file; say with --data where the tables are")
    with np.load(path, allow_pickle=False) as file:
        return {name: file[name] for name in file.files}


if __name__ == "__main__":
    main()
