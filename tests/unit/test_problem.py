"""A search problem: the usable part of a space, objectives and limits where something is unknown, rewards, the first repair."""

import dataclasses
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deploy.limits import parse_limit
from latency.cost import CountCost
from latency.table import LatencyTable
from ofa.counts import block_counts, block_macs
from ofa.space import Dimension
from ofa.spaces import get_space
from search.choice_space import ChoiceSpace
from search.constraints import Constraints, InfeasibleError
from search.objectives import parse_objectives
from search.problem import Problem, price, usable_part
from search.strategies import list_strategies
from search.tabular import TableRows, TabularAccuracy, TabularCost

SPACE = get_space("mbv3_tiny_image")
ACCURACY = parse_objectives(None, None)


def table(keep=lambda spec: True):
    """A latency table by hand: 1 us for each thousand MACs, of the blocks that are kept."""
    times = block_counts(SPACE, block_macs)[:-1] / 1e6
    entries = {spec: float(ms) + 1e-3 for spec, ms in zip(SPACE.all_blocks, times, strict=True) if keep(spec)}
    return LatencyTable(SPACE, "fake", entries)


def of_resolution(*resolutions):
    """Latency of networks with these input sizes only; of others it is unknown."""

    def price(self, population):
        column = SPACE.column["resolution"]
        options = [SPACE.dimensions[column].options.index(r) for r in resolutions]
        return np.where(np.isin(population[:, column], options), LatencyTable.price(self, population), np.nan)

    return type("Part", (LatencyTable,), {"price": price})(**vars_of(table()))


def vars_of(record):
    return {field.name: getattr(record, field.name) for field in dataclasses.fields(record)}


def problem(*texts, objectives=ACCURACY, costs=None, space=SPACE, known=None, **options):
    limits = tuple(map(parse_limit, texts))
    known = known or {}
    models = {limit.key: known.get(limit.key) or CountCost(limit.quantity, space) for limit in limits if limit.quantity != "top1"}
    return Problem.of("", Constraints(space, limits, models), objectives, costs or {}, **options)


def options_of(field, name):
    return field.dimensions[field.column[name]].options


# -- where to look -----------------------------------------------------------------------------------------------------


def test_options_that_a_latency_table_does_not_hold_are_left_out():
    found = problem("latency@fake <= 10ms", known={"latency@fake": of_resolution(8, 16)})
    assert options_of(found.field, "resolution") == (8, 16)
    others = [d for d in SPACE.dimensions if d.name != "resolution"]
    assert all(options_of(found.field, d.name) == d.options for d in others)
    rows = found.field.widen(found.field.sample(np.random.default_rng(0), 500))
    assert np.isfinite(found.constraints.violation(rows)).all()
    assert len(found.feasible)
    assert (found.constraints.violation(found.field.widen(found.feasible)) == 0).all()


def test_options_that_a_table_of_accuracies_does_not_hold_are_left_out():
    column = SPACE.column["stage1.depth"]

    def accuracy(population):
        return np.where(population[:, column] == 1, 0.5, np.nan)

    found = problem("macs <= 2M", accuracy=accuracy)
    assert options_of(found.field, "stage1.depth") == (3,)
    rows = found.field.widen(found.field.sample(np.random.default_rng(0), 500))
    assert np.isfinite(accuracy(rows)).all()
    assert (found.constraints.violation(found.field.widen(found.feasible)) == 0).all()


def test_what_is_known_of_nothing_leaves_the_whole_space():
    found = usable_part(SPACE, lambda population: np.zeros(len(population), dtype=bool))
    assert found.dimensions == SPACE.dimensions


def test_an_option_is_kept_where_few_usable_draws_say_nothing_about_it():
    """One network in 4,000 is usable, five draws of 20,000: they have not seen the options of the other choices."""
    space = ChoiceSpace("sparse", tuple(Dimension(f"d{i}", tuple(range(4))) for i in range(12)))
    found = usable_part(space, lambda population: (population[:, :6] == 0).all(1))
    assert all(options_of(found, f"d{i}") == (0, 1, 2, 3) for i in range(6, 12))


@given(st.integers(0, 2**32 - 1), st.integers(1, 3), st.integers(1, 3))
@settings(deadline=None, max_examples=10)
def test_the_usable_part_holds_all_that_is_usable(seed, few, more):
    """Where options are unusable by themselves, what is left is exactly the rest."""
    rng = np.random.default_rng(seed)
    space = ChoiceSpace("part", tuple(Dimension(f"d{i}", tuple(range(3))) for i in range(4)))
    good = [rng.choice(3, size=size, replace=False) for size in (few, more, 3, 3)]
    found = usable_part(space, lambda p: np.all([np.isin(p[:, c], good[c]) for c in range(4)], axis=0))
    assert [options_of(found, f"d{i}") for i in range(4)] == [tuple(sorted(values.tolist())) for values in good]


def test_start_networks_lie_in_the_usable_part_where_the_cheapest_ones_do_not():
    """What meets the limit most easily has no accuracy; others do."""
    column = SPACE.column["stage3.depth"]

    def accuracy(population):
        return np.where(population[:, column] == 2, 0.5, np.nan)

    found = problem("macs <= 1M", accuracy=accuracy)
    assert options_of(found.field, "stage3.depth") == (4,)
    rows = found.field.widen(found.feasible)
    assert len(rows)
    assert (rows[:, column] == 2).all()
    assert (found.constraints.violation(rows) == 0).all()


def test_a_reward_looks_into_the_usable_part_too():
    middle = of_resolution(12)  # neither the smallest nor the largest network has it
    found = problem("latency@fake <= 1ms", known={"latency@fake": middle}, reward="mnasnet_soft")
    assert options_of(found.field, "resolution") == (12,)
    assert len(found.feasible)


def test_limits_that_nothing_meets_are_refused_but_not_as_targets_of_a_reward():
    with pytest.raises(InfeasibleError, match="nearest feasible value: macs <= "):
        problem("macs <= 1K")
    assert problem("macs <= 1K", reward="mnasnet_hard").feasible.shape[1] == len(SPACE.dimensions)


# -- what is wanted, and what must hold --------------------------------------------------------------------------------


def test_values_are_the_objectives_with_accuracy_negated():
    objectives = parse_objectives("accuracy", ["macs", "params"])
    costs = {key: CountCost(key, SPACE) for key in ("macs", "params")}
    found = problem(objectives=objectives, costs=costs)
    population = SPACE.sample(np.random.default_rng(0), 5)
    top1 = np.array([0.1, 0.2, np.nan, 0.4, 0.5])
    values = found.values(population, top1)
    np.testing.assert_array_equal(values[:, 0], -top1)
    np.testing.assert_array_equal(values[:, 1], costs["macs"].predict(population))
    np.testing.assert_array_equal(values[:, 2], costs["params"].predict(population))


def test_violation_adds_costs_and_accuracy_and_is_infinite_where_no_accuracy_is_known():
    found = problem(
        "macs <= 1M", "accuracy >= 0.8", objectives=parse_objectives(None, "macs"), costs={"macs": CountCost("macs", SPACE)}
    )
    population = SPACE.encode([SPACE.smallest, SPACE.smallest, SPACE.largest, SPACE.largest])
    macs = CountCost("macs", SPACE).predict(population)
    assert macs[0] < 1e6 < macs[2]
    violation = found.violation(population, np.array([0.9, 0.6, 0.6, np.nan]))
    np.testing.assert_allclose(violation, [0, 0.25, macs[2] / 1e6 - 1 + 0.25, np.inf])


@pytest.mark.parametrize("maximize", [None, "accuracy"])
def test_a_network_of_unknown_cost_is_not_the_cheapest(maximize):
    """Of an objective without a limit too: what a table does not price is neither feasible nor best."""
    part = of_resolution(8)
    found = problem(objectives=parse_objectives(maximize, "latency@fake"), costs={"latency@fake": part})
    assert options_of(found.field, "resolution") == (8,)
    population = SPACE.encode([SPACE.smallest, SPACE.largest])
    assert np.isnan(price(part, population)).tolist() == [False, True]
    assert found.violation(population, np.array([0.5, 0.9])).tolist() == [0.0, math.inf]


def test_strategies_are_told_finite_objectives_and_what_is_unknown_misses_the_limits():
    part = of_resolution(8)
    found = problem("macs <= 2M", objectives=parse_objectives("accuracy", "latency@fake"), costs={"latency@fake": part})
    whole = dataclasses.replace(found, field=usable_part(SPACE, lambda population: np.ones(len(population), dtype=bool)))
    population = SPACE.sample(np.random.default_rng(0), 300)
    top1 = np.where(np.arange(300) % 3 == 0, np.nan, 0.5)
    objectives, violation = whole.judge(lambda rows: top1)(population)
    assert np.isfinite(objectives).all()
    unknown = np.isnan(top1) | (population[:, SPACE.column["resolution"]] > 0)
    np.testing.assert_array_equal(np.isinf(violation), unknown)
    met = CountCost("macs", SPACE).predict(population) <= 2e6
    np.testing.assert_array_equal(violation == 0, met & ~unknown)


def test_a_judge_sees_architectures_of_the_whole_space():
    found = problem("latency@fake <= 10ms", known={"latency@fake": of_resolution(16)})
    seen = []

    def accuracy(population):
        seen.append(population)
        return np.full(len(population), 0.5)

    rows = found.field.sample(np.random.default_rng(0), 20)
    found.judge(accuracy)(rows)
    (asked,) = seen
    assert (asked[:, SPACE.column["resolution"]] == 2).all()
    assert (rows[:, found.field.column["resolution"]] == 0).all()


@pytest.mark.parametrize("name", list_strategies())
def test_every_strategy_starts_on_the_usable_part_and_repairs_what_misses_a_limit(name):
    part = of_resolution(12)
    found = problem("latency@fake <= 600us", known={"latency@fake": part})
    assert (found.constraints.violation(found.field.widen(found.field.sample(np.random.default_rng(1), 500))) > 0).mean() > 0
    strategy = found.strategy(name, np.random.default_rng(0), batch=64)
    rows = found.field.widen(strategy.ask())
    assert len(rows)
    assert (rows[:, SPACE.column["resolution"]] == 1).all()
    assert (found.constraints.violation(rows) == 0).all()


# -- rewards -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("reward", "below", "above"), [("mnasnet_soft", -0.07, -0.07), ("mnasnet_hard", 0.0, -1.0)])
def test_a_reward_is_accuracy_times_the_share_of_the_target_to_the_power_of_w(reward, below, above):
    found = problem("macs <= 1M", "params <= 0.1M", reward=reward)
    population = SPACE.sample(np.random.default_rng(0), 50)
    top1 = np.linspace(0.1, 0.9, 50)
    macs, params = (CountCost(name, SPACE).predict(population) for name in ("macs", "params"))
    expected = []
    for accuracy, m, p in zip(top1, macs, params, strict=True):
        for ratio in (m / 1e6, p / 1e5):
            accuracy *= ratio ** (below if ratio <= 1 else above)
        expected.append(-accuracy)
    np.testing.assert_allclose(found.values(population, top1)[:, 0], expected, rtol=1e-12)
    assert found.values(population, top1).shape == (50, 1)
    assert (found.violation(population, top1) == 0).all()


def test_what_has_no_reward_is_not_feasible():
    found = problem("latency@fake <= 1ms", known={"latency@fake": of_resolution(8)}, reward="mnasnet_soft")
    population = SPACE.encode([SPACE.smallest, SPACE.smallest, SPACE.largest])
    violation = found.violation(population, np.array([0.5, np.nan, 0.9]))
    assert violation.tolist() == [0.0, math.inf, math.inf]  # known, no accuracy, no latency
    objectives, _ = found.judge(lambda rows: np.full(len(rows), np.nan))(found.feasible)
    assert np.isfinite(objectives).all()


# -- tables ------------------------------------------------------------------------------------------------------------


def test_costs_of_a_table_are_limits_and_objectives():
    space = ChoiceSpace("two", (Dimension("a", (0, 1, 2)), Dimension("b", (0, 1, 2))))
    everything = space.everything()
    rows = TableRows(space, everything[:-1])  # of one network nothing is known
    cost = TabularCost("latency", rows, 1.0 + everything[:-1].sum(1), device="pi4")
    accuracy = TabularAccuracy(rows, everything[:-1, 0] / 4)
    found = problem(
        "latency@pi4 <= 3ms",
        space=space,
        known={cost.key: cost},
        objectives=parse_objectives("accuracy", "latency@pi4"),
        costs={cost.key: cost},
        accuracy=accuracy.predict,
    )
    objectives, violation = found.judge(accuracy.predict)(found.field.narrow(everything))
    allowed = everything.sum(1) <= 2
    np.testing.assert_array_equal(violation == 0, allowed)
    np.testing.assert_array_equal(objectives[allowed], np.column_stack([-everything[:, 0] / 4, 1.0 + everything.sum(1)])[allowed])
