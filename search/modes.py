"""The three ways to spend evaluations: on accuracy that is cheap, directly on measurements, or guided by a predictor."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from latency.cost import CostModel
from latency.plan import spread_networks
from ofa.errors import OfaError
from ofa.progress import progress, say
from ofa.run_dir import Run
from ofa.space import Population
from ofa.subspace import SubSpace
from search.accuracy import AccuracyModel, JournalledAccuracy, PopulationAccuracy
from search.active import Trials, active_rounds, best_of
from search.measuring import Measuring, asking
from search.optimise import Found, exhaust, optimise
from search.predictor import AccuracyPredictor, fit_predictor
from search.problem import Problem
from search.regressors import get_regressor
from search.tabular import TabularAccuracy

EVALS = 100  # measured networks, unless told
PREDICTIONS = 200_000  # networks judged where judging is cheap, unless told
PROPOSAL = 20_000  # networks that a predictor judges for each proposal
DESIGN = 0.4  # share of measurements that teach the predictor about the whole space
FEWEST = 10  # networks that a predictor needs
MISSES = 10_000  # networks that a strategy may ask for in vain
KEPT = 512  # networks of a search on cheap accuracy that are reported


@dataclass(frozen=True, slots=True)
class Plan:
    """How to search: what search_targets was asked for."""

    strategy: str
    evals: int | None
    rounds: int
    predictor: str
    seed: int

    def __post_init__(self) -> None:
        for kind in self.kinds or ():
            get_regressor(kind)  # says which there are
        for name, least in (("evals", 1), ("rounds", 1), ("seed", 0)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise OfaError(f"{name} is {value}, expected at least {least}")

    @property
    def kinds(self) -> list[str] | None:
        """Kinds of predictors to choose from; None = those that are tried unless told otherwise, or no predictor at all."""
        return None if self.predictor in ("auto", "none") else [kind.strip() for kind in self.predictor.split(",")]


def spend(
    run: Run,
    problems: Sequence[Problem],
    model: AccuracyModel | PopulationAccuracy,
    plan: Plan,
    known: Mapping[str, CostModel],
) -> tuple[Trials, AccuracyPredictor | None, int]:
    """Return what was judged, the predictor if one was fitted, and how many networks were judged anew.

    Args:
        known: costs that the source of accuracy knows, by Limit.key; where blocks cannot be counted, they help to predict.
    """
    if isinstance(model, PopulationAccuracy):
        return _search_cheap(run, problems, model, plan)
    trials = Trials(run.space)
    _recall(trials, model)
    evals = plan.evals or EVALS
    with Measuring(run, problems, model, trials, evals) as measure:
        if plan.predictor == "none":
            _search_directly(problems, measure, plan, evals)
            return trials, None, measure.new
        fitted = _search_actively(run, problems, trials, measure, plan, evals, known)
        return trials, fitted, measure.new


def _search_cheap(run: Run, problems: Sequence[Problem], model: PopulationAccuracy, plan: Plan) -> tuple[Trials, None, int]:
    trials = Trials(run.space)
    budget = plan.evals or PREDICTIONS
    predict = asking(model)
    listed = model.rows.population if isinstance(model, TabularAccuracy) and 0 < len(model.rows) <= budget else None
    judged = 0
    with progress("judging networks", budget * len(problems)) as advance:
        for problem in problems:
            done = 0

            def show(found: Found) -> bool:
                nonlocal done
                advance(found.evaluations - done, note=_note(problem, found))  # noqa: B023
                done = found.evaluations
                return True

            if listed is not None:  # in a large space a strategy would find few of them
                problem = replace(problem, field=SubSpace(run.space, {}))
            judge = problem.judge(predict)
            if listed is not None or problem.field.size() <= budget:
                found = exhaust(problem.field, judge, most=KEPT, population=listed)
                advance(budget, note=_note(problem, found))
                say(f"all {found.evaluations} networks were judged: none is better than what is returned")
            else:
                batch = min(2048, max(16, budget // 8))
                start = problem.field.narrow(trials.population[best_of(problem, trials)[: batch // 4]]) if len(trials) else None
                strategy = problem.strategy(plan.strategy, np.random.default_rng(plan.seed), batch=batch, start=start)
                found = optimise(problem.field, judge, strategy, evaluations=budget, most=KEPT, on_batch=show)
            rows = problem.field.widen(found.population)
            trials.add(rows, predict(rows), 0)
            judged += found.evaluations
    return trials, None, judged


def _note(problem: Problem, found: Found) -> str:
    if found.violation[0] > 0:
        return "nothing meets the limits yet"
    names = [f"reward {problem.reward}"] if problem.reward else list(map(str, problem.objectives))
    best = ", ".join(f"{name} {abs(value):.4g}" for name, value in zip(names, found.objectives[0], strict=True))
    return f"{best}, front {len(found.population)}" if found.objectives.shape[1] > 1 else best


def _recall(trials: Trials, model: AccuracyModel) -> None:
    """Begin with everything that the journal knows."""
    if isinstance(model, JournalledAccuracy):
        archs = model.all_known()
        if archs:
            population = trials.space.canonical(trials.space.encode(archs))
            trials.add(population, model(archs), 0)


def _search_directly(problems: Sequence[Problem], measure: Measuring, plan: Plan, evals: int) -> None:
    """Let the strategy ask for measurements itself; targets follow one another."""
    batch = max(4, min(64, evals // (5 * len(problems))))
    for i, problem in enumerate(problems):
        share = (evals * (i + 1)) // len(problems) - (evals * i) // len(problems)
        if not share:  # more targets than evaluations: this one chooses from what the others measured
            continue
        strategy = problem.strategy(plan.strategy, np.random.default_rng((plan.seed, i)), batch=batch)
        before = measure.new

        def go_on(found: Found) -> bool:
            return measure.new - before < share  # noqa: B023

        # what is known, or misses a limit on costs, costs nothing
        judge = problem.judge(measure.allowed_by(problem, most=share))
        optimise(problem.field, judge, strategy, evaluations=share + len(measure.trials) + MISSES, on_batch=go_on)


def _search_actively(
    run: Run,
    problems: Sequence[Problem],
    trials: Trials,
    measure: Measuring,
    plan: Plan,
    evals: int,
    known: Mapping[str, CostModel],
) -> AccuracyPredictor | None:
    """Measure a design, then what the predictor finds promising."""
    costs = None if run.space.slots else {key: known[key] for key in ("params", "macs") if key in known}

    def fit(population: Population, top1: NDArray[np.float64]) -> AccuracyPredictor:
        return fit_predictor(run.space, population, top1, kinds=plan.kinds, seed=plan.seed, costs=costs)

    size = run.space.size()
    if size <= max(evals, FEWEST):  # measuring all of them is the best that can be done
        measure(trials.without_known(run.space.everything()), 0)
        return fit(trials.population[trials.told], trials.top1[trials.told]) if trials.told.sum() >= FEWEST else None
    design = _design(run, max(FEWEST, round(DESIGN * evals)), plan.seed)
    new = trials.without_known(design)
    if len(new) >= evals and trials.told.sum() < FEWEST:
        raise OfaError(
            f"evals is {evals}, expected more than {len(new)} to fit a predictor and search with it; "
            "or search without one: --predictor none"
        )
    new = new[: evals - 1]
    before = len(design) - len(trials.without_known(design))
    say(f"{len(design)} networks for the predictor" + (f", {before} of them measured before" if before else ""))
    measure(new, 0)
    if trials.told.sum() < FEWEST:
        raise OfaError(f"the accuracy of {trials.told.sum()} networks could be told, expected at least {FEWEST} for a predictor")
    left = max(1, evals - len(design))
    predictor = active_rounds(
        problems,
        trials,
        measure.quietly,
        fit,
        evals=left,
        batch=math.ceil(left / plan.rounds),
        strategy=plan.strategy,
        evaluations=PROPOSAL,
        rng=np.random.default_rng((plan.seed, 1)),
        on_round=lambda round_: measure.show(),
    )
    assert isinstance(predictor, AccuracyPredictor)
    macs = predictor.macs_tau
    say(
        f"predictor ({predictor.kind}): Kendall tau {predictor.kendall_tau:.2f} on held-out networks"
        + ("" if math.isnan(macs) else f", MACs alone {macs:.2f}")
        + ("; nothing ranks them better than MACs" if predictor.kendall_tau <= macs else "")
    )
    return predictor


def _design(run: Run, count: int, seed: int) -> Population:
    """Networks that teach the predictor: half spread over the range of MACs, half uniform, whatever the limits are."""
    rng = np.random.default_rng((seed, 0xDE51))
    space = run.space
    drawn = [space.sample(rng, 4 * count)]
    if space.slots:
        drawn.insert(0, spread_networks(space, rng, count // 2))
    return space.distinct(np.concatenate(drawn))[:count]
