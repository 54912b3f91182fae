"""Predicted against measured accuracy: of networks that were predicted first, and of those that a predictor did not know."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from markupsafe import Markup

from latency.cost import CountCost
from ofa.run_dir import Run
from ofa.space import ArchConfig
from search.past_records import Search
from search.past_searches import comparable
from search.plots import agreement_plot
from search.wording import Source, accuracy_scale, evenly

MOST_POINTS = 600  # networks in a plot: a page must stay small


@dataclass(frozen=True)
class Agreement:
    """Predicted against measured accuracy on some networks."""

    plot: Markup
    n: int
    tau: float | None  # Kendall's, None = undefined or unknown
    macs_tau: float | None
    bias: float  # mean of measured - predicted, in `unit`
    error: float  # mean of |measured - predicted|
    unit: str  # "points" of a percentage, or "" for a score
    source: Source  # of what is called measured


def foreseen(run: Run, searches: Iterable[Search]) -> Agreement | None:
    """Compare what active rounds predicted with what they then measured; None if there were none.

    A network that several searches asked for counts once. Of several sources of accuracies, that with the most networks is shown.
    """
    found = [(own, _active_pairs(own)) for own in comparable(searches)]
    own, pairs = max(found, key=lambda group: len(group[1]), default=([], {}))
    if not pairs:
        return None
    top1 = [value for _, value in pairs.values()]
    if run.space.slots:
        macs = CountCost("macs", run.space).predict(run.space.encode(list(pairs))).tolist()
    else:  # as the searches noted them, if they did so for all
        noted = {c.arch: c.costs["macs"] for search in own for c in search.candidates if "macs" in c.costs}
        macs = [noted[arch] for arch in pairs] if noted.keys() >= pairs.keys() else []
    return _agreement(
        own[0].source, list(pairs.values()), rank_agreement([p for p, _ in pairs.values()], top1), rank_agreement(macs, top1)
    )


def _active_pairs(searches: Iterable[Search]) -> dict[ArchConfig, tuple[float, float]]:
    """Return (predicted, measured) accuracy of every network of an active round."""
    pairs: dict[ArchConfig, tuple[float, float]] = {}
    for search in searches:
        for candidate in search.candidates:
            if candidate.round and candidate.predicted is not None:
                pairs.setdefault(candidate.arch, (candidate.predicted, candidate.top1))
    return pairs


def held_out(searches: Iterable[Search]) -> tuple[Search, Agreement] | None:
    """Return the search whose accuracy predictor was fitted to the most networks, and how it did on those it did not know."""
    best, facts = None, None
    for search in searches:
        if (
            search.predictor
            and search.predictor.held_out
            and len(search.predictor.held_out) > len(facts.held_out if facts else ())
        ):
            best, facts = search, search.predictor
    return (best, _agreement(best.source, facts.held_out, facts.kendall_tau, facts.macs_tau)) if best and facts else None


def rank_agreement(first: Sequence[float], second: Sequence[float]) -> float | None:
    """Return Kendall's tau-b; None if it is undefined, as for equal values or fewer than three.

    Counted pair by pair: scipy.stats, which has it, takes longer to import than a report to write.
    """
    if len(first) != len(second) or len(first) < 3:
        return None
    a, b = np.asarray(first, dtype=np.float64), np.asarray(second, dtype=np.float64)
    agree = untied_a = untied_b = 0.0
    for i in range(len(a) - 1):
        x, y = np.sign(a[i + 1 :] - a[i]), np.sign(b[i + 1 :] - b[i])
        agree, untied_a, untied_b = agree + float(x @ y), untied_a + float(x @ x), untied_b + float(y @ y)
    return agree / math.sqrt(untied_a * untied_b) if untied_a and untied_b else None


def _agreement(told: Source, pairs: Sequence[tuple[float, float]], tau: float | None, macs_tau: float | None) -> Agreement:
    difference = np.array([value - predicted for predicted, value in pairs])
    factor, unit, name = accuracy_scale((measured for _, measured in pairs), told)
    drawn = [pairs[i] for i in evenly(len(pairs), MOST_POINTS)]
    plot = agreement_plot(
        [(factor * p, factor * m) for p, m in drawn],
        quantity=name,
        unit=unit,
        true="Measured" if told.kind == "images" else "Told",
    )
    bias, error = factor * float(difference.mean()), factor * float(np.abs(difference).mean())
    return Agreement(plot, len(pairs), tau, macs_tau, bias, error, "points" if unit else "", told)
