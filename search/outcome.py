"""From what was judged to a result: which networks meet the limits, which form the front, and which is the best."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from latency.cost import CostModel, CountCost
from latency.freshness import is_of_this_machine
from latency.table import LatencyTable
from ofa.run_dir import Run
from ofa.space import Population
from search.active import Trials, best_of
from search.menu import InfeasibleTarget
from search.pareto import hypervolume, non_dominated
from search.predictor import AccuracyPredictor
from search.prices import price
from search.problem import Problem
from search.result import Candidate, SearchResult


@dataclass(frozen=True)
class Outcome:
    """What a search of one target ends with."""

    problem: Problem
    trials: Trials
    predictor: AccuracyPredictor | None
    costs: Mapping[str, CostModel]  # that are reported, by Limit.key
    strategy: str
    accuracy: str
    evaluations: int  # networks judged anew, for all targets


def make_result(run: Run, outcome: Outcome, path: Path) -> SearchResult | InfeasibleTarget:
    """Choose the best of a target; InfeasibleTarget if no network with a known accuracy meets its limits."""
    problem, trials = outcome.problem, outcome.trials
    told = np.flatnonzero(trials.told)
    population, top1 = trials.population[told], trials.top1[told]
    feasible = problem.violation(population, top1) == 0
    limits = () if problem.reward else tuple(map(str, problem.constraints.limits))  # a reward's targets may be missed
    if not feasible.any():
        near = best_of(problem, trials)[0]
        reason = f"none of {len(told)} networks meets {'; '.join(limits)}; the nearest has top1 {trials.top1[near]:.4f}"
        return InfeasibleTarget(problem.name, limits, reason)
    costs = {key: price(model, population) for key, model in outcome.costs.items()}
    candidates = tuple(
        Candidate(
            arch,
            float(top1[i]),
            {key: float(values[i]) for key, values in costs.items() if np.isfinite(values[i])},
            bool(feasible[i]),
            int(trials.round[told[i]]),
            None if np.isnan(trials.predicted[told[i]]) else float(trials.predicted[told[i]]),
        )
        for i, arch in enumerate(run.space.decode(population))
    )
    front = np.flatnonzero(feasible)
    front = front[non_dominated(front_points(problem, population[front], top1[front]))]
    believed = top1
    if outcome.predictor:  # a measured value is noisy and the best of many is the luckiest; a good predictor has seen them all
        weight = max(0.0, outcome.predictor.kendall_tau) / 2
        believed = (1 - weight) * top1 + weight * outcome.predictor.predict(population)
    best = front[problem.values(population[front], believed[front])[:, 0].argmin()]
    predictor = outcome.predictor
    models = problem.constraints.costs.values()
    tables = [model for model in models if isinstance(model, LatencyTable) and is_of_this_machine(model)]
    return SearchResult(
        path=path,
        best=candidates[best],
        candidates=candidates,
        front=tuple(sorted((candidates[i] for i in front), key=lambda c: -c.top1)),
        limits=limits,
        feasibility=tuple(str(found) for found in problem.constraints.ranges),
        predictor=None if predictor is None else _predictor_facts(predictor),
        new_evaluations=outcome.evaluations,
        weights_sha256=run.weights_sha256 if outcome.accuracy == "supernet" else None,
        devices={table.device: table.provenance["device"] for table in tables},
        anchors={table.device: found for table in tables if (found := _anchor(table, candidates[best]))},
        objectives=(_reward_text(problem),) if problem.reward else tuple(map(str, problem.objectives)),
        strategy=outcome.strategy,
        accuracy=outcome.accuracy,
        evals=len(told),
        ranges=tuple({**asdict(found), "limit": str(found.limit)} for found in problem.constraints.ranges),
        history=tuple(_history(problem, trials)),
    )


def _anchor(table: LatencyTable, best: Candidate) -> dict[str, Any] | None:
    """Return the network of a table that was measured to take about as long as the best: what slows one down slows the other."""
    known = table.provenance.get("networks") or []
    near = best.costs.get(f"latency@{table.device}", 0.0)
    found = min(known, key=lambda network: abs(float(network["measured_ms"]) - near), default=None)
    return None if found is None else {"arch": found["arch"], "latency_ms": float(found["measured_ms"])}


def _reward_text(problem: Problem) -> str:
    return f"max {problem.reward} of " + "; ".join(map(str, problem.constraints.limits))


def front_points(problem: Problem, population: Population, top1: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return what a front is of, all to be small, (n, m): accuracy, unless costs alone are wanted, against `front_costs`."""
    columns = []
    for key, model in front_costs(problem).items():
        limit = next((limit for limit in problem.constraints.cost_limits if limit.key == key), None)
        columns.append(problem.constraints.values(limit, population) if limit else price(model, population))
    return np.column_stack([-top1, *columns] if _shows_accuracy(problem) else columns)


def front_costs(problem: Problem) -> dict[str, CostModel]:
    """Return the costs of a front: those that are to be small; else those that are limited; else MACs, where they are known."""
    if len(problem.objectives) > 1:
        return dict(problem.costs)
    costs = {limit.key: problem.constraints.costs[limit.key] for limit in problem.constraints.cost_limits} | dict(problem.costs)
    return costs or ({"macs": CountCost("macs", problem.space)} if problem.space.slots else {})


def front_volume(problem: Problem, population: Population, top1: NDArray[np.float64]) -> tuple[int, float]:
    """Return the size of the front and the share of all that could be had which it dominates, in [0, 1].

    All that could be had lies between a perfect network that costs nothing and a worthless one at the limit, or without a limit
    at the cost of the most expensive network. Scores that are no shares of 1 have no such volume: NaN.
    """
    meets = np.flatnonzero(problem.violation(population, top1) == 0)
    if not len(meets):
        return 0, 0.0
    points = front_points(problem, population[meets], top1[meets])
    points = points[non_dominated(points)]
    bounds = {limit.key: limit.bound for limit in problem.constraints.cost_limits}
    reference = [bounds.get(key) or problem.ceiling(key, model) for key, model in front_costs(problem).items()]
    if not (top1[meets].min() >= 0 and top1[meets].max() <= 1) or not np.isfinite(reference).all():
        return len(points), float("nan")
    if _shows_accuracy(problem):
        points[:, 0] += 1  # from a perfect network
        reference.insert(0, 1.0)
    return len(points), hypervolume(points / np.array(reference), np.ones(len(reference)))


def _shows_accuracy(problem: Problem) -> bool:
    return len(problem.objectives) == 1 or any(objective.maximize for objective in problem.objectives)


def _history(problem: Problem, trials: Trials) -> list[dict[str, float | int | None]]:
    """Return how far the search was after each round."""
    found = []
    for round_ in range(int(trials.round.max(initial=0)) + 1):
        seen = np.flatnonzero((trials.round <= round_) & trials.told)
        population, top1 = trials.population[seen], trials.top1[seen]
        meets = problem.violation(population, top1) == 0
        size, volume = front_volume(problem, population, top1)
        found.append(
            {
                "evaluations": len(seen),
                "best_top1": float(top1[meets].max()) if meets.any() else None,
                "front_size": size,
                "hypervolume": None if np.isnan(volume) else volume,
            }
        )
    return found


def _predictor_facts(predictor: AccuracyPredictor) -> dict[str, Any]:
    return {
        "kind": predictor.kind,
        "kendall_tau": predictor.kendall_tau,
        "macs_tau": None if np.isnan(predictor.macs_tau) else predictor.macs_tau,
        "taus": dict(predictor.taus),
        "held_out": [{"predicted": p, "measured": m} for p, m in predictor.held_out],
    }
