"""The scale on which accuracy is regressed: mostly ranks, spread like draws of a normal distribution."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import norm, rankdata

Values = NDArray[np.float64]
RANKS = 0.7  # share of the normal scores; the rest is top-1 itself
DIGITS = 9  # that count: what differs less is equal, and no piece of the curve is endlessly steep


@dataclass(frozen=True)
class Scale:
    """A rising curve of straight pieces between top-1 and scores of mean 0 and variance about 1, continued beyond its ends.

    Accuracies crowd near the top, with a tail of poor networks that would otherwise take all of a regression's attention; by
    ranks the difference between two good networks counts as much as that between two poor ones. Ranks alone would forget the
    distances between clusters, such as networks of two resolutions. On the tables of benchmarks/predictor_quality.py, 0.7 to 0.3
    ranks the best networks nearly as well as ranks alone, where top-1 alone is far behind, and all networks a little better.
    """

    top1: Values  # (m,) rising
    scores: Values  # (m,) rising

    @classmethod
    def of(cls, measured: Values) -> Scale:
        """Make the curve of measured top-1, (n,); equal ones get one score."""
        measured = np.round(measured, DIGITS)
        top1, first = np.unique(measured, return_index=True)
        ranked = norm.ppf((rankdata(measured)[first] - 0.5) / len(measured))
        plain = (top1 - measured.mean()) / max(float(measured.std()), 10.0**-DIGITS)
        return cls(top1, RANKS * ranked + (1 - RANKS) * plain)

    def to_scores(self, top1: Values) -> Values:
        """Return the scores of top-1, (n,)."""
        return _interpolate(top1, self.top1, self.scores)

    def to_top1(self, scores: Values) -> Values:
        """Return the top-1 that scores stand for, (n,); above the best measured it can pass 1."""
        return _interpolate(scores, self.scores, self.top1)


def _interpolate(values: Values, from_: Values, to: Values) -> Values:
    """Map along straight pieces; beyond the ends go on at the mean slope of the outer quarter."""
    if len(from_) == 1:
        return np.full(len(values), to[0])
    reach = max(1, len(from_) // 4)
    low = (to[reach] - to[0]) / (from_[reach] - from_[0])
    high = (to[-1] - to[-1 - reach]) / (from_[-1] - from_[-1 - reach])
    inside = np.interp(values, from_, to)
    return inside + np.minimum(values - from_[0], 0) * low + np.maximum(values - from_[-1], 0) * high
