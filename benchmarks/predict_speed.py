"""How many architectures an additive cost prices in a second, one thread; against gathering the blocks of every slot.

    OMP_NUM_THREADS=1 python benchmarks/predict_speed.py [--rounds 15]

Both ways give the same numbers, which is checked; the best of interleaved rounds, so that the ratio holds on a busy machine.
"""

from __future__ import annotations

import argparse
import time

import numpy as np

from latency.cost import CountCost, additive
from ofa import SearchSpace, get_space

SPACES = ("mbv3_small_image", "ofa_mbv3_w1_0", "ofa_resnet50d", "attentive_nas")
SIZES = (1_000, 20_000, 300_000)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    args = parser.parse_args()
    print("| space | architectures | block_ids, M/s | additive, M/s | ratio |")
    print("|---|---|---|---|---|")
    for name in SPACES:
        for n in SIZES:
            gathered, direct = (n / seconds / 1e6 for seconds in compare(get_space(name), n, args.rounds))
            print(f"| {name} | {n:,} | {gathered:.1f} | {direct:.1f} | {direct / gathered:.1f} |")


def compare(space: SearchSpace, n: int, rounds: int) -> tuple[float, float]:
    """Return the best times of both ways, seconds."""
    population, values = space.sample(np.random.default_rng(0), n), CountCost("macs", space).block_values
    ways = (lambda: values[space.block_ids(population)].sum(1)), (lambda: additive(space, values, population))
    assert np.array_equal(ways[0](), ways[1]())
    best = [np.inf, np.inf]
    for _ in range(rounds):
        for i, way in enumerate(ways):
            start = time.perf_counter()
            way()
            best[i] = min(best[i], time.perf_counter() - start)
    return best[0], best[1]


if __name__ == "__main__":
    main()
