"""The rewards of a controller over its search, as inline SVG: their mean, the best so far, and the baseline."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup

from search.plots import curves_plot

CURVES = {"baseline": "random", "best_reward": "smallest", "reward": "largest"}  # name in metrics.jsonl -> CSS class, last on top


def reward_plot(records: Sequence[Mapping[str, Any]]) -> Markup | None:
    """Plot the rewards of an epoch each, or of a step each where a search has no epochs.

    Args:
        records: lines of metrics.jsonl; `reward` is the mean of those architectures that were rewarded.
    Returns:
        The plot; None if no line has a reward.
    """
    x_name = "epoch" if any("epoch" in record for record in records) else "step"
    lines = [(style, points(records, name, x_name=x_name)) for name, style in CURVES.items()]
    if not lines[-1][1]:
        return None
    return curves_plot([line for line in lines if line[1]], y_title="Reward", x_title=x_name.capitalize())


def points(records: Sequence[Mapping[str, Any]], name: str, *, x_name: str = "epoch") -> list[tuple[float, float]]:
    """Return (epoch, value) of the lines that have such a number."""
    return [(float(r[x_name]), float(r[name])) for r in records if is_number(r.get(name)) and is_number(r.get(x_name))]


def is_number(value: object) -> bool:
    """Tell whether a value of a JSON file can be drawn."""
    return isinstance(value, int | float) and math.isfinite(value)
