"""The cheapest network of a space, and proofs that limits exclude each other, against enumeration."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deploy.limits import parse_limit
from latency.cost import CountCost
from latency.table import LatencyTable
from ofa.counts import block_macs
from ofa.find_arch import find_arch
from ofa.mobilenet import MobileNetSpace, Stage
from ofa.spaces import get_space, list_elastic_spaces
from search.cheapest import cheapest, cost_tables, exclude_each_other
from search.constraints import Constraints, InfeasibleError
from search.prices import most

SMALL = MobileNetSpace(
    name="small",
    resolutions=(8, 16),
    stem_width=8,
    stem_stride=1,
    first_width=8,
    stages=(Stage(8, 2, "relu", se=False, depths=(1, 2)), Stage(16, 1, "h_swish", se=True, depths=(1, 2))),
    final_width=16,
    feature_width=0,
    kernel_sizes=(3, 5),
    expand_ratios=(3, 6),
    num_classes=3,
)
EVERYTHING = SMALL.everything()


class RandomCost:
    """A random value for every block."""

    quantity = "macs"

    def __init__(self, seed, offset=0.0):
        self.space, self.offset = SMALL, offset
        self.block_values = np.append(np.random.default_rng(seed).uniform(0.1, 1, len(SMALL.all_blocks)), 0.0)

    def predict(self, population):
        return self.block_values[SMALL.block_ids(population)].sum(1) + self.offset


@given(st.integers(0, 2**32 - 1))
@settings(deadline=None, max_examples=40)
def test_cheapest_equals_enumeration(seed):
    cost = RandomCost(seed)
    value, row = cheapest(SMALL, cost_tables(SMALL, cost))
    assert value == pytest.approx(cost.predict(EVERYTHING).min(), rel=1e-12)
    assert cost.predict(row)[0] == pytest.approx(value, rel=1e-12)
    np.testing.assert_array_equal(row, SMALL.canonical(row))


# in ENAS' cells a node that reads little leaves more to hand on; of choice blocks none is the cheapest everywhere
ORDERED = [name for name in list_elastic_spaces() if not name.startswith(("enas_micro", "shufflenet"))]


@pytest.mark.parametrize("name", ORDERED)
def test_fewest_macs_of_every_space_are_those_of_its_smallest_network(name):
    space = get_space(name)
    cost = CountCost("macs", space)
    value, row = cheapest(space, cost_tables(space, cost))
    assert value == cost(space.smallest) == cost.predict(row)[0]
    assert value <= cost.predict(space.sample(np.random.default_rng(0), 1000)).min()


def test_a_network_with_an_unknown_block_is_not_the_cheapest():
    cost = RandomCost(0)
    _, row = cheapest(SMALL, cost_tables(SMALL, cost))
    used = SMALL.block_ids(row)[0]
    cost.block_values[used[used >= 0][3]] = np.nan
    value, other = cheapest(SMALL, cost_tables(SMALL, cost))
    known = cost.predict(EVERYTHING)
    assert value == pytest.approx(np.nanmin(known), rel=1e-12)
    assert cost.predict(other)[0] == pytest.approx(value, rel=1e-12)


@given(st.integers(0, 2**32 - 1), st.floats(1.0, 1.6), st.floats(1.0, 1.6))
@settings(deadline=None, max_examples=60)
def test_a_proof_is_never_wrong(seed, first, second):
    costs = [RandomCost(seed), RandomCost(seed + 1, offset=0.3)]
    values = [cost.predict(EVERYTHING) for cost in costs]
    bounds = [values[0].min() * first, values[1].min() * second]
    possible = ((values[0] <= bounds[0]) & (values[1] <= bounds[1])).any()
    proven = exclude_each_other(SMALL, list(zip(costs, bounds, strict=True)))
    assert not (proven and possible)


def test_a_clash_is_proven_where_the_sum_shows_it():
    cost = RandomCost(3)
    opposite = RandomCost(3)
    opposite.block_values = np.append(1.2 - cost.block_values[:-1], 0.0)  # what one finds cheap the other finds dear
    low = cost.predict(EVERYTHING).min() * 1.01
    other = opposite.predict(EVERYTHING).min() * 1.01
    assert not ((cost.predict(EVERYTHING) <= low) & (opposite.predict(EVERYTHING) <= other)).any()
    assert exclude_each_other(SMALL, [(cost, low), (opposite, other)])


def test_the_least_of_a_latency_limit_is_exact_and_holds_the_margin():
    rng = np.random.default_rng(0)
    entries = {spec: float(ms) for spec, ms in zip(SMALL.all_blocks, rng.uniform(0.1, 1, len(SMALL.all_blocks)), strict=True)}
    table = LatencyTable(SMALL, "board", entries, margin=0.1)
    values = table.upper(EVERYTHING)
    found = Constraints.of(SMALL, [parse_limit("latency@board <= 0.1ms")], {"latency@board": table})
    assert found.ranges[0].minimum == pytest.approx(values.min(), rel=1e-12)
    assert found.ranges[0].maximum == pytest.approx(values.max(), rel=1e-12)
    with pytest.raises(InfeasibleError, match="nearest feasible value"):
        found.require_feasible()


@pytest.mark.parametrize("arch", ["smallest of 12 layers", "enas_macro"])  # the latter, published, has 24
def test_one_network_of_more_choices_than_an_array_has_axes(arch):
    space = get_space("enas_macro")
    space, only = find_arch(arch) if arch == "enas_macro" else (space, space.smallest)
    alone = space.restrict(only)
    assert len(alone.dimensions) > 64
    expected = sum(block_macs(spec) for spec in space.blocks(only).values())
    assert CountCost("macs", alone)(only) == expected
    assert most(CountCost("macs", alone), alone) == expected
