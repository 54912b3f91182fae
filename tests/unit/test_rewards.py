"""Rewards of MnasNet and MobileNetV3, computed by hand."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ofa.errors import OfaError
from search.rewards import REWARDS, hard_reward, mnasnet_reward


def reward(name, top1, costs, targets):
    alpha, beta = REWARDS[name]
    return mnasnet_reward(np.array(top1), np.array(costs, float), np.array(targets, float), alpha=alpha, beta=beta).tolist()


def test_soft_reward_by_hand():
    # half, exactly and twice the target: 0.5 ** -0.07 = 1.0497167, 2 ** -0.07 = 0.9526380
    found = reward("mnasnet_soft", [0.7, 0.7, 0.7], [[37.5], [75.0], [150.0]], [75.0])
    assert found == pytest.approx([0.7 * 1.0497167, 0.7, 0.7 * 0.9526380])


def test_hard_reward_by_hand():
    assert reward("mnasnet_hard", [0.7, 0.7, 0.6], [[37.5], [75.0], [150.0]], [75.0]) == pytest.approx([0.7, 0.7, 0.3])


def test_mobilenetv3_reward_by_hand():
    assert reward("mobilenetv3", [0.6], [[150.0]], [75.0]) == pytest.approx([0.6 * 0.9012505])  # 2 ** -0.15


def test_several_targets_multiply():
    # one met and one missed by half: hard takes a third off, soft is the product of both powers
    assert reward("mnasnet_hard", [0.9], [[5.0, 3.0]], [10.0, 2.0]) == pytest.approx([0.6])
    assert reward("mnasnet_soft", [0.9], [[5.0, 3.0]], [10.0, 2.0]) == pytest.approx([0.9 * 1.0497167 * 0.9720165])


@pytest.mark.parametrize(
    ("costs", "targets", "what"),
    [([[0.0]], [1.0], "cost 0.0"), ([[1.0]], [-2.0], "target -2.0"), ([[np.nan]], [1.0], "cost nan")],
)
def test_a_ratio_that_has_no_power_is_refused(costs, targets, what):
    with pytest.raises(OfaError, match=f"{what}: expected only values above zero"):
        reward("mnasnet_hard", [0.5], costs, targets)


@given(st.floats(0.01, 1), st.floats(0.1, 100))
def test_hard_reward_of_a_positive_score_is_mnasnets(top1, latency_ms):
    expected = reward("mnasnet_hard", [top1], [[latency_ms]], [10.0])
    assert hard_reward(np.array([top1]), np.array([max(0.0, latency_ms / 10 - 1)])) == pytest.approx(expected)


@given(st.floats(-1e3, 1e3), st.floats(0, 1e3), st.floats(1e-3, 10), st.floats(1e-3, 1e3))
def test_missing_a_limit_by_more_is_never_better(score, violation, more, scale):
    lower, higher = hard_reward(np.array([score, score]), np.array([violation + more, violation]), scale=scale)
    assert lower <= higher <= score


def test_a_score_of_zero_or_below_pays_for_missing_a_limit():
    assert hard_reward(np.array([0.0, -4.0, 0.0]), np.array([1.0, 1.0, np.inf]), scale=2.0).tolist() == [-1.0, -6.0, -2.0]
