"""The rewards of a controller over its search, as inline SVG: their mean, the best so far, and the baseline."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup

from search.plots import curves_plot

CURVES = {"baseline": "random", "best_reward": "smallest", "reward": "largest"}  # name in metrics.jsonl -> CSS class, last on top


def reward_plot(records: Sequence[Mapping[str, Any]], *, x_title: str = "Epoch") -> Markup | None:
    """Plot rewards over the lines of metrics.jsonl.

    Args:
        records: the lines; `reward` is the mean of those architectures that were rewarded.
        x_title: what a line is of.
    Returns:
        The plot; None if no line has a reward.
    """
    lines = [(style, points(records, name)) for name, style in CURVES.items()]
    if not lines[-1][1]:
        return None
    return curves_plot([line for line in lines if line[1]], y_title="Reward", x_title=x_title)


def points(records: Sequence[Mapping[str, Any]], name: str) -> list[tuple[float, float]]:
    """Return (epoch, value) of the lines that have such a number."""
    return [(float(r["epoch"]), float(r[name])) for r in records if is_number(r.get(name)) and is_number(r.get("epoch"))]


def is_number(value: object) -> bool:
    """Tell whether a value of a JSON file can be drawn."""
    return isinstance(value, int | float) and math.isfinite(value)
