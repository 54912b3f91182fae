"""Evolution, limits, and constraints."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deploy.limits import LimitError, format_value, parse_limit
from latency.cost import CountCost
from ofa.errors import OfaError
from ofa.space import Dimension
from ofa.spaces import get_space
from search.choice_space import ChoiceSpace
from search.constraints import Constraints, InfeasibleError
from search.objectives import parse_objectives
from search.optimise import exhaust, optimise
from search.prices import most
from search.repair import repairer
from search.strategies import get_strategy
from search.strategies.evolution import Evolution
from search.tabular import TableRows, TabularCost
from search.targets import per_device, sweep

SPACE = get_space("mbv3_tiny_image")


def constraints(*texts):
    limits = tuple(map(parse_limit, texts))
    return Constraints(SPACE, limits, {limit.key: CountCost(limit.quantity, SPACE) for limit in limits})


# -- evolution, repair and optimise -----------------------------------------------------------------------------------


def distance_to(target):
    def judge(population):
        return (population != target).sum(1).astype(float)[:, None], np.zeros(len(population))

    return judge


@pytest.mark.parametrize("batch", [100, 1024])  # one island, eight of them
def test_evolution_finds_the_only_best_architecture(batch):
    target = SPACE.sample(np.random.default_rng(7), 1)[0]
    strategy = Evolution(SPACE, np.random.default_rng(0), batch=batch)
    found = optimise(SPACE, distance_to(target), strategy, evaluations=20_000)
    np.testing.assert_array_equal(found.population[0], target)
    assert found.objectives[0, 0] == 0


def test_evolution_moves_into_a_region_that_uniform_draws_never_hit():
    tight = constraints("macs <= 0.25M")
    assert tight.ranges[0].share < 1e-3
    strategy = Evolution(SPACE, np.random.default_rng(0))

    def judge(population):
        return np.zeros((len(population), 1)), tight.violation(population)

    assert optimise(SPACE, judge, strategy, evaluations=8000).violation[0] == 0


@pytest.mark.parametrize("batch", [100, 1024])
def test_evolution_is_deterministic_and_no_island_keeps_a_network_twice(batch):
    def run():
        strategy = Evolution(SPACE, np.random.default_rng(3), batch=batch)
        for _ in range(5):
            asked = strategy.ask()
            strategy.tell(asked, -asked.sum(1).astype(float)[:, None], np.zeros(len(asked)))
        return strategy

    first, second = run(), run()
    np.testing.assert_array_equal(first.population, second.population)
    island = np.repeat(np.arange(first.islands), first.size)[: len(first.population)]
    rows = np.column_stack([island, first.population])
    assert len(np.unique(rows, axis=0)) == len(rows)
    best_first = [first.objective[island == i] for i in range(first.islands)]
    assert all((np.diff(objective) >= 0).all() for objective in best_first)


def test_islands_that_are_stuck_start_anew_and_the_best_is_not_lost():
    strategy = Evolution(SPACE, np.random.default_rng(0), batch=1024, patience=2)
    best = []
    found = optimise(
        SPACE,
        distance_to(SPACE.encode([SPACE.largest])[0]),
        strategy,
        evaluations=30_000,
        on_batch=lambda found: best.append(found.objectives[0, 0]) or True,
    )
    assert strategy._elites  # at least one island has ended
    assert found.objectives[0, 0] == min(best) == 0
    assert (np.diff(best) <= 0).all()


@given(st.integers(0, 2**32 - 1), st.floats(0.3, 4.0))
@settings(deadline=None, max_examples=10)
def test_repair_meets_the_limit_changes_nothing_that_met_it_and_mixes_two_parents(seed, millions):
    limit = constraints(f"macs <= {millions:.3f}M")
    rng = np.random.default_rng(seed)
    population = SPACE.sample(rng, 200)
    feasible = limit.require_feasible()
    repair = repairer(SPACE, limit.violation, feasible, rng)
    repaired = repair(population)
    assert (limit.violation(repaired) == 0).all()
    met = limit.violation(population) == 0
    np.testing.assert_array_equal(repaired[met], population[met])
    lender = feasible[:1]
    mixed = repair(population, np.repeat(lender, len(population), axis=0))
    assert (limit.violation(mixed) == 0).all()
    active = SPACE.active(mixed)
    assert ((mixed == population) | (mixed == lender) | ~active).all()


def test_repair_stops_close_below_the_limit():
    limit = constraints("macs <= 1.5M")
    rng = np.random.default_rng(0)
    population = SPACE.sample(rng, 2000)
    population = population[limit.violation(population) > 0]
    repaired = repairer(SPACE, limit.violation, SPACE.encode([SPACE.smallest]), rng)(population)
    macs = CountCost("macs", SPACE).predict(repaired)
    assert np.median(macs) > 1.2e6  # the lender has 0.2 M


def test_optimise_judges_nothing_twice_and_spends_exactly_its_evaluations():
    judged = []

    def judge(population):
        judged.append(SPACE.keys(population))
        return population.sum(1).astype(float)[:, None], np.zeros(len(population))

    found = optimise(SPACE, judge, Evolution(SPACE, np.random.default_rng(0), batch=256), evaluations=3000)
    keys = np.concatenate(judged)
    assert len(keys) == len(np.unique(keys)) == found.evaluations == 3000
    assert (np.diff(found.objectives[:, 0]) >= 0).all()


def test_optimise_returns_the_front_of_several_objectives_and_ends_with_a_space():
    space = ChoiceSpace("two", (Dimension("a", tuple(range(12))), Dimension("b", tuple(range(12)))))

    def judge(population):
        return np.abs(population - [[3, 8]]).astype(float), (population[:, 0] == 5).astype(float)

    found = optimise(space, judge, get_strategy("nsga2")(space, np.random.default_rng(0), batch=16), evaluations=10_000)
    assert found.evaluations <= space.size()
    np.testing.assert_array_equal(found.population, [[3, 8]])


def test_exhausting_a_space_gives_its_best_or_its_front():
    space = ChoiceSpace("two", (Dimension("a", tuple(range(120))), Dimension("b", tuple(range(110)))))

    def judge(population):
        return np.abs(population - [[3, 8]]).astype(float), (population[:, 0] < 5).astype(float)

    found = exhaust(space, judge)
    assert found.evaluations == space.size()
    np.testing.assert_array_equal(found.population, [[5, 8]])
    single = exhaust(space, lambda p: (judge(p)[0][:, :1], judge(p)[1]), most=3)
    assert len(single.population) == 3
    assert (single.population[:, 0] == 5).all()


def test_unknown_strategies_are_refused_by_name():
    with pytest.raises(OfaError, match=r"unknown strategy 'genetic'; known: aging_evolution, .*reinforce"):
        get_strategy("genetic")


# -- targets and objectives ------------------------------------------------------------------------------------------------


def test_targets_of_devices_share_the_limits_that_name_none():
    found = per_device(["latency@pi4 <= 12ms", "params <= 1M", "latency@laptop <= 3ms", "energy@pi4 <= 1mJ"])
    assert found == {
        "pi4": ["latency@pi4 <= 12ms", "params <= 1M", "energy@pi4 <= 1mJ"],
        "laptop": ["params <= 1M", "latency@laptop <= 3ms"],
    }
    with pytest.raises(OfaError, match="no limit names a device"):
        per_device(["params <= 1M"])


def test_a_sweep_has_evenly_spaced_limits_in_the_units_that_were_given():
    found = sweep("latency@pi4: 4ms..20ms x9", ["params <= 1M"])
    assert list(found) == [f"latency@pi4_{ms}ms" for ms in range(4, 21, 2)]
    assert found["latency@pi4_6ms"] == ["latency@pi4 <= 6ms", "params <= 1M"]
    assert list(sweep("macs: 0.5M .. 2M x 4").values()) == [[f"macs <= {v}"] for v in ("500K", "1M", "1.5M", "2M")]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("latency@pi4 4ms..20ms x9", "expected QUANTITY"),
        ("latency@pi4: 4ms..20ms", "expected QUANTITY"),
        ("latency@pi4: 4..20 x9", "no unit"),
        ("latncy@pi4: 4ms..20ms x9", "unknown quantity 'latncy'"),
        ("latency@pi4: 20ms..4ms x9", "from a smaller to a larger"),
        ("latency@pi4: 4ms..20ms x1", "2 to 100 values"),
        ("latency@pi4: 4ms..20ms x900", "2 to 100 values"),
        ("params: 1M..2M x3", "limits the same quantity"),
    ],
)
def test_a_sweep_that_cannot_be_read_says_why(text, message):
    with pytest.raises(OfaError, match=message):
        sweep(text, ["params <= 1M"])


def test_objectives_default_to_accuracy_and_say_what_cannot_be_wanted():
    assert [str(o) for o in parse_objectives(None, None)] == ["max top1"]
    assert [str(o) for o in parse_objectives("accuracy", ["latency@pi4", "size@int8"])] == [
        "max top1",
        "min latency@pi4",
        "min size@int8",
    ]
    assert [str(o) for o in parse_objectives(None, "macs")] == ["min macs"]
    for large, small, message in (
        ("macs", None, "costs are to be small: --min macs"),
        (None, "accuracy", "accuracy is to be large: --max accuracy"),
        (None, "speed", "unknown quantity 'speed'"),
        (None, "latency", "needs a device"),
        (None, ["macs", "macs"], "named twice"),
    ):
        with pytest.raises(OfaError, match=message):
            parse_objectives(large, small)


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
        ("accuracy >= 97%", "top1", 0.97),
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
        ("speed <= 3ms", "unknown quantity 'speed'; known: latency, macs, params, bitops, top1"),
        ("latency@pi4 >= 3ms", "latency takes <="),
        ("macs <= 60%", "only a search knows a share of the largest network"),
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
        InfeasibleError,
        match=r"nothing that was found in mbv3_tiny_image meets all of .*; nearest feasible: macs <= .*params <= ",
    ):
        contradictory.require_feasible()


# -- what review found -------------------------------------------------------------------------------------------------


def test_a_share_is_of_the_most_expensive_network_even_where_the_last_options_are_cheap():
    space = ChoiceSpace("two", (Dimension("a", ("big", "small")), Dimension("b", ("big", "small"))))
    rows = TableRows(space, space.everything())
    macs = TabularCost("macs", rows, np.array([400.0, 300.0, 200.0, 100.0]))
    assert most(macs, space) == 400
    assert most(CountCost("macs", SPACE), SPACE) == CountCost("macs", SPACE)(SPACE.largest)


@pytest.mark.parametrize(
    ("text", "bound"), [("macs <= 100%", 1_234_567.0), ("macs <= 60%", 740_741.0), ("latency@x <= 50%", 0.5)]
)
def test_a_share_is_rounded_up_to_six_digits(text, bound):
    largest = {"macs": 1_234_567.0, "latency@x": 1.0}
    found = parse_limit(text, largest=lambda limit: largest[limit.key]).bound
    assert found >= bound * (1 - 1e-12)
    assert found == pytest.approx(bound, rel=1e-5)


def test_a_long_front_is_thinned_evenly_and_keeps_its_ends():
    space = ChoiceSpace("line", (Dimension("a", tuple(range(5000))),))

    def judge(population):
        a = population[:, 0].astype(float)
        return np.column_stack([a, -a]), np.zeros(len(a))

    found = exhaust(space, judge, most=50)
    kept = np.sort(found.population[:, 0])
    assert len(kept) == 50
    assert kept[0] == 0
    assert kept[-1] == 4999
    assert np.diff(kept).max() < 200


def test_a_sweep_in_shares_and_one_too_fine_to_tell():
    assert sweep("macs: 20%..60% x3") == {f"macs_{v}pct": [f"macs <= {v}%"] for v in (20, 40, 60)}
    with pytest.raises(OfaError, match="so close that four digits"):
        sweep("macs: 60M..60.001M x50")
