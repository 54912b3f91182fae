"""Both REINFORCE strategies on NAS-Bench-201: at least as good as the recorded REINFORCE with as many queries."""

from pathlib import Path

import numpy as np
import pytest

DATA = Path(__file__).parents[2].parent / "shared" / "data"
SEEDS = {"reinforce": 60, "controller": 8}
needs_data = pytest.mark.skipif(not (DATA / "nasbench201_accuracy.npz").exists(), reason="../shared/data is not there")


@pytest.fixture(scope="module")
def benchmark():
    import importlib
    import sys

    root = str(Path(__file__).parents[2])
    sys.path.insert(0, root)
    try:
        return importlib.import_module("benchmarks.controller_nasbench201")
    finally:
        sys.path.remove(root)


@pytest.fixture(scope="module")
def table(benchmark):
    return benchmark.Nasbench201(DATA)


@needs_data
@pytest.mark.parametrize("data_set", ["cifar10", "cifar100", "in16"])
@pytest.mark.parametrize("strategy", SEEDS)
def test_at_100_and_500_queries_no_worse_than_the_recorded_search(benchmark, table, strategy, data_set):
    """The benchmark tells by how much, with more seeds; here, two standard errors of the difference are allowed for chance."""
    found = benchmark.curves(table, data_set, strategy, range(SEEDS[strategy]), batch=10, queries=(100, 500))
    ours, our_error = benchmark.mean_and_error(found)
    theirs, their_error = (
        values[[benchmark.QUERIES.index(n) for n in (100, 500)]] for values in benchmark.recorded(DATA, data_set)
    )
    assert (ours > theirs - 2 * np.hypot(our_error, their_error)).all(), (ours, theirs)
