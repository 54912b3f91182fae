"""Rewards over a search: what is drawn, where, and what is left out."""

import re
import xml.etree.ElementTree as ET

import pytest

from search.reward_plot import points, reward_plot

LINES = [
    {"epoch": 1, "reward": 0.2, "best_reward": 0.4, "baseline": 0.2},
    {"epoch": 2, "reward": 0.3, "best_reward": 0.6, "baseline": 0.25},
]


def curves(plot):
    """CSS class -> [(x, y), ...] in px."""
    return {
        line.attrib["class"].split()[1]: [tuple(map(float, point.split(","))) for point in line.attrib["points"].split()]
        for line in ET.fromstring(str(plot)).iter()
        if line.tag.endswith("polyline")
    }


def test_mean_best_and_baseline_stand_where_their_values_are():
    drawn = curves(reward_plot(LINES))
    assert list(drawn) == ["random", "smallest", "largest"]  # the mean is drawn last, over the others
    (left, low), (right, high) = drawn["largest"]
    assert left < right
    assert low > high  # px count downwards
    per_unit = (low - high) / 0.1
    assert drawn["smallest"][1][1] == pytest.approx(high - 0.3 * per_unit, abs=0.2)
    assert drawn["random"][0] == drawn["largest"][0]  # the first baseline is the first reward


def test_each_point_says_its_number():
    titles = re.findall(r"<title>(.*?)</title>", str(reward_plot(LINES, x_title="Update")))
    assert "update 2: 0.6" in titles
    assert len(titles) == 6
    assert 'aria-label="Reward over update"' in str(reward_plot(LINES, x_title="Update"))


def test_a_search_without_rewards_has_no_plot():
    assert reward_plot([]) is None
    assert reward_plot([{"epoch": 1, "loss": 2.0}]) is None


def test_a_single_line_and_missing_curves_are_drawn():
    assert set(curves(reward_plot(LINES[:1]))) == {"random", "smallest", "largest"}
    assert set(curves(reward_plot([{"epoch": 1, "reward": 0.2}]))) == {"largest"}


def test_what_is_no_number_is_left_out():
    lines = [*LINES, {"epoch": 3, "reward": "<b>", "baseline": float("nan")}, {"reward": 0.5}, {"epoch": None, "reward": 0.5}]
    assert points(lines, "reward") == [(1.0, 0.2), (2.0, 0.3)]
    assert "<b>" not in str(reward_plot(lines))
