"""Search strategies on known landscapes, and what they are made of: proposals without repetition and moves."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from latency.cost import CountCost
from ofa.errors import OfaError
from ofa.space import Dimension
from ofa.spaces import get_space
from search.choice_space import ChoiceSpace
from search.moves import change, change_one, change_some, cross, free_choices
from search.pareto import hypervolume
from search.proposals import Proposals
from search.strategies import get_strategy, list_strategies
from search.strategies.aging_evolution import AgingEvolution
from search.strategies.coarse_to_fine import CoarseToFine, coarse_grid, sort_of
from search.strategies.nsga2 import NSGA2
from search.strategies.random import Random
from search.strategies.reinforce import Reinforce

SPACE = get_space("mbv3_tiny_image")  # 1.2e12 networks
MACS, PARAMS = CountCost("macs", SPACE), CountCost("params", SPACE)
# 2 * 3 * (1 + 3 * (1 + 2)) = 60 networks out of 2 * 3 * 2 * 3 * 2 = 72 rows: the third choice needs the second, the last one it
NESTED = ChoiceSpace(
    "nested",
    (
        Dimension("op", ("conv", "pool")),
        Dimension("a.width", (8, 16, 32)),
        Dimension("b.depth", (1, 2, 3, 4)),
        Dimension("b.width", (8, 16, 32), requires=("b.depth", 1)),
        Dimension("b.kernel_size", (3, 5), requires=("b.width", 1)),
    ),
)
SMALL = ChoiceSpace("small", tuple(Dimension(f"layer{i}.op", ("none", "conv1", "conv3", "pool")) for i in range(6)))  # 4096
TWO = ChoiceSpace("two", (Dimension("a", (1, 2)), Dimension("b", (1, 2, 3))))
ONE = ChoiceSpace("one", (Dimension("a", (1,)),))

NAMES = ("aging_evolution", "coarse_to_fine", "nsga2", "random", "reinforce")
LEARNING = tuple(name for name in NAMES if name != "random")


def landscape(space, seed):
    """Return a function of populations to be small: every option and every pair of options of two choices has a worth."""
    rng = np.random.default_rng(seed)
    options = int(space.num_options.sum())
    alone, pairs = rng.normal(size=options), rng.normal(size=(options, options)) / options**0.5

    def objective(population):
        encoded = space.one_hot(population).astype(float)
        return encoded @ alone + np.einsum("ni,ij,nj->n", encoded, pairs, encoded)

    return objective


def search(strategy, objectives, evaluations, violation=lambda population: np.zeros(len(population))):
    """Ask and tell until so many architectures are judged; return all of them with their objectives and violations."""
    asked = [strategy.ask()]
    while True:
        population = asked[-1]
        strategy.tell(population, objectives(population), violation(population))
        if sum(map(len, asked)) >= evaluations or not len(population):
            break
        asked.append(strategy.ask())
    everything = np.concatenate(asked)
    return everything, objectives(everything), violation(everything)


def make(name, space, seed=0, **settings):
    return get_strategy(name)(space, np.random.default_rng(seed), **settings)


def single(objective):
    return lambda population: objective(population)[:, None]


# -- what all have in common ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("space", [SPACE, get_space("ofa_mbv3_w1_0"), SMALL, NESTED], ids=lambda space: space.name)
def test_proposals_are_canonical_new_and_the_same_for_a_seed(name, space):
    runs = [search(make(name, space, 3, batch=16), single(landscape(space, 0)), 400)[0] for _ in range(2)]
    np.testing.assert_array_equal(*runs)
    assert runs[0].dtype == np.int16
    np.testing.assert_array_equal(runs[0], space.canonical(runs[0]))
    assert (runs[0] < space.num_options).all()
    assert (runs[0] >= 0).all()
    assert len(np.unique(runs[0], axis=0)) == len(runs[0]) == (400 if space is not NESTED else NESTED.size())
    assert not np.array_equal(runs[0], search(make(name, space, 4, batch=16), single(landscape(space, 0)), 400)[0])


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("space", [ONE, TWO, NESTED], ids=lambda space: space.name)
@pytest.mark.parametrize("batch", [1, 4, 200])
def test_a_small_space_is_asked_for_once_as_a_whole(name, space, batch):
    strategy = make(name, space, batch=batch)
    seen, _, _ = search(strategy, single(landscape(space, 0)), 10**9)
    assert len(seen) == space.size()
    assert len(np.unique(seen, axis=0)) == space.size()
    for _ in range(3):
        assert strategy.ask().shape == (0, len(space.dimensions))


@pytest.mark.parametrize("name", NAMES)
def test_start_comes_first_and_repair_holds_for_all(name):
    def lowest_resolution(population, toward=None):
        repaired = population.copy()
        repaired[:, SPACE.column["resolution"]] = 0
        return repaired

    start = lowest_resolution(SPACE.sample(np.random.default_rng(8), 30))
    strategy = make(name, SPACE, batch=20, start=start, repair=lowest_resolution)
    asked = search(strategy, single(landscape(SPACE, 0)), 400)[0]
    np.testing.assert_array_equal(asked[:30], start)
    assert (asked[:, SPACE.column["resolution"]] == 0).all()


@pytest.mark.parametrize("name", NAMES)
def test_a_repair_that_leaves_one_network_ends_the_search(name):
    strategy = make(name, SPACE, repair=lambda population, toward=None: np.zeros_like(population))
    assert [len(strategy.ask()) for _ in range(3)] == [1, 0, 0]


@pytest.mark.parametrize("name", NAMES)
def test_what_was_told_from_elsewhere_is_learnt_and_not_asked_for(name):
    strategy = make(name, NESTED, batch=7)
    everything = NESTED.everything()
    told = everything[::2]
    strategy.tell(told, single(landscape(NESTED, 0))(told), np.zeros(len(told)))
    strategy.ask()  # never told
    strategy.tell(told[:0], np.empty((0, 1)), np.empty(0))
    rest = search(strategy, single(landscape(NESTED, 0)), 10**9)[0]
    assert len(rest) == len(everything) - len(told) - 7
    assert not (rest[:, None] == told).all(2).any()


@pytest.mark.parametrize("name", NAMES)
def test_failed_evaluations_and_unknown_costs_do_not_stop_a_search(name):
    """Objectives are NaN where limits are missed or an evaluation failed; a violation may be infinite."""
    objective = landscape(SMALL, 1)

    def objectives(population):
        values = objective(population)
        return np.where(population[:, 0] == 1, np.nan, values)[:, None]

    def violation(population):
        return np.where(population[:, 1] == 1, np.inf, np.where(population[:, 1] == 2, np.nan, 0.0))

    strategy = make(name, SMALL, batch=50)
    with np.errstate(all="raise"):
        asked = search(strategy, objectives, 1000, violation)[0]
    assert len(asked) == 1000
    if name != "random":  # they turn to where something can be had
        useful = (asked[:, 0] != 1) & ~np.isin(asked[:, 1], (1, 2))
        assert useful[200:600].mean() > 1.2 * (3 / 4 * 2 / 4)


@pytest.mark.parametrize("name", ["aging_evolution", "coarse_to_fine", "reinforce"])
def test_a_second_objective_is_refused_where_one_is_followed(name):
    strategy = make(name, SMALL, batch=5)
    assert not strategy.multi_objective
    asked = strategy.ask()
    with pytest.raises(OfaError, match=f"strategy {name} takes 1 objective, got 2"):
        strategy.tell(asked, np.zeros((5, 2)), np.zeros(5))


@pytest.mark.parametrize(
    ("strategy", "wrong"),
    [
        (AgingEvolution, {"population_size": 0}),
        (AgingEvolution, {"sample_size": 0}),
        (NSGA2, {"population_size": 1}),
        (NSGA2, {"crossover": 1.5}),
        (CoarseToFine, {"grid": 0}),
        (CoarseToFine, {"rate": 0.0}),
        (Reinforce, {"learning_rate": 0.0}),
        (Reinforce, {"decay": 1.0}),
    ],
)
def test_a_setting_out_of_range_is_named(strategy, wrong):
    name, value = next(iter(wrong.items()))
    with pytest.raises(OfaError, match=f"{name} {value}.*expected"):
        strategy(SMALL, np.random.default_rng(0), **wrong)


@pytest.mark.parametrize("name", list_strategies())
@pytest.mark.parametrize("space", [SPACE, NESTED], ids=lambda space: space.name)
def test_every_strategy_keeps_to_the_protocol(name, space):
    """Whatever lies in strategies/: canonical, in range, distinct, the same for a seed, and something to judge at first."""
    runs = []
    for _ in range(2):
        strategy, rows = make(name, space, 1, batch=12, start=space.sample(np.random.default_rng(9), 3)), []
        for _ in range(5):
            asked = strategy.ask()
            np.testing.assert_array_equal(asked, space.canonical(asked))
            assert asked.dtype == np.int16
            assert ((asked >= 0) & (asked < space.num_options)).all()
            assert len(space.distinct(asked)) == len(asked)
            strategy.tell(asked, landscape(space, 0)(asked)[:, None], (asked[:, 0] == 0).astype(float))
            rows.append(asked)
        runs.append(np.concatenate(rows))
        assert len(rows[0]) >= 3
    np.testing.assert_array_equal(*runs)


# -- how well they search -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", LEARNING)
def test_the_only_best_network_of_a_large_space_is_found(name):
    target = SPACE.sample(np.random.default_rng(7), 1)[0]
    asked = search(make(name, SPACE, batch=50), single(lambda p: (p != target).sum(1).astype(float)), 6_000)[0]
    assert (asked == target).all(1).any()


@pytest.mark.parametrize("name", LEARNING)
def test_the_best_network_under_a_limit_is_found_in_a_quarter_of_a_space(name):
    """A table of 4096 networks with interactions, a limit that a third meets; random search finds the best with chance 1/4."""
    everything, objective = SMALL.everything(), landscape(SMALL, 2)
    cost = np.array([0.0, 1.0, 9.0, 0.5])
    violation = lambda population: np.maximum(0, cost[population].sum(1) / 12 - 1)  # noqa: E731
    feasible = violation(everything) == 0
    assert 0.2 < feasible.mean() < 0.5
    optimum = objective(everything)[feasible].min()
    found = 0
    for seed in range(8):
        _, values, missed = search(make(name, SMALL, seed, batch=10), single(objective), 1024, violation)
        found += bool(values[missed == 0].min() == pytest.approx(optimum))
    assert found >= 6


@pytest.mark.parametrize("name", LEARNING)
def test_better_than_random_at_equal_evaluations_under_a_limit(name):
    objective = landscape(SPACE, 5)
    bound = np.quantile(MACS.predict(SPACE.sample(np.random.default_rng(0), 5_000)), 0.05)
    violation = lambda population: np.maximum(0, MACS.predict(population) / bound - 1)  # noqa: E731

    def best(which, seed):
        _, values, missed = search(make(which, SPACE, seed, batch=25), single(objective), 1_000, violation)
        return values[missed == 0].min()

    # the worst of five runs against the best of five
    assert max(best(name, seed) for seed in range(5)) < min(best("random", seed) for seed in range(5))


@pytest.mark.parametrize("name", LEARNING)
def test_a_region_that_uniform_draws_never_hit_is_reached(name):
    violation = lambda population: np.maximum(0, MACS.predict(population) / 0.25e6 - 1)  # noqa: E731
    assert (violation(SPACE.sample(np.random.default_rng(0), 20_000)) > 0).all()
    missed = search(make(name, SPACE, batch=50), lambda p: np.zeros((len(p), 1)), 6_000, violation)[2]
    assert (missed == 0).any()


def test_random_search_is_uniform():
    asked = search(Random(SMALL, np.random.default_rng(0), batch=500), lambda p: np.zeros((len(p), 2)), 2000)[0]
    counts = np.stack([(asked == option).sum(0) for option in range(4)])
    assert (abs(counts / 2000 - 0.25) < 5 * (0.25 * 0.75 / 2000) ** 0.5).all()


# -- aging evolution ------------------------------------------------------------------------------------------------


def test_aging_evolution_of_one_child_is_the_published_rule():
    objective = landscape(SPACE, 0)
    # the winner of a sample of 10,000 out of 10 is the best of them
    strategy = AgingEvolution(SPACE, np.random.default_rng(0), batch=1, population_size=10, sample_size=10_000)
    history = []
    for _ in range(200):
        child = strategy.ask()
        assert len(child) == 1
        if len(history) >= 10:
            alive = np.concatenate(history[-10:])  # the oldest died
            np.testing.assert_array_equal(strategy.population, alive)
            parent = alive[objective(alive).argmin()]
            both = SPACE.active(child)[0] & SPACE.active(parent[None])[0]
            assert (child[0] != parent)[both].sum() == 1
        history.append(child)
        strategy.tell(child, objective(child)[:, None], np.zeros(1))


@pytest.mark.parametrize("space", [SPACE, SMALL], ids=lambda space: space.name)
def test_aging_evolution_beats_random_within_a_hundred_evaluations(space):
    """A search of 100 networks asks for 20 at a time; a population that is as large as the budget would be random search."""
    wins, gains = [], []
    for seed in range(40):
        objective = landscape(space, seed % 4)
        spread = objective(space.sample(np.random.default_rng(1), 2_000)).std()
        evolved, drawn = (
            search(make(name, space, seed, batch=20), single(objective), 100)[1].min() for name in ("aging_evolution", "random")
        )
        wins.append(evolved < drawn)
        gains.append((drawn - evolved) / spread)
    assert np.mean(wins) >= 0.8
    assert np.mean(gains) > 0.3


@pytest.mark.parametrize(
    ("batch", "population", "sample"), [(1, 10, 5), (4, 10, 5), (20, 20, 10), (100, 100, 25), (2048, 2048, 25)]
)
def test_aging_evolution_keeps_as_many_as_it_asks_for_at_a_time(batch, population, sample):
    strategy = AgingEvolution(SPACE, np.random.default_rng(0), batch=batch)
    assert (strategy.population_size, strategy.sample_size) == (population, sample)


def test_aging_evolution_prefers_networks_that_meet_the_limits():
    strategy = AgingEvolution(SMALL, np.random.default_rng(0), batch=4, population_size=4, sample_size=1000)
    alive = np.zeros((4, 6), dtype=np.int16)
    alive[:, 0] = range(4)
    alive[:, 5] = (0, 0, 3, 0)
    strategy.tell(alive, np.array([[0.0], [1.0], [9.0], [2.0]]), np.array([0.1, 0.2, 0.0, 0.3]))
    assert ((strategy.ask() != alive[2]).sum(1) == 1).all()


# -- NSGA-II --------------------------------------------------------------------------------------------------------


def test_nsga2_covers_more_than_random_at_equal_evaluations():
    costs = (landscape(SPACE, 0), MACS.predict, PARAMS.predict)
    drawn = SPACE.sample(np.random.default_rng(0), 5_000)
    units = [f(drawn).std() for f in costs]

    def objectives(population):
        return np.column_stack([f(population) / unit for f, unit in zip(costs, units, strict=True)])

    reference = objectives(drawn).max(0)

    def covered(strategy):
        return hypervolume(search(strategy, objectives, 2_000)[1], reference)

    volumes = {
        which: [covered(which(SPACE, np.random.default_rng(seed), batch=50)) for seed in range(3)] for which in (NSGA2, Random)
    }
    assert min(volumes[NSGA2]) > 1.2 * max(volumes[Random])


def test_nsga2_finds_the_whole_front_of_two_objectives():
    """Ones and twos count against each other: the front is all networks without other options, in 9 steps."""
    space = ChoiceSpace("steps", tuple(Dimension(f"d{i}", (0, 1, 2, 3)) for i in range(8)))

    def objectives(population):
        wrong = (population % 3 == 0).sum(1)
        return np.column_stack([(population == 1).sum(1) + 2 * wrong, (population == 2).sum(1) + 2 * wrong]).astype(float)

    strategy = NSGA2(space, np.random.default_rng(0), batch=50)
    search(strategy, objectives, 4_000)
    assert {tuple(row) for row in strategy.objectives.tolist()} >= {(float(i), float(8 - i)) for i in range(9)}


def test_nsga2_survivors_follow_rank_limits_and_room():
    strategy = NSGA2(SMALL, np.random.default_rng(0), population_size=3)
    told = SMALL.sample(np.random.default_rng(1), 6)
    objectives = np.array([[0.0, 9.0], [9.0, 0.0], [4.0, 4.0], [4.5, 3.9], [-9.0, -9.0], [9.0, 9.0]])
    violation = np.array([0, 0, 0, 0, 0.1, 0])
    strategy.tell(told, objectives, violation)
    # the ends of the front and the roomier of the two between: (4.5 + 5.1) / 9 against (5 + 4) / 9
    assert sorted(map(tuple, strategy.objectives.tolist())) == [(0.0, 9.0), (4.0, 4.0), (9.0, 0.0)]
    strategy.tell(told[:1], np.array([[20.0, 20.0]]), np.zeros(1))  # judged again
    assert (0.0, 9.0) not in set(map(tuple, strategy.objectives.tolist()))


# -- coarse to fine -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "sort"),
    [
        ("stage3.block1.kernel_size", "kernel_size"),
        ("resolution", "resolution"),
        ("edge4", "edge"),
        ("normal.node_2", "node"),
        ("7", "7"),
    ],
)
def test_sort_is_the_last_part_of_a_name_without_its_number(name, sort):
    assert sort_of(name) == sort


def test_networks_of_the_grid_are_alike_throughout():
    grid = coarse_grid(SPACE, 1_000)
    sorts = np.array([sort_of(d.name) for d in SPACE.dimensions])
    active = SPACE.active(grid)
    for sort in set(sorts):
        of_sort = np.where(active[:, sorts == sort], grid[:, sorts == sort], -1)
        assert (np.where(of_sort < 0, of_sort.max(1, keepdims=True), of_sort) == of_sort.max(1, keepdims=True)).all()
    assert len(grid) == 3**4  # resolution, depth, kernel size, expand ratio
    for end in (SPACE.smallest, SPACE.largest):
        assert (grid == SPACE.canonical(SPACE.encode([end]))).all(1).any()


@given(st.integers(1, 2_000))
@settings(deadline=None)
def test_a_grid_is_thinned_evenly_and_keeps_its_ends(limit):
    space = ChoiceSpace("sorts", (Dimension("a", tuple(range(25))), Dimension("b", (1, 2, 3)), Dimension("c", tuple(range(9)))))
    grid = coarse_grid(space, limit)
    assert len(grid) <= limit
    levels = [np.unique(column) for column in grid.T]
    assert len(grid) == np.prod([len(level) for level in levels])
    for level, last in zip(levels, space.num_options - 1, strict=True):
        if len(level) > 1:
            assert (level[0], level[-1]) == (0, last)
            assert np.ptp(np.diff(level)) <= 1
    assert len(grid) * 2 >= min(limit, 675) or limit < 8


def test_coarse_to_fine_asks_for_the_grid_first_then_ever_finer_changes_of_the_best():
    objective = landscape(SPACE, 3)
    strategy = CoarseToFine(SPACE, np.random.default_rng(0), batch=27, parents=10)
    grid = {row.tobytes() for row in coarse_grid(SPACE, 400)}
    distances = []
    for batch in range(30):
        asked = strategy.ask()
        if batch < 3:
            assert {row.tobytes() for row in asked} <= grid
        else:
            assert not {row.tobytes() for row in asked} & grid
            differ = (asked[:, None] != strategy.population) & SPACE.active(asked)[:, None] & SPACE.active(strategy.population)
            distances.append(differ.sum(2).min(1).mean())
        strategy.tell(asked, objective(asked)[:, None], np.zeros(len(asked)))
    assert np.mean(distances[-5:]) < 0.5 * np.mean(distances[:5])


def test_changes_stay_within_the_options_after_ever_so_many_proposals():
    strategy = CoarseToFine(SPACE, np.random.default_rng(0), batch=20, parents=10)
    strategy.tell(SPACE.encode([SPACE.largest]), np.zeros((1, 1)), np.zeros(1))
    strategy._fine = 10**6  # where the coarseness is 0 to the last bit
    for population in (strategy._changed(200), strategy.ask()):
        assert (population < SPACE.num_options).all()
        assert (population >= 0).all()


def test_numbers_move_less_and_less_far_and_words_do_not():
    numbers = tuple(Dimension(f"n{i}", tuple(range(64))) for i in range(8))
    words = tuple(Dimension(f"w{i}", tuple(map(str, range(10, 74)))) for i in range(8))
    space = ChoiceSpace("wide", numbers + words)
    objective = lambda population: population.sum(1).astype(float)  # noqa: E731
    strategy = CoarseToFine(space, np.random.default_rng(0), batch=50, parents=5, decay=0.9)
    far = []
    for _ in range(40):
        asked = strategy.ask()
        if len(strategy.population):
            parent = (asked[:, None] != strategy.population).sum(2).argmin(1)
            moved = abs(asked - strategy.population[parent])
            # nine of ten: where the neighbourhood is known, proposals go further
            far.append((np.quantile(moved[:, :8].max(1), 0.9), moved[:, 8:].max()))
        strategy.tell(asked, objective(asked)[:, None], np.zeros(len(asked)))
    assert max(n for n, _ in far[8:13]) > 8
    assert max(n for n, _ in far[-5:]) <= 3
    assert max(w for _, w in far[-5:]) > 16


# -- REINFORCE ------------------------------------------------------------------------------------------------------


def bandit(seed, *, scale=1.0, shift=0.0, noise=0.0):
    """Return the best options of twelve independent choices, and noisy objectives in which every choice has its worth."""
    rng = np.random.default_rng(seed)
    worth = np.stack([rng.permutation(4) for _ in range(12)]).astype(float)
    return (
        worth.argmax(1),
        lambda population: (
            shift - scale * (worth[np.arange(12), population].sum(1) + noise * rng.normal(size=len(population)))[:, None]
        ),
    )


@pytest.mark.parametrize(
    ("batch", "scale", "shift", "noise"), [(200, 1.0, 0.0, 0.0), (20, 1e-3, 0.0, 1.0), (20, 1e3, -1e5, 1.0), (1, 1.0, 50.0, 0.0)]
)
def test_reinforce_converges_on_a_bandit_whatever_the_unit(batch, scale, shift, noise):
    space = ChoiceSpace("bandit", tuple(Dimension(f"arm{i}", tuple("abcd")) for i in range(12)))
    best, objectives = bandit(0, scale=scale, shift=shift, noise=noise)
    strategy = Reinforce(space, np.random.default_rng(0), batch=batch)
    search(strategy, objectives, 5_000 if batch > 1 else 1_500)
    policy = strategy.policy()
    np.testing.assert_allclose(policy.sum(1), 1)
    np.testing.assert_array_equal(policy.argmax(1), best)
    assert policy.max(1).min() > 0.5


def test_reinforce_leaves_choices_without_effect_alone():
    """The second block's width matters only at depth 2, which is never drawn once the policy prefers depth 1."""
    space = ChoiceSpace(
        "inactive",
        (Dimension("depth", (1, 2)), Dimension("width", (1, 2, 3), requires=("depth", 1)), Dimension("op", tuple("abcd"))),
    )
    strategy = Reinforce(space, np.random.default_rng(0), entropy_bonus=0.0)
    shallow = space.canonical(np.array([[0, 0, o] for o in range(4)], dtype=np.int16))
    strategy.tell(shallow, np.arange(4.0)[:, None], np.zeros(4))
    policy = strategy.policy()
    np.testing.assert_array_equal(policy[1, :3], 1 / 3)
    assert policy[2].argmax() == 0


# -- proposals ------------------------------------------------------------------------------------------------------


def test_a_drawing_that_finds_nothing_new_is_called_a_bounded_number_of_times():
    calls = []

    def same(n):
        calls.append(n)
        return np.zeros((n, 28), dtype=np.int16)[:, : len(SPACE.dimensions)]

    proposals = Proposals(SPACE, np.random.default_rng(0))
    taken = proposals.take(5, same)
    assert len(taken) == 5  # the others are uniform
    assert len(calls) < 20
    assert len(proposals.take(5, same)) == 5


# -- moves ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("space", [SPACE, SMALL, NESTED], ids=lambda space: space.name)
def test_one_change_changes_one_choice_that_matters(space):
    population = space.sample(np.random.default_rng(0), 2_000)
    changed = change_one(space, population, np.random.default_rng(1))
    np.testing.assert_array_equal(changed, space.canonical(changed))
    both = space.active(population) & space.active(changed)
    assert (((changed != population) & both).sum(1) == 1).all()


def test_every_choice_and_every_other_option_is_equally_likely():
    population = np.ones((24_000, 6), dtype=np.int16)
    changed = change_one(SMALL, population, np.random.default_rng(0))
    counts = np.stack([(changed == option).sum(0) for option in (0, 2, 3)])
    expected = 24_000 / 18
    assert (abs(counts - expected) < 5 * expected**0.5).all()


def test_some_changes_are_one_on_average():
    population = SPACE.sample(np.random.default_rng(0), 20_000)
    changed = change_some(SPACE, population, np.random.default_rng(1))
    both = SPACE.active(population) & SPACE.active(changed)
    chosen = ((changed != population) & both).sum(1)
    assert abs(chosen.mean() - 1) < 0.05
    assert chosen.min() == 0


def test_a_block_that_is_added_is_drawn_anew():
    shallow = np.repeat(SPACE.canonical(SPACE.encode([SPACE.smallest])), 3_000, axis=0)
    chosen = np.zeros(shallow.shape, dtype=bool)
    chosen[:, SPACE.column["stage1.depth"]] = True
    grown = change(SPACE, shallow, chosen, np.random.default_rng(0))
    kernel = grown[:, SPACE.column["stage1.block2.kernel_size"]]
    assert (abs(np.bincount(kernel, minlength=3) / 3_000 - 1 / 3) < 0.05).all()
    others = ~np.isin(np.arange(shallow.shape[1]), [c for n, c in SPACE.column.items() if n.startswith("stage1.")])
    np.testing.assert_array_equal(grown[:, others], shallow[:, others])


@given(st.integers(0, 2**32 - 1), st.integers(1, 3))
@settings(deadline=None, max_examples=30)
def test_a_change_stays_within_reach(seed, reach):
    space = ChoiceSpace("line", (Dimension("x", tuple(range(9))), Dimension("y", (1,)), Dimension("z", (1, 2, 3))))
    rng = np.random.default_rng(seed)
    population = space.sample(rng, 50)
    changed = change(space, population, np.ones(population.shape, bool), rng, reach=np.full(3, reach))
    distance = abs(changed - population)
    assert (distance[:, [0, 2]] >= 1).all()
    assert (distance[:, 1] == 0).all()
    assert distance.max() <= reach


def test_a_child_takes_every_choice_from_a_parent_that_has_it():
    rng = np.random.default_rng(0)
    first, second = SPACE.sample(rng, 2_000), SPACE.sample(rng, 2_000)
    child = cross(SPACE, first, second, rng)
    np.testing.assert_array_equal(child, SPACE.canonical(child))
    active, of_first, of_second = (SPACE.active(p) for p in (child, first, second))
    from_first, from_second = of_first & (child == first), of_second & (child == second)
    assert (from_first | from_second | ~active | ~(of_first | of_second)).all()
    assert 0.3 < (child == first)[(first != second) & of_first & of_second & active].mean() < 0.7


def test_free_choices_have_an_effect_and_another_option():
    population = SPACE.encode([SPACE.smallest])
    np.testing.assert_array_equal(free_choices(SPACE, population), SPACE.active(population))
    assert not free_choices(ONE, np.zeros((2, 1), np.int16)).any()
