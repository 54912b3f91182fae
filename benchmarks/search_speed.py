"""How fast the array arithmetic of a search is, one thread: MIT's predictor and Note10 tables, sampling, pricing, repair.

    OMP_NUM_THREADS=1 python benchmarks/search_speed.py [--data ../shared/data] [--rounds 7]

50,100 is what MIT's tutorial finder evaluates (100 + 500 generations of 100). Beside it the way such finders work, one
architecture after another through dictionaries of Python, in the same run and with the same answers, which is checked. Times are
the best of interleaved rounds, so that the ratios hold on a busy machine.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deploy.limits import parse_limit
from latency.cost import CountCost, additive
from latency.formats import import_timings
from latency.formats.by_size import TableBySize
from ofa.mobilenet import MobileNetSpace
from ofa.space import Population
from ofa.spaces import get_space
from search.constraints import Constraints
from search.formats import MitPredictor, load_mit_predictor
from search.predictor import AccuracyPredictor, fit_predictor
from search.repair import repairer

EVALUATED = 50_100
FITTED = 300  # networks that our own predictors are fitted to
NAIVE = 2_000  # architectures through the naive way: all of them would take its readers' patience
BATCH = 100  # of the naive way's predictor, as in the tutorial
DRAWN = 200_000
SIZES = (160, 176, 192, 208, 224)  # that MIT's predictor and tables know
LIMITS = ("latency@note10 <= 20ms", "latency@note10 <= 30ms")
MAX_SECONDS, MIN_RATE = 2.0, 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path(__file__).parents[2] / "shared" / "data")
    parser.add_argument("--rounds", type=int, default=7)
    args = parser.parse_args()
    folder = args.data / "mit_ofa"
    if not folder.exists():
        raise SystemExit(f"{folder}: no such folder; say with --data where the data are")
    whole = get_space("ofa_mbv3_w1_2")
    assert isinstance(whole, MobileNetSpace)
    space = dataclasses.replace(whole, resolutions=SIZES)
    predictor = load_mit_predictor(folder / "acc_predictor_mbv3_w1.2.npz", space)
    table = import_timings(folder / "note10_mbv3_w1.2_lut.json", "mit_ofa", space, "note10")
    assert isinstance(table, TableBySize)
    rng = np.random.default_rng(0)
    population, small, draws = space.sample(rng, EVALUATED), space.sample(rng, NAIVE), space.sample(rng, DRAWN)
    finder = NaiveFinder(space, predictor, table)
    np.testing.assert_allclose(finder(finder.draw(small)), [predictor.predict(small), table.predict(small)], rtol=1e-5)
    macs = CountCost("macs", space).block_values

    def judge(rows: Population) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        return predictor.predict(rows), table.predict(rows)

    def fitted(kind: str) -> AccuracyPredictor:
        return fit_predictor(space, small[:FITTED], predictor.predict(small[:FITTED]), kinds=[kind])

    tasks: dict[str, tuple[int, Callable[[], object]]] = {
        "MIT's predictor": (EVALUATED, lambda: predictor.predict(population)),
        "Note10 tables": (EVALUATED, lambda: table.predict(population)),
        "predictor and tables": (EVALUATED, lambda: judge(population)),
        "predictor and tables, a dict at a time": (NAIVE, lambda: finder(finder.draw(small))),
        **{
            f"top-1 by {kind}, fitted to {FITTED}": (EVALUATED, partial(fitted(kind).predict, population))
            for kind in ("gaussian_process", "ridge")
        },
        "sample, in canonical form": (DRAWN, lambda: space.sample(rng, DRAWN)),
        "canonical form alone": (DRAWN, lambda: space.canonical(draws)),
        "mutate": (DRAWN, lambda: space.mutate(draws, rng, 0.1)),
        "cross over": (DRAWN, lambda: space.crossover(draws, draws[::-1], rng)),
        "one-hot": (DRAWN, lambda: space.one_hot(draws)),
        "MACs, a sum over blocks (additive)": (DRAWN, lambda: additive(space, macs, draws)),
        "sample, a dict at a time": (NAIVE, lambda: finder.sample(NAIVE)),
    }
    for text in LIMITS:
        limit = parse_limit(text)
        constraints = Constraints(space, (limit,), {limit.key: table})
        repair = repairer(space, constraints.violation, constraints.require_feasible(), rng)
        fits = (constraints.violation(repair(population)) == 0).all()
        assert fits, "a repaired architecture misses the limit"
        share = (constraints.violation(population) == 0).mean()
        tasks[f"repair to {text} ({share:.1%} fit)"] = EVALUATED, lambda repair=repair: repair(population)
        tasks[f"repair to {text}, predictor and tables"] = EVALUATED, lambda repair=repair: judge(repair(population))

    best = dict.fromkeys(tasks, np.inf)
    for _, (name, (_, task)) in itertools.product(range(args.rounds), tasks.items()):
        start = time.perf_counter()
        task()
        best[name] = min(best[name], time.perf_counter() - start)
    print("| what | architectures | seconds | architectures/s |\n|---|---|---|---|")
    for name, (n, _) in tasks.items():
        print(f"| {name} | {n:,} | {best[name]:.4f} | {n / best[name]:,.0f} |")
    both = max(best[f"repair to {text}, predictor and tables"] for text in LIMITS)
    rate = DRAWN / best["sample, in canonical form"]
    naive = best["predictor and tables, a dict at a time"] / NAIVE * EVALUATED
    drawn = best["sample, a dict at a time"] / NAIVE * DRAWN / best["sample, in canonical form"]
    met = verdict(both <= MAX_SECONDS)
    print(f"\n{EVALUATED:,} candidates, repaired, predicted and priced: {both:.3f} s ({met}: at most {MAX_SECONDS:.0f} s); ")
    print(f"to predict and price them a dict at a time would take {naive:.1f} s.")
    print(f"Sampling and canonical form: {rate / 1e6:.1f} M/s ({verdict(rate >= MIN_RATE)}: at least 1 M/s); ", end="")
    print(f"{drawn:.0f} times the rate of a dict at a time.")


def verdict(met: bool) -> str:
    return "met" if met else "NOT met"


class NaiveFinder:
    """What a search does that holds architectures as dicts of lists: loops over blocks, for one architecture after another."""

    def __init__(self, space: MobileNetSpace, predictor: MitPredictor, table: TableBySize) -> None:
        self.space, self.predictor = space, predictor
        self.rng = np.random.default_rng(1)
        # by resolution and slot: the names of the choices that decide the block, and a time for each of their values
        self.times = {side: list(self._slots(one.block_values)) for side, one in table.tables.items()}
        self.inputs = {pair: i for i, pair in enumerate((d.name, o) for d in space.dimensions for o in d.options)}

    def draw(self, population: Population) -> list[dict[str, Any]]:
        """Return a population as dicts."""
        names = [d.name for d in self.space.dimensions]
        return [dict(zip(names, arch.values, strict=True)) for arch in self.space.decode(population)]

    def sample(self, n: int) -> list[dict[str, Any]]:
        """Draw architectures, a choice at a time."""
        return [{d.name: d.options[int(self.rng.random() * len(d.options))] for d in self.space.dimensions} for _ in range(n)]

    def __call__(self, archs: list[dict[str, Any]]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return top-1 and milliseconds."""
        top1 = [self._top1(archs[start : start + BATCH]) for start in range(0, len(archs), BATCH)]
        return np.concatenate(top1), np.array([self._latency_ms(arch) for arch in archs])

    def _top1(self, archs: list[dict[str, Any]]) -> NDArray[np.float64]:
        features = []
        for arch in archs:
            feature = np.zeros(len(self.inputs), dtype=np.float32)
            for name, value in arch.items():
                stage, _, rest = name.partition(".block")
                if not rest or int(rest[0]) < arch[f"{stage}.depth"]:
                    feature[self.inputs[name, value]] = 1
            features.append(feature)
        hidden = np.array(features)
        for weight, bias in zip(self.predictor.weights[:-1], self.predictor.biases[:-1], strict=True):
            hidden = np.maximum(hidden @ weight + bias, 0)
        top1: NDArray[np.float64] = (hidden @ self.predictor.weights[-1] + self.predictor.biases[-1])[:, 0]
        return top1

    def _latency_ms(self, arch: dict[str, Any]) -> float:
        total = 0.0
        for names, times in self.times[arch["resolution"]]:
            total += times[tuple(arch[name] for name in names)]
        return total

    def _slots(self, values: NDArray[np.float64]) -> Iterator[tuple[list[str], dict[tuple[Any, ...], float]]]:
        for columns, ids in self.space.slot_tables:
            dimensions = [self.space.dimensions[c] for c in columns]
            choices = itertools.product(*(d.options for d in dimensions))
            yield [d.name for d in dimensions], dict(zip(choices, values[ids].ravel().tolist(), strict=True))


if __name__ == "__main__":
    main()
