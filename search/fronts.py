"""The fronts of a run's searches: accuracy against cost with its history, and the choices behind it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

from deploy.limits import UNITS, format_value
from latency.cost import CountCost
from latency.open import LatencyModel
from latency.predictor import LatencyPredictor
from latency.table import LatencyTable
from ofa.run_dir import Run
from ofa.space import ArchConfig, SearchSpace
from search.parallel_plot import MOST_PICKED, ParallelAxis, choice_axes, number_axis, parallel_plot
from search.pareto import non_dominated
from search.pareto_plot import Bound, Point, pareto_plot
from search.past_records import Search
from search.plots import curves_plot
from search.result import Candidate
from search.wording import accuracy, accuracy_scale, brief, cost_name, digits, evenly, unit_of

WIDE, NARROW = (920.0, 420.0), (380.0, 380.0)  # px; a plot that is only scaled down cannot be read on a phone
MOST_NAMED = 8  # chosen networks with their names in a plot; more of them go by number
MOST_POINTS = 1500  # networks in a plot besides the front and the chosen ones: a page must stay small
MOST_THREADS = 150  # networks in parallel coordinates
MOST_COSTS = 4  # axes of costs there
MOST_ROUNDS = 40  # dots of a history


def measured(searches: Iterable[Search]) -> dict[ArchConfig, Candidate]:
    """Return every network that some search knows, each as the active round that measured it saw it."""
    found: dict[ArchConfig, Candidate] = {}
    for search in searches:
        for candidate in (*search.candidates, search.best):
            before = found.get(candidate.arch)
            if before is None or candidate.round > before.round:  # what one search measures, a later one knows from before
                found[candidate.arch] = candidate
    return found


def front(
    run: Run,
    key: str,
    model: LatencyModel | CountCost | None,
    searches: Sequence[Search],
    labels: Mapping[ArchConfig, str],
) -> dict[str, Any] | None:
    """Put all measured networks on one plot of accuracy against one cost.

    Args:
        run: what was searched.
        key: of the cost, as Limit.key.
        model: that prices it; None = as the searches noted it.
        searches: whose accuracies can be compared.
        labels: of chosen networks.

    Returns:
        What the template shows; None if no network's cost is known.
    """
    known, told = measured(searches), searches[0].source
    prices = _prices(run.space, key, model, list(known.values()))
    kept = np.isfinite(prices)  # a table may lack some blocks
    if not kept.any():
        return None
    networks = [candidate for candidate, keep in zip(known.values(), kept.tolist(), strict=True) if keep]
    # multiply-adds are always counted in millions here: a tick then reads the same in every report
    scale, unit = (1e-6, "M") if key == "macs" else unit_of(key, float(prices[kept].max()))
    costs = prices[kept] * scale
    on_front = non_dominated(np.column_stack([costs, [-c.top1 for c in networks]]))
    factor, percent_sign, score = accuracy_scale((c.top1 for c in networks), told)
    bounds = _bounds(key, scale, unit, searches)
    points = []
    for candidate, value, best in zip(networks, costs.tolist(), on_front.tolist(), strict=True):
        label = labels.get(candidate.arch, "")
        what = "M MACs" if key == "macs" else unit
        title = f"{brief(run.space, candidate.arch)}; {score} {accuracy(candidate.top1, told)}, {digits(value)} {what}"
        if candidate.round:
            title += f"; active round {candidate.round}"
        points.append(
            Point(value, factor * candidate.top1, f"{label}: {title}" if label else title, best, label, candidate.round)
        )
    reach = 1.3 * float(costs.max())
    shown = [bound for bound in bounds if bound.cost <= reach]
    device = key.partition("@")[2] if key.startswith("latency@") else ""
    x_title = (
        "Predicted latency, ms"
        if device and model is not None
        else "Multiply-adds (MACs), millions"
        if key == "macs"
        else f"{cost_name(key)}, {unit}"
    )
    # of a table's 100,000 networks all that matter are drawn, and some of the others
    some = set(evenly(len(points), MOST_POINTS))
    drawn = [point for i, point in enumerate(points) if i in some or point.front or point.label]
    y_title = f"{score.capitalize()} {told.where}"
    y_title += f", {percent_sign}" if percent_sign else ""
    wide, narrow = (
        pareto_plot(drawn, shown, x_title=x_title, y_title=y_title, width=width, height=height)
        for width, height in (WIDE, NARROW)
    )
    return {
        "title": f"Device {device}" if device else "Multiply-adds" if key == "macs" else cost_name(key),
        "device": device,
        "unit": "Latency, ms" if device else "MACs, M" if key == "macs" else f"{cost_name(key)}, {unit}",
        "wide": wide,
        "narrow": narrow,
        "beyond": [bound.label for bound in bounds if bound.cost > reach],
        "limited": bool(bounds),
        "margin": isinstance(model, LatencyTable | LatencyPredictor) and bool(model.margin),
        "num_points": len(points),
        "left_out": len(points) - len(drawn),
        "rounds": max(c.round for c in networks),
        "num_active": sum(c.round > 0 for c in networks),
        "front_active": sum(networks[i].round > 0 for i in np.flatnonzero(on_front)),
        "rows": [
            (networks[i].arch, float(costs[i]), networks[i].top1, labels.get(networks[i].arch, ""))
            for i in np.argsort(costs, kind="stable")
            if on_front[i]
        ],
    }


def chosen_labels(searches: Sequence[Search], own: Sequence[Search] | None = None) -> dict[ArchConfig, str]:
    """Return what marks the network that a search chose: the searches' names, or, where there are many, their numbers from 1.

    Args:
        searches: all of the run, in the order of their numbers.
        own: those whose choices are marked; None = all.
    """
    names: dict[ArchConfig, list[str]] = {}
    numbers: dict[ArchConfig, list[int]] = {}
    for i, search in enumerate(searches, 1):
        if own is not None and search not in own:
            continue
        names.setdefault(search.best.arch, []).append(search.name)
        numbers.setdefault(search.best.arch, []).append(i)
    if len(searches) <= MOST_NAMED:
        return {arch: ", ".join(words) for arch, words in names.items()}
    return {arch: _in_runs(found) for arch, found in numbers.items()}


def _in_runs(numbers: Sequence[int]) -> str:
    """Write increasing numbers with their runs drawn together: "1, 4–6"."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ", ".join(str(run[0]) if len(run) == 1 else f"{run[0]}–{run[-1]}" for run in runs)


def _bounds(key: str, scale: float, unit: str, searches: Iterable[Search]) -> list[Bound]:
    names: dict[float, list[str]] = {}
    for search in searches:
        for limit in search.limits:
            if limit.key == key:
                names.setdefault(limit.bound * scale, []).append(search.name)
    return [Bound(value, ", ".join(found), f"≤ {value:.4g} {unit}") for value, found in sorted(names.items())]


def _prices(
    space: SearchSpace, key: str, model: LatencyModel | CountCost | None, candidates: Sequence[Candidate]
) -> NDArray[np.float64]:
    if model is None:
        return np.array([candidate.costs.get(key, np.nan) for candidate in candidates], dtype=np.float64)
    population = space.encode([candidate.arch for candidate in candidates])
    return model.price(population) if isinstance(model, LatencyTable) else model.predict(population)


def threads(run: Run, searches: Sequence[Search], labels: Mapping[ArchConfig, str]) -> dict[str, Any] | None:
    """Draw the searches' fronts as parallel coordinates; None without a front of at least one network and two axes.

    Args:
        run: what was searched.
        searches: whose accuracies can be compared.
        labels: of chosen networks.
    """
    networks = {candidate.arch: candidate for search in searches for candidate in search.front}
    ordered = sorted(networks.values(), key=lambda candidate: -candidate.top1)
    drawn = [ordered[i] for i in evenly(len(ordered), MOST_THREADS)]
    axes = choice_axes(run.space, run.space.encode([candidate.arch for candidate in drawn]))
    wanted = dict.fromkeys(["macs", *(key for search in searches for key in search.cost_keys)])
    keys = [key for key in wanted if any(key in candidate.costs for candidate in drawn)]
    axes += [_cost_axis(key, drawn) for key in keys[:MOST_COSTS]]
    if not drawn or not axes:
        return None
    top1, told = [candidate.top1 for candidate in drawn], searches[0].source
    factor, percent_sign, score = accuracy_scale(top1, told)
    writes = digits if factor == 1 else lambda value: f"{value:.1f}"
    axes.append(number_axis((score, percent_sign), [factor * value for value in top1], writes))
    titles = []
    for candidate in drawn:
        words = [brief(run.space, candidate.arch), f"{score} {accuracy(candidate.top1, told)}"]
        words += [f"{key} {written(key, candidate.costs[key])}" for key in keys if key in candidate.costs]
        titles.append(", ".join([*([labels[candidate.arch]] if candidate.arch in labels else []), *words]))
    plot = parallel_plot(axes, top1, titles, [candidate.arch in labels for candidate in drawn])
    picked = sum(candidate.arch in labels for candidate in drawn) <= MOST_PICKED
    return {"plot": plot, "picked": picked, "drawn": len(drawn), "of": len(ordered), "costs": keys[:MOST_COSTS]}


def written(key: str, value: float) -> str:
    """Write a cost with its unit."""
    quantity = key.partition("@")[0]
    return format_value(quantity, value) if quantity in UNITS else f"{value:.3g}"


def _cost_axis(key: str, candidates: Sequence[Candidate]) -> ParallelAxis:
    quantity, _, where = key.partition("@")
    values = np.array([candidate.costs.get(key, np.nan) for candidate in candidates], dtype=np.float64)
    scale, unit = unit_of(key, float(np.nanmax(values)))
    name = {"macs": "MACs", "params": "parameters", "bitops": "BitOPs"}.get(quantity, quantity)
    title = (f"{name}, {unit}", where) if where else (name, unit)
    return number_axis(title, (values * scale).tolist(), digits)


def history_curves(search: Search) -> list[Markup]:
    """Draw the best accuracy and the hypervolume over the networks measured; nothing after a single round."""
    states = [search.history[i] for i in evenly(len(search.history), MOST_ROUNDS)]
    factor, percent_sign, score = accuracy_scale(
        (state.best_top1 for state in states if state.best_top1 is not None), search.source
    )
    best = [(state.evaluations, factor * state.best_top1) for state in states if state.best_top1 is not None]
    volume = [(state.evaluations, state.hypervolume) for state in states if state.hypervolume is not None]
    title = f"Best {score} so far" + (f", {percent_sign}" if percent_sign else "")
    return [
        curves_plot([("loss", line)], y_title=name, x_title=f"Networks {search.source.done}", height=220)
        for name, line in ((title, best), ("Hypervolume", volume))
        if len(line) > 1
    ]
