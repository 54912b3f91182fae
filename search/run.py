"""Search a trained run for the most accurate network under limits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from latency.cost import CostModel, CountCost
from latency.energy_cost import EnergyCost
from latency.freshness import is_of_this_machine
from latency.open import open_latency
from latency.plan import spread_networks
from latency.table import LatencyTable
from ofa.errors import OfaError
from ofa.progress import say
from ofa.run_dir import Run
from ofa.space import ArchConfig, Population
from search.accuracy import AccuracyModel, SupernetAccuracy
from search.constraints import Constraints
from search.pareto import non_dominated
from search.predictor import AccuracyPredictor, fit_predictor
from search.result import Candidate, SearchResult
from search.strategies.evolution import Evolution, EvolutionConfig

JOURNAL = "trials.jsonl"
MIN_NETWORKS = 100  # below that, measuring all of them is quicker than predicting


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchConfig:
    """Budget of a search, in subnets whose accuracy is measured."""

    evals: int = 60  # spread over the space, the same for all searches of a run, to fit the predictor
    finalists: int = 6  # most promising ones under the limits, measured and fitted again, `rounds` times
    rounds: int = 2
    seed: int = 0

    def __post_init__(self) -> None:
        for name, least in (("evals", 10), ("finalists", 1), ("rounds", 1), ("seed", 0)):
            if getattr(self, name) < least:
                raise OfaError(f"{name} is {getattr(self, name)}, expected at least {least}")


def search_run(
    run: Run | Path | str,
    limits: Sequence[str] = (),
    *,
    tag: str | None = None,
    config: SearchConfig | None = None,
    accuracy: AccuracyModel | None = None,
) -> SearchResult:
    """Find the most accurate network that meets all limits, and write it to <run>/search[/<tag>]/best.

    Args:
        run: directory of a trained run, with a latency table for every device that a limit names.
        limits: e.g. ["latency@ort_cpu_1t <= 3ms", "params <= 1.5M"]; all must hold.
        tag: name of this search's folder; None = the run's own search/ folder.
        config: how many subnets to measure.
        accuracy: what tells the accuracy; None = the run's supernet on validation images.
    Raises:
        InfeasibleError: if nothing meets the limits; it names the nearest feasible value. No accuracy is measured before.
        OfaError: if a limit, a table or the run cannot be read.
    """
    config = config or SearchConfig()
    run = run if isinstance(run, Run) else Run(run)
    if tag is not None and (not tag or Path(tag).name != tag or tag in (".", "..", "best", "front.json", JOURNAL)):
        raise OfaError(f"tag {tag!r}: expected a plain folder name other than 'best', 'front.json' and {JOURNAL!r}")
    if run.space.size() < MIN_NETWORKS:
        raise OfaError(
            f"{run.path}: its space holds {run.space.size()} network(s), expected at least {MIN_NETWORKS} to search; "
            "export one as it is: ofa export arch.json --run RUN -o OUT"
        )
    constraints = Constraints.for_run(run, limits)
    for found in constraints.ranges:
        say(str(found))
    start = constraints.require_feasible()
    if len(limits) > 1:
        say(f"all limits together: {constraints.joint_share():.1%} of the space fits")

    costs = _reported_costs(run, constraints)
    journal = run.path / "search" / JOURNAL
    measured = accuracy if accuracy is not None else SupernetAccuracy(run, journal)
    before = len(_known(measured))
    design = _design(run, config)
    if isinstance(measured, SupernetAccuracy):
        known = measured.count_known(design)
        say(f"{len(design)} subnets for the predictor, {known} of them measured before")
    top1 = dict(zip(design, measured(design).tolist(), strict=True))
    for arch in _known(measured):
        top1.setdefault(arch, float(measured([arch])[0]))

    predictor = _fit(run, top1)
    for round_ in range(config.rounds):
        proposed = _finalists(run, constraints, predictor, start, top1, config, round_)
        if not proposed:
            break
        top1.update(zip(proposed, measured(proposed).tolist(), strict=True))
        predictor = _fit(run, top1)
    say(
        f"predictor ({predictor.kind}): Kendall tau {predictor.kendall_tau:.2f} on held-out subnets, "
        f"MACs alone {predictor.macs_tau:.2f}"
        + ("; nothing ranks them better than MACs" if predictor.kendall_tau <= predictor.macs_tau else "")
    )
    weights = run.weights_sha256 if isinstance(measured, SupernetAccuracy) else None
    result = _result(run, constraints, costs, predictor, top1, tag, weights, new=len(top1) - before)
    result.save(run)
    return result


def _known(accuracy: AccuracyModel) -> list[ArchConfig]:
    return accuracy.all_known() if isinstance(accuracy, SupernetAccuracy) else []


def _design(run: Run, config: SearchConfig) -> list[ArchConfig]:
    """Subnets that teach the predictor: half uniform, half spread over the range of MACs, whatever the limits are."""
    rng = np.random.default_rng((config.seed, 0xDE51))
    space = run.space
    if space.size() <= config.evals:
        return _distinct(space.decode(space.sample(rng, 50 * config.evals)))
    spread = spread_networks(space, rng, config.evals // 2)
    archs = _distinct(space.decode(np.concatenate([spread, space.sample(rng, 4 * config.evals)])))
    return archs[: config.evals]


def _fit(run: Run, top1: dict[ArchConfig, float]) -> AccuracyPredictor:
    return fit_predictor(run.space, run.space.encode(list(top1)), np.array(list(top1.values())))


def _finalists(
    run: Run,
    constraints: Constraints,
    predictor: AccuracyPredictor,
    start: Population,
    top1: dict[ArchConfig, float],
    config: SearchConfig,
    round_: int,
) -> list[ArchConfig]:
    """Evolve under the limits with the predictor as judge; the best that were not measured yet."""
    strategy = Evolution(run.space, np.random.default_rng((config.seed, round_)), EvolutionConfig(), start)
    for _ in range(strategy.config.generations):
        asked = strategy.ask()
        strategy.tell(asked, predictor.predict(asked), constraints.violation(asked))
    feasible = strategy.population[strategy.violation == 0]
    return [arch for arch in run.space.decode(feasible) if arch not in top1][: config.finalists]


def _result(
    run: Run,
    constraints: Constraints,
    models: dict[str, CostModel],
    predictor: AccuracyPredictor,
    top1: dict[ArchConfig, float],
    tag: str | None,
    weights_sha256: str | None,
    *,
    new: int,
) -> SearchResult:
    archs = list(top1)
    population = run.space.encode(archs)
    costs = {key: _price(model, population) for key, model in models.items()}
    feasible = np.flatnonzero(constraints.violation(population) == 0)
    accuracy = np.array(list(top1.values()))
    candidates = tuple(
        Candidate(
            arch, top1[arch], {key: float(values[i]) for key, values in costs.items() if np.isfinite(values[i])}, i in feasible
        )
        for i, arch in enumerate(archs)
    )
    keys = [limit.key for limit in constraints.limits] or ["macs"]
    front = feasible[non_dominated(np.column_stack([-accuracy, *(costs[key] for key in keys)])[feasible])]
    # A measured value is noisy and the best of many is the luckiest; the predictor has seen them all. Their mean decides.
    best = front[((accuracy + predictor.predict(population)) / 2)[front].argmax()]
    return SearchResult(
        path=run.path / "search" / tag if tag else run.path / "search",
        best=candidates[best],
        candidates=candidates,
        front=tuple(sorted((candidates[i] for i in front), key=lambda c: -c.top1)),
        limits=tuple(str(limit) for limit in constraints.limits),
        feasibility=tuple(str(found) for found in constraints.ranges),
        predictor={
            "kind": predictor.kind,
            "kendall_tau": predictor.kendall_tau,
            "macs_tau": predictor.macs_tau,
            "held_out": [{"predicted": p, "measured": m} for p, m in predictor.held_out],
        },
        new_evaluations=new,
        weights_sha256=weights_sha256,
        devices={
            model.device: model.provenance["device"]
            for model in constraints.costs.values()
            if isinstance(model, LatencyTable) and is_of_this_machine(model)
        },
    )


def _price(model: CostModel, population: Population) -> NDArray[np.float64]:
    """Price architectures, NaN where a table does not hold all of their blocks, (n,)."""
    return model.price(population) if isinstance(model, LatencyTable | EnergyCost) else model.predict(population)


def _reported_costs(run: Run, constraints: Constraints) -> dict[str, CostModel]:
    """MACs, parameters and the latency on every device that the run has a table of."""
    costs: dict[str, CostModel] = {name: CountCost(name, run.space) for name in ("macs", "params")}
    for path in sorted((run.path / "latency").glob("*.json")):
        try:
            costs[f"latency@{path.stem}"] = open_latency(path, run.space)
        except OfaError as error:  # a table that a limit needs was read before; without another one the search still stands
            say(f"warning: {error}; latency on {path.stem} is left out")
    return costs | dict(constraints.costs)


def _distinct(archs: list[ArchConfig]) -> list[ArchConfig]:
    return list(dict.fromkeys(archs))
