"""Active rounds: what is measured next, how much, and for whom."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deploy.limits import parse_limit
from latency.cost import CountCost
from ofa.space import Dimension
from ofa.spaces import get_space
from search.active import Trials, active_rounds, best_of, front_of, propose
from search.choice_space import ChoiceSpace
from search.constraints import Constraints
from search.objectives import parse_objectives
from search.pareto import hypervolume
from search.problem import Problem

SPACE = get_space("mbv3_tiny_image")
GRID = ChoiceSpace("grid", (Dimension("a", tuple(range(12))), Dimension("b", tuple(range(12)))))
ACCURACY = parse_objectives(None, None)
BOTH = parse_objectives("accuracy", "macs")


class Sum:
    """A cost of GRID: the sum of its choices, and one."""

    quantity = "macs"

    def predict(self, population):
        return population.sum(1) + 1.0


class Oracle:
    """A predictor that knows a function, and doubts it by another one."""

    def __init__(self, accuracy, doubt=lambda population: np.full(len(population), 1e-6)):
        self.predict, self.uncertainty = accuracy, doubt


def grid_problem(*texts, objectives=ACCURACY, name=""):
    limits = tuple(map(parse_limit, texts))
    costs = {"macs": Sum()}
    return Problem.of(name, Constraints(GRID, limits, costs), objectives, {o.key: Sum() for o in objectives if not o.maximize})


def problem(*texts, objectives=ACCURACY):
    limits = tuple(map(parse_limit, texts))
    costs = {limit.key: CountCost(limit.quantity, SPACE) for limit in limits}
    wanted = {o.key: CountCost(o.key, SPACE) for o in objectives if not o.maximize}
    return Problem.of("", Constraints(SPACE, limits, costs), objectives, wanted)


def peak(population):
    """An accuracy of GRID with its peak in the middle, 0.9."""
    return 0.9 - 0.01 * np.abs(population - [[6, 7]]).sum(1)


def size(population):
    """An accuracy of SPACE that grows with the choices."""
    return (population / np.array([len(d.options) for d in SPACE.dimensions])).mean(1)


def trials_of(space, population, top1):
    trials = Trials(space)
    trials.add(space.distinct(population), top1(space.distinct(population)), 0)
    return trials


def run(problems, trials, accuracy, *, evals, batch, seed=0, strategy="evolution", fit=None, evaluations=2000):
    """Search actively; returns what was measured, round by round."""
    asked = []

    def measure(population):
        asked.append(population)
        return accuracy(population)

    active_rounds(
        problems,
        trials,
        measure,
        fit or (lambda population, top1: Oracle(accuracy)),
        evals=evals,
        batch=batch,
        strategy=strategy,
        evaluations=evaluations,
        rng=np.random.default_rng(seed),
    )
    return asked


def keys(space, batches):
    return space.keys(np.concatenate(batches)).tolist()


# -- how much, and what ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("strategy", ["evolution", "local", "random"])
@pytest.mark.parametrize(("evals", "batch"), [(23, 5), (4, 10), (7, 1)])
def test_exactly_the_evaluations_are_spent_on_new_networks_that_meet_the_limits(strategy, evals, batch):
    found = problem("macs <= 1M")
    trials = trials_of(SPACE, SPACE.sample(np.random.default_rng(1), 30), size)
    known = set(SPACE.keys(trials.population).tolist())
    asked = run([found], trials, size, evals=evals, batch=batch, strategy=strategy, evaluations=1500)
    measured = keys(SPACE, asked)
    assert len(measured) == len(set(measured)) == evals
    assert max(map(len, asked)) <= batch
    assert not known & set(measured)
    assert (CountCost("macs", SPACE).predict(np.concatenate(asked)) <= 1e6).all()
    assert len(trials) == len(known) + evals
    assert trials.round.tolist() == sorted(trials.round.tolist())
    assert trials.round[-1] == len(asked)


def test_evaluations_are_spent_although_the_front_of_the_predictor_is_measured():
    """What a predictor believes to be the front is measured soon; the rest of the evaluations is not given up."""
    found = problem(objectives=BOTH)
    trials = trials_of(SPACE, SPACE.sample(np.random.default_rng(1), 30), size)

    def all_the_same(population):  # then the smallest network is the whole front
        return np.full(len(population), 0.5)

    asked = run([found], trials, all_the_same, evals=40, batch=10, strategy="nsga2", evaluations=1500)
    assert len(set(keys(SPACE, asked))) == 40


def test_it_ends_when_everything_that_meets_the_limits_is_measured():
    found = grid_problem("macs <= 0.004K")  # sums up to 3: ten networks
    trials = trials_of(GRID, GRID.encode([GRID.smallest]), peak)
    asked = np.concatenate(run([found], trials, peak, evals=50, batch=4))
    assert len(asked) == 9
    assert (asked.sum(1) <= 3).all()


def test_a_target_with_nothing_left_does_not_end_the_search_of_the_others():
    tight, loose = grid_problem("macs <= 0.002K", name="tight"), grid_problem(name="loose")  # three networks, and all
    trials = trials_of(GRID, GRID.encode([GRID.smallest]), peak)
    for batch in (1, 2, 5):
        trials = trials_of(GRID, GRID.encode([GRID.smallest]), peak)
        asked = run([tight, loose], trials, peak, evals=40, batch=batch)
        assert len(set(keys(GRID, asked))) == 40


def test_targets_share_a_batch_and_take_turns():
    """Each wants its own corner, so that every proposal says whose it is."""

    class Corner(Sum):
        def __init__(self, corner):
            self.corner = np.array(corner)

        def predict(self, population):
            return np.abs(population - self.corner).sum(1) + 1.0

    corners = [(0, 0), (0, 11), (11, 0)]
    limit = parse_limit("macs <= 0.005K")
    problems = [Problem.of(str(c), Constraints(GRID, (limit,), {"macs": Corner(c)}), ACCURACY, {}) for c in corners]
    middle = GRID.encode([GRID.arch(a=6, b=6)])

    def whose(asked):
        distance = np.array([np.abs(np.concatenate(asked) - c).sum(1) for c in corners])
        return np.bincount(distance.argmin(0), minlength=3).tolist()

    assert whose(run(problems, trials_of(GRID, middle, peak), peak, evals=12, batch=6)) == [4, 4, 4]
    assert whose(run(problems, trials_of(GRID, middle, peak), peak, evals=15, batch=1)) == [5, 5, 5]
    assert max(whose(run(problems, trials_of(GRID, middle, peak), peak, evals=20, batch=4))) == 7


@pytest.mark.parametrize("objectives", [ACCURACY, BOTH], ids=["one", "two"])
def test_the_same_seed_asks_for_the_same_networks(objectives):
    strategy = "evolution" if len(objectives) == 1 else "nsga2"

    def asked(seed):
        trials = trials_of(SPACE, SPACE.sample(np.random.default_rng(1), 20), size)
        found = problem("macs <= 2M", objectives=objectives)
        return keys(SPACE, run([found], trials, size, evals=12, batch=6, seed=seed, strategy=strategy, evaluations=1200))

    assert asked(0) == asked(0)
    assert asked(0) != asked(1)


def test_the_global_generator_is_left_alone():
    np.random.seed(7)
    before = np.random.get_state()[1].tolist()
    run([grid_problem()], trials_of(GRID, GRID.encode([GRID.smallest]), peak), peak, evals=5, batch=5)
    assert np.random.get_state()[1].tolist() == before


def test_a_network_whose_accuracy_cannot_be_told_is_passed_over_and_not_asked_for_again():
    def broken(population):
        return np.where(population.sum(1) % 2 == 0, np.nan, peak(population))

    fitted = []

    def fit(population, top1):
        fitted.append((len(population), np.isfinite(top1).all()))
        return Oracle(peak)

    trials = trials_of(GRID, GRID.encode([GRID.arch(a=0, b=1), GRID.smallest]), broken)
    asked = run([grid_problem()], trials, broken, evals=30, batch=6, fit=fit)
    assert len(set(keys(GRID, asked))) == 30
    assert all(fine for _, fine in fitted)
    assert fitted[-1][0] == trials.told.sum() < len(trials)
    best = trials.population[best_of(grid_problem(), trials)[0]]
    assert broken(best[None])[0] == np.nanmax(trials.top1)


def test_trials_remember_what_was_predicted_before_it_was_measured():
    trials = trials_of(GRID, GRID.encode([GRID.smallest]), peak)
    run([grid_problem()], trials, peak, evals=6, batch=3, fit=lambda population, top1: Oracle(lambda p: np.full(len(p), 0.25)))
    assert np.isnan(trials.predicted[0])
    assert trials.predicted[1:].tolist() == [0.25] * 6
    trials.add(trials.population, np.ones(len(trials)), 9)  # known ones are passed over
    assert len(trials) == 7
    assert trials.round.max() == 2


def test_the_best_of_a_large_space_is_found_by_a_predictor_that_knows_it():
    found = problem("macs <= 1M")
    trials = trials_of(SPACE, SPACE.sample(np.random.default_rng(1), 30), size)
    everything = SPACE.sample(np.random.default_rng(2), 20_000)
    allowed = everything[CountCost("macs", SPACE).predict(everything) <= 1e6]
    run([found], trials, size, evals=10, batch=5, evaluations=8000)
    meets = found.violation(trials.population, trials.top1) == 0
    assert trials.top1[meets].max() > size(allowed).max()


# -- which of the candidates -------------------------------------------------------------------------------------------


def test_one_objective_takes_the_best_by_rising_boldness():
    """With a doubt that differs, the first of a batch is the best as predicted and the last the best with two deviations."""
    rng = np.random.default_rng(0)
    values = {key: (rng.random(), 0.3 * rng.random()) for key in GRID.keys(GRID.everything()).tolist()}

    def look(column):
        return lambda population: np.array([values[key][column] for key in GRID.keys(population).tolist()])

    trials = trials_of(GRID, GRID.sample(rng, 20), look(0))
    proposed = propose(
        grid_problem(), Oracle(look(0), look(1)), trials, 5, strategy="evolution", evaluations=100, rng=np.random.default_rng(0)
    )
    rest = trials.without_known(GRID.everything())
    expected = []
    for bold in np.linspace(0, 2, 5):
        order = np.argsort(-(look(0)(rest) + bold * look(1)(rest)), kind="stable")
        expected.append(next(int(i) for i in order if int(i) not in expected))
    np.testing.assert_array_equal(proposed, rest[expected])
    assert len(set(expected)) == 5


@given(st.integers(0, 2**32 - 1))
@settings(deadline=None, max_examples=15)
def test_several_objectives_take_what_adds_most_volume(seed):
    """Against all candidates tried one after the other, with the same normalisation: each gain is the largest there is."""
    rng = np.random.default_rng(seed)
    table = rng.random(GRID.size()).round(2)
    cost = rng.integers(1, 50, GRID.size()).astype(float)

    def accuracy(population):
        return table[GRID.keys(population).astype(np.int64)]

    class Random(Sum):
        def predict(self, population):
            return cost[GRID.keys(population).astype(np.int64)]

    found = Problem.of("", Constraints(GRID, (), {}), BOTH, {"macs": Random()})
    trials = trials_of(GRID, GRID.sample(rng, 15), accuracy)
    oracle = Oracle(accuracy, lambda population: np.zeros(len(population)))
    proposed = propose(found, oracle, trials, 4, strategy="nsga2", evaluations=100, rng=np.random.default_rng(0))
    rest = trials.without_known(GRID.everything())
    points = found.values(rest, accuracy(rest))
    front = found.values(trials.population, trials.top1)[front_of(found, trials.population, trials.top1)]
    low, high = np.concatenate([front, points]).min(0), np.concatenate([front, points]).max(0)
    reference = np.full(2, 1.05)

    def volume(*rows):
        return hypervolume((np.concatenate([front, *rows]) - low) / (high - low), reference)

    at = {key: i for i, key in enumerate(GRID.keys(rest).tolist())}
    chosen = [at[key] for key in GRID.keys(proposed).tolist()]
    assert len(set(chosen)) == len(chosen) == 4
    for n, i in enumerate(chosen):
        gains = [volume(points[chosen[:n]], points[[j]]) for j in range(len(rest)) if j not in chosen[:n]]
        assert volume(points[chosen[:n]], points[[i]]) == pytest.approx(max(gains))


def test_a_front_lies_within_the_limits():
    found = grid_problem("macs <= 0.01K", "accuracy >= 0.8", objectives=BOTH)
    everything = GRID.everything()
    front = everything[front_of(found, everything, peak(everything))]
    assert len(front)
    assert (Sum().predict(front) <= 10).all()
    assert (peak(front) >= 0.8).all()
    allowed = everything[(Sum().predict(everything) <= 10) & (peak(everything) >= 0.8)]
    for row in front:
        better = (Sum().predict(allowed) <= Sum().predict(row[None])) & (peak(allowed) >= peak(row[None]))
        strictly = (Sum().predict(allowed) < Sum().predict(row[None])) | (peak(allowed) > peak(row[None]))
        assert not (better & strictly).any()


def test_no_network_that_misses_a_limit_is_proposed_where_few_meet_it():
    found = problem("macs <= 0.25M")  # one network in thousands
    trials = trials_of(SPACE, SPACE.sample(np.random.default_rng(1), 20), size)
    assert (found.constraints.violation(trials.population) > 0).all()
    asked = np.concatenate(run([found], trials, size, evals=12, batch=6))
    assert len(asked) == 12
    assert (CountCost("macs", SPACE).predict(asked) <= 0.25e6).all()
