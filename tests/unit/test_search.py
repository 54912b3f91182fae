"""Evolution, limits, and constraints."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deploy.limits import LimitError, format_value, parse_limit
from latency.cost import CountCost
from ofa.spaces import get_space
from search.constraints import Constraints, InfeasibleError
from search.strategies.evolution import Evolution, EvolutionConfig

SPACE = get_space("mbv3_tiny_image")


def constraints(*texts):
    limits = tuple(map(parse_limit, texts))
    return Constraints(SPACE, limits, {limit.key: CountCost(limit.quantity, SPACE) for limit in limits})


# -- evolution ------------------------------------------------------------------------------------------------------


def test_evolution_finds_the_only_best_architecture():
    target = SPACE.sample(np.random.default_rng(7), 1)[0]
    strategy = Evolution(SPACE, np.random.default_rng(0), EvolutionConfig())
    for _ in range(60):
        asked = strategy.ask()
        strategy.tell(asked, -(asked != target).sum(1).astype(float), np.zeros(len(asked)))
    np.testing.assert_array_equal(strategy.population[0], target)


def test_evolution_moves_into_a_region_that_uniform_draws_never_hit():
    tight = constraints("macs <= 0.25M")
    assert tight.ranges[0].share < 1e-3
    strategy = Evolution(SPACE, np.random.default_rng(0), EvolutionConfig())
    for _ in range(40):
        asked = strategy.ask()
        strategy.tell(asked, np.zeros(len(asked)), tight.violation(asked))
    assert (strategy.violation == 0).any()


def test_evolution_is_deterministic_and_keeps_no_duplicates():
    def run():
        strategy = Evolution(SPACE, np.random.default_rng(3), EvolutionConfig())
        for _ in range(5):
            asked = strategy.ask()
            strategy.tell(asked, asked.sum(1).astype(float), np.zeros(len(asked)))
        return strategy.population

    first = run()
    np.testing.assert_array_equal(first, run())
    assert len(np.unique(first, axis=0)) == len(first)


# -- limits ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "key", "bound"),
    [
        ("latency@pi4 <= 12ms", "latency@pi4", 12.0),
        ("latency@a.b-c<=0.5 s", "latency@a.b-c", 500.0),
        ("latency@x <= 250us", "latency@x", 0.25),
        ("params <= 1.5M", "params", 1.5e6),
        ("macs<=2e1M", "macs", 2e7),
        ("top1 >= 0.97", "top1", 0.97),
        ("top1 >= 97%", "top1", 0.97),
        ("latency@x <= 1.23456ms", "latency@x", 1.23456),
        ("params <= 1234567K", "params", 1.234567e9),
    ],
)
def test_limits_are_read_with_their_units(text, key, bound):
    limit = parse_limit(text)
    assert limit.key == key
    assert limit.bound == pytest.approx(bound)
    assert parse_limit(str(limit)).bound == pytest.approx(bound, rel=1e-9)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("latency@pi4 <= 3", "no unit; write the number with one of: us, ms, s"),
        ("params <= 1000000", "no unit"),
        ("latency@pi4 <= 3 parsecs", "unknown unit 'parsecs'"),
        ("latency <= 3ms", "needs a device"),
        ("macs@pi4 <= 3M", "takes no device"),
        ("speed <= 3ms", "unknown quantity 'speed'; known: latency, macs, params, top1"),
        ("latency@pi4 >= 3ms", "latency takes <="),
        ("top1 <= 0.9", "top1 takes >="),
        ("latency@pi4 = 3ms", "expected QUANTITY"),
        ("latency@pi4 <= 0ms", "above zero"),
        ("latency@pi4 <= 1.2.3ms", "is not a number"),
        ("top1 >= 97", "between 0 and 1"),
        ("", "expected QUANTITY"),
    ],
)
def test_a_limit_that_cannot_be_read_says_why(text, message):
    with pytest.raises(LimitError, match=message.replace("(", r"\(")):
        parse_limit(text)


@given(st.floats(1e-4, 1e6))
def test_formatted_latency_reads_back_within_rounding(value):
    assert parse_limit(f"latency@x <= {format_value('latency', value)}").bound == pytest.approx(value, rel=0.01)


# -- constraints ----------------------------------------------------------------------------------------------------


def test_violation_is_the_relative_excess_over_all_limits():
    both = constraints("macs <= 1M", "params <= 0.1M")
    population = SPACE.encode([SPACE.largest, SPACE.smallest])
    macs, params = CountCost("macs", SPACE).predict(population), CountCost("params", SPACE).predict(population)
    expected = np.maximum(0, macs / 1e6 - 1) + np.maximum(0, params / 1e5 - 1)
    np.testing.assert_allclose(both.violation(population), expected)
    assert (both.require_feasible().shape[0]) > 0
    assert (both.violation(both.require_feasible()) == 0).all()


def test_ranges_reach_the_true_extremes():
    found = constraints("macs <= 1M").ranges[0]
    ends = CountCost("macs", SPACE).predict(SPACE.encode([SPACE.smallest, SPACE.largest]))
    assert (found.minimum, found.maximum) == tuple(ends)


def test_infeasible_limit_names_a_value_that_is_feasible():
    with pytest.raises(InfeasibleError, match="nearest feasible value: macs <= ") as caught:
        constraints("macs <= 1K").require_feasible()
    nearest = str(caught.value).rpartition(": ")[2]
    assert len(constraints(nearest).require_feasible()) > 0
    assert caught.value.exit_code == 3


def test_limits_that_exclude_each_other_say_so_together():
    space = SPACE
    # networks of few MACs have few parameters here, so ask for opposite things through a cost that falls with size
    inverse = CountCost("params", space)

    class Inverse:
        quantity = "params"

        def predict(self, population):
            return 1e11 / inverse.predict(population)

    limits = tuple(map(parse_limit, ("macs <= 0.3M", "params <= 0.3M")))
    contradictory = Constraints(space, limits, {"macs": CountCost("macs", space), "params": Inverse()})
    with pytest.raises(
        InfeasibleError, match=r"nothing in mbv3_tiny_image meets all of .*; nearest feasible: macs <= .*params <= "
    ):
        contradictory.require_feasible()
