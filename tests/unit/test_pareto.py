"""Pareto fronts, ranks, crowding and hypervolume, against their definitions."""

import itertools
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from ofa.errors import OfaError
from search.pareto import constrained_fronts, crowding, fronts, hypervolume, non_dominated, require_single

GRID = 4  # coordinates are 0..GRID, so that ties and duplicates are common


def points(columns=st.integers(1, 5), rows=st.integers(0, 14), elements=None):
    numbers = st.integers(0, GRID).map(float) if elements is None else elements
    return columns.flatmap(lambda m: rows.flatmap(lambda n: arrays(np.float64, (n, m), elements=numbers)))


def dominates(p, q):
    return bool((p <= q).all() and (p < q).any())


def ranks_by_definition(rows):
    """Peel front after front."""
    ranks, rank, left = {}, 0, list(range(len(rows)))
    while left:
        front = [i for i in left if not any(dominates(rows[j], rows[i]) for j in left)]
        ranks.update(dict.fromkeys(front, rank))
        left, rank = [i for i in left if i not in front], rank + 1
    return [ranks[i] for i in range(len(rows))]


# -- who dominates whom ---------------------------------------------------------------------------------------------


@given(points())
@settings(deadline=None)
def test_non_dominated_equals_the_definition(rows):
    assert non_dominated(rows).tolist() == [not any(dominates(q, p) for q in rows) for p in rows]


@given(points(elements=st.floats(-1e3, 1e3) | st.sampled_from([np.inf, -np.inf, np.nan, 0.0, -0.0])))
@settings(deadline=None)
def test_non_dominated_of_any_floats_equals_the_definition(rows):
    whole = ~np.isnan(rows).any(1)
    expected = [bool(usable) and not any(dominates(q, p) for q in rows[whole]) for p, usable in zip(rows, whole, strict=True)]
    assert non_dominated(rows).tolist() == expected


@pytest.mark.parametrize("columns", [2, 3, 4])
def test_non_dominated_of_many_points_equals_the_definition(columns):
    rows = np.random.default_rng(columns).integers(0, 60, (1500, columns)).astype(float)  # more than one block, with ties
    smaller, no_larger = ((op(rows[:, None], rows[None])) for op in (np.less, np.less_equal))
    dominated = (no_larger.all(2) & smaller.any(2)).any(0)
    np.testing.assert_array_equal(non_dominated(rows), ~dominated)


def test_non_dominated_never_keeps_nan():
    assert non_dominated(np.array([[np.nan, 0.0], [1.0, 1.0]])).tolist() == [False, True]


@pytest.mark.parametrize("columns", [0, 1, 2, 3, 5])
def test_no_points_have_no_front(columns):
    nothing = np.empty((0, columns))
    assert [len(f(nothing)) for f in (non_dominated, fronts, crowding)] == [0, 0, 0]


@pytest.mark.parametrize("shape", ["uniform", "all non-dominated"])
def test_front_of_20_000_points_in_three_objectives_takes_well_under_a_second(shape):
    rows = np.abs(np.random.default_rng(0).normal(size=(20_000, 3)))
    if shape == "all non-dominated":
        rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    took = []
    for _ in range(3):  # the best of three, since the machine may be busy
        began = time.perf_counter()
        non_dominated(rows)
        took.append(time.perf_counter() - began)
    assert min(took) < 0.5


# -- ranks ----------------------------------------------------------------------------------------------------------


@given(points())
@settings(deadline=None)
def test_fronts_equal_peeling_one_front_after_the_other(rows):
    assert fronts(rows).tolist() == ranks_by_definition(rows)


def test_rows_with_nan_are_ranked_last():
    assert fronts(np.array([[2.0, 2.0], [np.nan, 0.0], [1.0, 1.0], [0.0, np.nan]])).tolist() == [1, 2, 0, 2]


def test_limits_come_before_objectives():
    objectives = np.array([[5.0], [1.0], [0.0], [np.nan], [np.nan], [7.0], [5.0]])
    violation = np.array([0.0, 0.5, 0.1, 0.1, 0.0, np.nan, 0.0])
    # two equal feasible ones; then by violation, whether judged or not; a failed evaluation and an unknown violation last
    assert constrained_fronts(objectives, violation).tolist() == [0, 2, 1, 1, 3, 3, 0]


@given(points(columns=st.integers(1, 3), rows=st.integers(0, 10)), st.randoms(use_true_random=False))
@settings(deadline=None)
def test_constrained_fronts_follow_debs_comparison(rows, random):
    violation = np.array([random.choice([0.0, 0.0, 0.5, 1.0]) for _ in rows])
    ranks = constrained_fronts(rows, violation)
    for i, j in itertools.permutations(range(len(rows)), 2):
        if violation[i] < violation[j] or (violation[i] == violation[j] == 0 and dominates(rows[i], rows[j])):
            assert ranks[i] < ranks[j]
        elif violation[i] == violation[j] > 0:
            assert ranks[i] == ranks[j]


def test_a_strategy_for_one_objective_names_those_for_several():
    require_single("reinforce", np.zeros((3, 1)))
    with pytest.raises(OfaError, match="strategy reinforce takes 1 objective, got 2; use nsga2 or random"):
        require_single("reinforce", np.zeros((3, 2)))


# -- crowding -------------------------------------------------------------------------------------------------------


def test_crowding_by_hand():
    rows = np.array([[0.0, 10.0], [4.0, 0.0], [1.0, 6.0], [3.0, 5.0]])
    # (3 - 0) / 4 + (10 - 5) / 10 and (4 - 1) / 4 + (6 - 0) / 10
    np.testing.assert_allclose(crowding(rows), [np.inf, np.inf, 1.25, 1.35])


@given(points(columns=st.integers(1, 3), elements=st.floats(0, 1)))
@settings(deadline=None)
def test_crowding_of_several_fronts_is_that_of_each_alone(rows):
    ranks = fronts(rows)
    together = crowding(rows, ranks)
    for rank in set(ranks.tolist()):
        np.testing.assert_array_equal(together[ranks == rank], crowding(rows[ranks == rank]))


def test_crowding_of_equal_points_is_a_number():
    assert not np.isnan(crowding(np.ones((5, 2)))).any()


# -- hypervolume ----------------------------------------------------------------------------------------------------


def volume_by_cells(rows, reference):
    """Count the unit cells of the grid that some point covers."""
    cells = itertools.product(*(range(int(r)) for r in reference))
    return sum(any((row <= cell).all() for row in rows) for cell in map(np.array, cells))


@given(points(), st.integers(1, GRID + 1))
@settings(deadline=None)
def test_hypervolume_equals_counting_cells(rows, side):
    """Some points lie at or beyond the reference, since coordinates reach GRID."""
    reference = np.full(rows.shape[1], float(min(side, 3) if rows.shape[1] > 3 else side))
    assert hypervolume(rows, reference) == pytest.approx(volume_by_cells(rows, reference))


@given(points(rows=st.integers(0, 7), elements=st.floats(-2, 1.5)))
@settings(deadline=None)
def test_hypervolume_equals_inclusion_and_exclusion(rows):
    reference = np.ones(rows.shape[1])
    inside = rows[(rows < reference).all(1)]
    expected = sum(
        (-1) ** (k + 1) * np.prod(reference - np.max(subset, axis=0))
        for k in range(1, len(inside) + 1)
        for subset in itertools.combinations(inside, k)
    )
    assert hypervolume(rows, reference) == pytest.approx(expected, abs=1e-9)


def test_points_beyond_the_reference_and_nan_count_nothing():
    rows = np.array([[0.0, 1.0, 0.5], [np.nan, 0.0, 0.0], [-5.0, 0.0, 1.5]])
    assert hypervolume(rows, np.ones(3)) == 0.0
    assert hypervolume(np.vstack([rows, [[0.5, 0.5, 0.5]]]), np.ones(3)) == 0.125


@pytest.mark.parametrize("columns", [1, 2, 3, 4])
def test_no_points_have_no_volume(columns):
    assert hypervolume(np.empty((0, columns)), np.ones(columns)) == 0.0
    assert hypervolume(np.empty(0), np.ones(columns)) == 0.0


def test_reference_of_another_width_is_refused():
    with pytest.raises(ValueError, match=r"points are \(3, 2\), the reference has 3 value"):
        hypervolume(np.zeros((3, 2)), np.ones(3))
