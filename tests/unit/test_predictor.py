"""Accuracy predictors: what they learn, admit and remember; MIT's predictors against their published answers."""

import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from latency.cost import CountCost
from ofa.errors import OfaError
from ofa.space import Dimension
from ofa.spaces import get_space
from search.choice_space import ChoiceSpace
from search.features import Features
from search.normal_scores import NormalScores
from search.predictor import fit_predictor
from search.regressors import list_regressors

SPACE = get_space("mbv3_tiny_image")
CHOICES = ChoiceSpace("chain", tuple(Dimension(f"layer{i}", ("identity", "k3", "k5")) for i in range(6)))
DATA = Path(__file__).parents[3] / "shared" / "data"
MIT = DATA / "mit_ofa"
QUICK = sorted(set(list_regressors()) - {"mlp", "torch_mlp"})


def teach(space, rng, n, noise=0.003):
    """Networks and a top-1 with main effects, an interaction and measurement noise."""
    population = space.sample(rng, n)
    worth = np.random.default_rng(99).normal(0, 0.01, sum(space.num_options))
    top1 = 0.8 + space.one_hot(population) @ worth + 0.02 * (population[:, 0] == population[:, 1])
    return population, top1 + rng.normal(0, noise, n)


# -- spaces of choices alone -----------------------------------------------------------------------------------------


def test_a_choice_space_samples_and_counts_but_builds_nothing():
    assert CHOICES.size() == 3**6
    assert len(np.unique(CHOICES.sample(np.random.default_rng(0), 20_000), axis=0)) == 3**6
    with pytest.raises(OfaError, match="chain is known by its choices alone: no network can be built"):
        CHOICES.blocks(CHOICES.largest)
    with pytest.raises(OfaError, match="no dimensions"):
        ChoiceSpace("empty")
    assert CHOICES.with_num_classes(10).num_classes == 10


# -- features and scale ----------------------------------------------------------------------------------------------


def test_features_are_the_choices_and_the_logarithms_of_counted_costs():
    population = SPACE.sample(np.random.default_rng(0), 50)
    found, layout = Features(SPACE)(population), Features(SPACE).layout
    np.testing.assert_array_equal(found[:, : layout.num_one_hot], SPACE.one_hot(population))
    for name in ("params", "macs"):
        np.testing.assert_allclose(found[:, layout.column(name)], np.log(CountCost(name, SPACE).predict(population)), rtol=1e-6)
    assert Features(CHOICES).layout.costs == ()
    sizes = [SPACE.dimensions[d].options for d in sorted(set(layout.dimension))]
    assert [layout.dimension.count(d) for d in range(len(sizes))] == [len(options) for options in sizes]


@given(st.lists(st.floats(0, 1), min_size=2, max_size=40), st.lists(st.floats(-1, 2), min_size=2, max_size=10))
@settings(deadline=None)
def test_normal_scores_keep_the_order_and_read_back(measured, others):
    scale = NormalScores.of(np.array(measured))
    order = np.sort(np.array([*measured, *others]))
    if len(set(measured)) > 1:
        assert (np.diff(scale.to_scores(order)) >= 0).all()
    np.testing.assert_allclose(scale.to_top1(scale.to_scores(np.array(measured))), measured, atol=1e-9)


# -- fitting ---------------------------------------------------------------------------------------------------------


def test_predictor_learns_what_macs_cannot_tell_and_reports_held_out_tau():
    rng = np.random.default_rng(0)
    population = SPACE.sample(rng, 80)
    truth = 0.9 - 0.05 * (population[:, SPACE.column["resolution"]] == 0) + 0.002 * population[:, SPACE.column["stage3.depth"]]
    measured = truth + rng.normal(0, 1e-3, len(truth))
    predictor = fit_predictor(SPACE, population, measured)
    assert predictor.kendall_tau > predictor.macs_tau
    fresh = SPACE.sample(rng, 200)
    low = fresh[:, SPACE.column["resolution"]] == 0
    predicted = predictor.predict(fresh)
    assert predicted[low].max() < predicted[~low].min()


def test_predictor_of_noise_admits_that_it_ranks_nothing():
    rng = np.random.default_rng(0)
    predictor = fit_predictor(SPACE, SPACE.sample(rng, 60), rng.random(60))
    assert abs(predictor.kendall_tau) < 0.35


def test_predictor_of_equal_accuracies_predicts_them():
    population = SPACE.sample(np.random.default_rng(0), 20)
    predictor = fit_predictor(SPACE, population, np.full(20, 0.7))
    np.testing.assert_allclose(predictor.predict(population), 0.7)
    assert predictor.kendall_tau == 0


def test_predictor_needs_ten_subnets():
    with pytest.raises(ValueError, match="at least 10"):
        fit_predictor(SPACE, SPACE.sample(np.random.default_rng(0), 9), np.zeros(9))


def test_predictor_refuses_accuracy_that_is_no_number():
    with pytest.raises(ValueError, match="top-1 is nan"):
        fit_predictor(SPACE, SPACE.sample(np.random.default_rng(0), 12), np.array([0.5] * 11 + [math.nan]))
