"""Search a run for the best networks under limits: one target or many, one set of measurements."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from types import BuiltinFunctionType, FunctionType, MethodType

from latency.cost import CostModel, CountCost
from latency.open import open_latency
from ofa.errors import OfaError
from ofa.progress import say
from ofa.run_dir import Run
from ofa.space import ArchConfig
from ofa.spaces import get_space
from search.accuracy import AccuracyModel, PopulationAccuracy
from search.callable_accuracy import accuracy_of_function
from search.constraints import Constraints, InfeasibleError
from search.engine import Engine
from search.journal import JOURNAL
from search.measuring import asking
from search.menu import InfeasibleTarget, save_menu
from search.modes import Plan, spend
from search.objectives import Objective, parse_objectives
from search.outcome import Outcome, make_result
from search.prices import cost_model, counted
from search.problem import Problem
from search.result import SearchResult
from search.rewards import REWARDS
from search.sources import FORMS, open_accuracy
from search.strategies import get_strategy
from search.tables import show_ranges

RESERVED = ("best", "front.json", "front.csv", "menu.json", "menu.csv", "predictor.json", JOURNAL.name)  # no folders of targets

Accuracy = AccuracyModel | Callable[[ArchConfig], float] | str | None


def open_run(path: Path, space: str | None = None) -> Run:
    """Open a run; with a space's name, one that begins as a search alone, without a supernet.

    Raises:
        OfaError: if there is none, and no space is given, or it is of another space.
    """
    if space is not None and not (path / "run.json").exists():
        return Run.create(path, get_space(space), None, None)
    run = Run(path)
    if space is not None and run.space_name != space:
        raise OfaError(f"{path}: is a run in space {run.space_name!r}, not in {space!r}; name another directory")
    return run


def search_run(
    run: Run | Path | str,
    where: str | Sequence[str] = (),
    *,
    maximize: str | Sequence[str] | None = None,
    minimize: str | Sequence[str] | None = None,
    strategy: str | None = None,
    evals: int | None = None,
    rounds: int = 6,
    predictor: str = "auto",
    accuracy: Accuracy = None,
    reward: str | None = None,
    engine: str | None = None,
    timeout_s: float | None = None,
    tag: str | None = None,
    seed: int = 0,
) -> SearchResult:
    """Find the best network that meets all limits, and write it to <run>/search[/<tag>]/best.

    Args:
        run: directory of a trained run, with a latency table for every device that a limit names.
        where: e.g. ["latency@pi4 <= 12ms", "macs <= 60%", "accuracy >= 0.9"]; all must hold.
        tag: name of this search's folder; None = the run's own search/ folder.
        maximize, minimize, strategy, evals, rounds, predictor, accuracy, reward, engine, timeout_s, seed: as in search_targets.
    Raises:
        InfeasibleError: if nothing meets the limits; it names the nearest feasible value. No accuracy is measured before, unless
            the limit is on accuracy.
        OfaError: if a limit, a table or the run cannot be read.
    """
    (found,) = search_targets(
        run,
        {"": where},
        maximize=maximize,
        minimize=minimize,
        strategy=strategy,
        evals=evals,
        rounds=rounds,
        predictor=predictor,
        accuracy=accuracy,
        reward=reward,
        engine=engine,
        timeout_s=timeout_s,
        tag=tag,
        seed=seed,
    ).values()
    assert isinstance(found, SearchResult)  # the only target is met, or there was an error
    return found


def search_targets(
    run: Run | Path | str,
    targets: Mapping[str, str | Sequence[str]],
    *,
    maximize: str | Sequence[str] | None = None,
    minimize: str | Sequence[str] | None = None,
    strategy: str | None = None,
    evals: int | None = None,
    rounds: int = 6,
    predictor: str = "auto",
    accuracy: Accuracy = None,
    reward: str | None = None,
    engine: str | None = None,
    timeout_s: float | None = None,
    tag: str | None = None,
    seed: int = 0,
) -> dict[str, SearchResult | InfeasibleTarget]:
    """Find the best network of every target, with one set of measurements for all (search.targets makes some).

    Args:
        run: directory of a trained run.
        targets: name -> limits; each is written to <run>/search/[<tag>_]<name>. A single one may have the name "".
        maximize: "accuracy", which is also meant if nothing else is wanted.
        minimize: costs to be small, e.g. ["latency@pi4"]; with accuracy, the result is a front.
        strategy: a name of search.strategies; None = evolution, or nsga2 where there are several objectives.
        evals: networks to measure at most, beyond those of the journal that the design finds there; None = 100, or 200,000
            where accuracy is a table or a predictor.
        rounds: how often the predictor is fitted again and asked what to measure next.
        predictor: "auto"; kinds of search.regressors to choose from, e.g. "ridge,torch_mlp"; or "none": the strategy then asks
            for measurements itself.
        accuracy: None = the run's supernet on validation images; a text for search.sources.open_accuracy; a function
            ArchConfig -> top1; or any AccuracyModel.
        reward: a name of search.rewards: limits are targets then, that may be missed for more accuracy.
        engine: where to measure, e.g. "joblib:2" (search.engine).
        timeout_s: for one call of a function that tells the accuracy.
        tag: begins the names of the folders.
        seed: everything random follows from it.
    Raises:
        InfeasibleError: if no target can be met; it names the nearest feasible values.
        OfaError: if a limit, a table or the run cannot be read.
    """
    run = run if isinstance(run, Run) else Run(run)
    where = {name: [limits] if isinstance(limits, str) else list(limits) for name, limits in targets.items()}
    folders = _folders(run, tag, where)
    objectives = parse_objectives(maximize, minimize)
    plan = Plan(_strategy_name(strategy, objectives, reward), evals, rounds, predictor, seed)
    if run.space.size() == 1:
        raise OfaError(
            f"{run.path}: its space holds one network, expected at least 2 to search; "
            "export it as it is: ofa export arch.json --run RUN -o OUT"
        )
    if timeout_s is not None and not 0 < timeout_s < math.inf:
        raise OfaError(f"timeout_s is {timeout_s}, expected seconds above 0")
    if engine is not None:
        Engine(engine)  # says what is wrong with it, even where nothing needs one
    model = _open(run, accuracy, engine, timeout_s)
    known: Mapping[str, CostModel] = getattr(model, "costs", {})
    constraints = {name: Constraints.for_run(run, limits, known) for name, limits in where.items()}
    _check_reward(reward, constraints.values(), objectives)
    wanted = {o.key: cost_model(run, o.limit, known, asked=f"--min {o.key}") for o in objectives if not o.maximize}
    problems, infeasible = _problems(constraints, objectives, wanted, model, reward)
    if not problems:
        raise _nothing_met(infeasible.values(), folders.values())
    try:
        trials, fitted, evaluations = spend(run, list(problems.values()), model, plan, known)
    finally:
        if own := getattr(model, "engine", None):
            own.close()  # its workers; they start again when they are needed again
    if not trials.told.any():
        raise OfaError("no accuracy could be told of any network, so there is nothing to choose from")
    results: dict[str, SearchResult | InfeasibleTarget] = dict(infeasible)
    costs = _reported_costs(run, known, problems.values())
    for name, problem in problems.items():
        outcome = Outcome(problem, trials, fitted, costs, plan.strategy, _describe(accuracy), evaluations)
        results[name] = make_result(run, outcome, folders[name])
    ordered = {name: results[name] for name in where}
    met = [found for found in ordered.values() if isinstance(found, SearchResult)]
    if not met:
        raise _nothing_met(ordered.values(), folders.values())
    for found in met:
        found.save(run)
        if fitted:
            fitted.save(found.path / "predictor.json")
    if len(ordered) > 1:
        save_menu(run, run.path / "search" / "_".join(filter(None, (tag, "menu.json"))), list(ordered.values()))
    return ordered


# -- what is asked -----------------------------------------------------------------------------------------------------


def _folders(run: Run, tag: str | None, targets: Mapping[str, Sequence[str]]) -> dict[str, Path]:
    """Return where each target's result is written; hours of measuring shall not end with a name or a right that is missing."""
    if not targets:
        raise OfaError('no target given, expected at least one, e.g. {"": ["macs <= 60%"]}')
    if len(targets) > 1 and "" in targets:
        raise OfaError(f"targets {', '.join(map(repr, targets))}: two targets or more need names")
    names = {name: "_".join(part for part in (tag, name) if part) for name in targets}
    for what, part in [("tag", tag), *(("target", name or None) for name in names.values())]:
        if part is not None and (not _is_plain(part) or part in RESERVED):
            raise OfaError(f"{what} {part!r}: expected a plain folder name, none of {', '.join(RESERVED)}")
    folders = {name: run.path / "search" / part if part else run.path / "search" for name, part in names.items()}
    for folder in folders.values():
        there = next(path for path in (folder, *folder.parents) if path.exists())
        if not (there.is_dir() and os.access(there, os.W_OK | os.X_OK)):
            reason = "may not be written to" if there.is_dir() else "is no directory"
            raise OfaError(f"{there}: {reason}, so the result of a search would be lost; expected a directory of your own")
    return folders


def _is_plain(name: str) -> bool:
    """Whether a name is a folder's that is shown as it is, nothing hidden, no path on any system and no option of a command."""
    return name.isprintable() and bool(name.strip()) and not name.startswith((".", "-")) and not {"/", "\\"} & {*name}


def _strategy_name(strategy: str | None, objectives: Sequence[Objective], reward: str | None) -> str:
    several = len(objectives) > 1 and not reward
    name = strategy or ("nsga2" if several else "evolution")
    if several and not get_strategy(name).multi_objective:
        wanted = ", ".join(map(str, objectives))
        raise OfaError(f"strategy {name!r} takes one objective, not {wanted}; use nsga2 or random, or a --reward")
    get_strategy(name)
    return name


def _check_reward(reward: str | None, constraints: Iterable[Constraints], objectives: Sequence[Objective]) -> None:
    if reward is None:
        return
    if reward not in REWARDS:
        raise OfaError(f"unknown reward {reward!r}; known: {', '.join(REWARDS)}")
    if any(not objective.maximize for objective in objectives):
        raise OfaError(f"reward {reward!r} weighs accuracy against the limits, so it goes with no --min")
    if any(not found.cost_limits or found.least_top1 for found in constraints):
        raise OfaError(f"reward {reward!r} needs limits on costs as its targets, and none on accuracy")


def _open(run: Run, accuracy: Accuracy, engine: str | None, timeout_s: float | None) -> AccuracyModel | PopulationAccuracy:
    journal = run.path / JOURNAL
    if isinstance(accuracy, FunctionType | BuiltinFunctionType | MethodType | partial):
        return accuracy_of_function(accuracy, run.space, journal, timeout_s=timeout_s, engine=engine)
    if accuracy in (None, "supernet") and not run.has_images and not list(run.supernet_dir.glob("step_*")):
        raise OfaError(f"{run.path}: holds no supernet; say what tells accuracy instead: --accuracy, {FORMS.partition(', ')[2]}")
    if accuracy is None or isinstance(accuracy, str):
        return open_accuracy(accuracy or "supernet", run, engine=engine, timeout_s=timeout_s, journal=journal)
    if not isinstance(accuracy, AccuracyModel | PopulationAccuracy):
        raise OfaError(
            f"accuracy {str(accuracy)[:80]!r}: expected a function of an architecture, a model of accuracies, or {FORMS}"
        )
    return accuracy


def _nothing_met(targets: Iterable[SearchResult | InfeasibleTarget], folders: Iterable[Path]) -> InfeasibleError:
    reasons = " | ".join(found.reason for found in targets if isinstance(found, InfeasibleTarget))
    left = next((folder / "best" for folder in folders if (folder / "best").exists()), None)
    return InfeasibleError(reasons + (f" ({left} is still that of an earlier search)" if left else ""))


def _describe(accuracy: Accuracy) -> str:
    if isinstance(accuracy, str | None):
        return accuracy or "supernet"
    return getattr(accuracy, "__name__", type(accuracy).__name__)


def _problems(
    constraints: Mapping[str, Constraints],
    objectives: tuple[Objective, ...],
    wanted: Mapping[str, CostModel],
    model: object,
    reward: str | None,
) -> tuple[dict[str, Problem], dict[str, InfeasibleTarget]]:
    """Show how the limits lie in the space, and set up every target that can be met."""
    show_ranges({name: found.ranges for name, found in constraints.items()})
    problems: dict[str, Problem] = {}
    infeasible: dict[str, InfeasibleTarget] = {}
    predict = asking(model) if isinstance(model, PopulationAccuracy) else None
    for name, found in constraints.items():
        try:
            problems[name] = Problem.of(name, found, objectives, wanted, accuracy=predict, reward=reward)
        except InfeasibleError as error:
            infeasible[name] = InfeasibleTarget(name, tuple(map(str, found.limits)), str(error))
            if len(constraints) > 1:
                say(f"{name}: {error}")
        if len(found.cost_limits) > 1 and name in problems:
            say(f"{name + ': ' if name else ''}all limits together: {found.joint_share():.1%} of the space fits")
    return problems, infeasible


def _reported_costs(run: Run, known: Mapping[str, CostModel], problems: Iterable[Problem]) -> dict[str, CostModel]:
    """Counts, what a table of accuracies knows, and the latency on every device that the run has a table of."""
    costs: dict[str, CostModel] = {name: CountCost(name, run.space) for name in counted(run.space)}
    costs |= dict(known)
    for path in sorted((run.path / "latency").glob("*.json")):
        try:
            costs[f"latency@{path.stem}"] = open_latency(path, run.space)
        except OfaError as error:  # a table that a limit needs was read before; without another one the search still stands
            say(f"warning: {error}; latency on {path.stem} is left out")
    for problem in problems:
        costs |= dict(problem.costs) | dict(problem.constraints.costs)
    return costs
