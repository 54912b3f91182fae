"""Active search: fit a predictor to what was measured, search on it, measure the most promising, fit again."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from ofa.space import Population, SearchSpace
from search.optimise import Found, optimise
from search.pareto import hypervolume, non_dominated
from search.problem import Accuracy, Problem

LISTED = 20_000  # networks of a space that are judged one and all rather than searched
PROMISING = 512  # of a search on the predictor that are looked at
ATTEMPTS = 8  # at finding something new beside what promises most
BATCH = 1024  # architectures that a strategy is asked for at a time
BOLDNESS = 2.0  # standard deviations by which the boldest of a batch is judged better than predicted


class Predictor(Protocol):
    """A predictor with a measure of its doubt."""

    def predict(self, population: Population) -> NDArray[np.float64]: ...

    def uncertainty(self, population: Population) -> NDArray[np.float64]: ...


@dataclass
class Trials:
    """What was measured, in order. Rounds: 0 = the design or known before, then 1, 2, ..."""

    space: SearchSpace
    population: Population = field(init=False)  # (n, dimensions), distinct
    top1: NDArray[np.float64] = field(init=False)  # (n,), NaN = it could not be told
    round: NDArray[np.int64] = field(init=False)
    predicted: NDArray[np.float64] = field(init=False)  # before it was measured, NaN = it was not

    def __post_init__(self) -> None:
        self.population = np.empty((0, len(self.space.dimensions)), dtype=np.int16)
        self.top1, self.predicted = np.empty(0), np.empty(0)
        self.round = np.empty(0, dtype=np.int64)

    def __len__(self) -> int:
        return len(self.population)

    def add(
        self, population: Population, top1: NDArray[np.float64], round_: int, predicted: NDArray[np.float64] | None = None
    ) -> None:
        """Append measured architectures; those that are in already are passed over."""
        new = ~np.isin(self.space.keys(population), self.space.keys(self.population))
        predicted = np.full(len(population), np.nan) if predicted is None else predicted
        self.population = np.concatenate([self.population, population[new]])
        self.top1 = np.concatenate([self.top1, top1[new]])
        self.round = np.concatenate([self.round, np.full(new.sum(), round_)])
        self.predicted = np.concatenate([self.predicted, predicted[new]])

    def without_known(self, population: Population) -> Population:
        """Return the rows that were not measured."""
        return population[~np.isin(self.space.keys(population), self.space.keys(self.population))]

    @property
    def told(self) -> NDArray[np.bool_]:
        """Which of them have an accuracy, (n,)."""
        return np.isfinite(self.top1)


def active_rounds(
    problems: Sequence[Problem],
    trials: Trials,
    measure: Accuracy,
    fit: Callable[[Population, NDArray[np.float64]], Predictor],
    *,
    evals: int,
    batch: int,
    strategy: str,
    evaluations: int,
    rng: np.random.Generator,
    on_round: Callable[[int], None] = lambda round_: None,
) -> Predictor:
    """Spend measurements where a predictor says that they pay; several problems share the rounds and the predictor.

    Args:
        trials: what was measured so far, at least what `fit` needs; grows.
        measure: (n, dimensions) -> top1 (n,), NaN where it could not be told.
        fit: population and top1 -> predictor.
        evals: architectures to measure.
        batch: architectures to measure between two fits.
        strategy: name of what searches on the predictor.
        evaluations: architectures to predict for each proposal.
        on_round: called after every round with its number.
    """
    predictor = fit(trials.population[trials.told], trials.top1[trials.told])
    left, round_ = evals, int(trials.round.max(initial=0))
    while left > 0:
        round_ += 1
        proposed = _propose_all(problems, predictor, trials, min(batch, left), strategy, evaluations, rng, round_)
        if not len(proposed):
            break
        trials.add(proposed, measure(proposed), round_, predictor.predict(proposed))
        left -= len(proposed)
        predictor = fit(trials.population[trials.told], trials.top1[trials.told])
        on_round(round_)
    return predictor


def _propose_all(
    problems: Sequence[Problem],
    predictor: Predictor,
    trials: Trials,
    count: int,
    strategy: str,
    evaluations: int,
    rng: np.random.Generator,
    round_: int,
) -> Population:
    """Share a batch among the problems; where there are more of them than architectures, they take turns.

    Nothing is left to measure only when no problem has anything left: those with a turn may be done before the others.
    """
    turns = np.roll(np.arange(len(problems)), -round_ * count)
    shares = np.bincount(turns[np.arange(count) % len(problems)], minlength=len(problems))

    def proposed_by(i: int, most: int) -> Population:
        return propose(problems[i], predictor, trials, most, strategy=strategy, evaluations=evaluations, rng=rng)

    found = np.concatenate([proposed_by(int(i), int(shares[i])) for i in np.flatnonzero(shares)])
    for i in turns.tolist():
        if not len(found) and shares[i] < count:
            found = proposed_by(i, count)
    return trials.space.distinct(found)[:count]


def propose(
    problem: Problem,
    predictor: Predictor,
    trials: Trials,
    count: int,
    *,
    strategy: str,
    evaluations: int,
    rng: np.random.Generator,
) -> Population:
    """Return up to `count` architectures that were not measured and that promise most.

    Each one of a batch is judged with its own boldness: the first by its prediction, the last by BOLDNESS standard deviations
    more. So some confirm what is predicted, and some go where little is known, which is what improves the next prediction.
    """
    candidates = _candidates(problem, predictor, trials, count, strategy, evaluations, rng)
    if not len(candidates):
        return candidates
    predicted, doubt = predictor.predict(candidates), predictor.uncertainty(candidates)
    boldness = np.linspace(0, BOLDNESS, count) if count > 1 else np.array([BOLDNESS / 2])
    if len(problem.objectives) > 1 and not problem.reward:
        return _spread_on_front(problem, candidates, predicted, doubt, boldness, trials)
    chosen: list[int] = []
    for bold in boldness:
        optimistic = predicted + bold * doubt
        order = np.lexsort((problem.values(candidates, optimistic)[:, 0], problem.violation(candidates, optimistic)))
        taken = next((int(i) for i in order if i not in chosen), None)
        if taken is None:
            break
        chosen.append(taken)
    return candidates[chosen]


def _candidates(
    problem: Problem,
    predictor: Predictor,
    trials: Trials,
    count: int,
    strategy: str,
    evaluations: int,
    rng: np.random.Generator,
) -> Population:
    """Return promising architectures that were not measured, none of which misses a limit on costs; `count` if there are."""
    if problem.field.size() <= LISTED:
        return _open(problem, trials, problem.field.everything())
    bold = rng.uniform(0, BOLDNESS)

    def optimistic(population: Population) -> NDArray[np.float64]:
        return predictor.predict(population) + bold * predictor.uncertainty(population)

    best = best_of(problem, trials)
    start = problem.field.narrow(trials.population[best[: BATCH // 4]])
    searcher = problem.strategy(strategy, rng, batch=BATCH, start=start)
    found: Found = optimise(
        problem.field, problem.judge(optimistic), searcher, evaluations=evaluations, most=PROMISING + len(trials)
    )
    rows = _open(problem, trials, found.population)
    repair = problem.repair(rng)
    for attempt in range(ATTEMPTS):  # what promises most may all have been measured: then something like it
        if len(rows) >= count:
            break
        parents = found.population[rng.integers(len(found.population), size=BATCH)]
        drawn = problem.field.mutate(parents, rng, (1 + attempt) / ATTEMPTS)
        more = _open(problem, trials, repair(drawn) if repair else drawn)
        rows = trials.space.distinct(np.concatenate([rows, more]))[: max(count, len(rows))]
    return rows


def _open(problem: Problem, trials: Trials, population: Population) -> Population:
    """Return those architectures of a problem's field that could be measured, as rows of the space."""
    rows = trials.without_known(problem.field.widen(population))
    return rows if problem.reward else rows[problem.constraints.violation(rows) == 0]


def best_of(problem: Problem, trials: Trials) -> NDArray[np.int64]:
    """Return the indices of measured architectures, those that meet the limits first, then by the first objective."""
    values = problem.values(trials.population, trials.top1)[:, 0]
    return np.lexsort((values, problem.violation(trials.population, trials.top1)))


def front_of(problem: Problem, population: Population, top1: NDArray[np.float64]) -> NDArray[np.int64]:
    """Return the indices of architectures that meet the limits and that no other dominates."""
    allowed = np.flatnonzero(problem.violation(population, top1) == 0)
    return allowed[non_dominated(problem.values(population[allowed], top1[allowed]))]


def _spread_on_front(
    problem: Problem,
    candidates: Population,
    predicted: NDArray[np.float64],
    doubt: NDArray[np.float64],
    boldness: NDArray[np.float64],
    trials: Trials,
) -> Population:
    """Choose one after the other what adds most to the volume that the measured front dominates, judged with boldness.

    Candidates that are expected to miss the limit on accuracy wait until there are no others. The volume that a candidate alone
    dominates bounds its gain, so that only those whose bound is above the best gain are computed (Minoux 1978).
    """
    front = problem.values(trials.population, trials.top1)[front_of(problem, trials.population, trials.top1)]
    chosen: list[int] = []
    for bold in boldness:
        points = problem.values(candidates, predicted + bold * doubt)
        everything = np.concatenate([front, points])
        low, high = everything.min(0), everything.max(0)
        scale = np.where(high > low, high - low, 1.0)
        reference = np.full(points.shape[1], 1.05)
        taken = (np.concatenate([front, points[chosen]]) - low) / scale
        scaled = (points - low) / scale
        base = hypervolume(taken, reference)
        hopeful = np.flatnonzero(non_dominated(np.concatenate([scaled, taken]))[: len(scaled)])
        hopeful = hopeful[~np.isin(hopeful, chosen)]
        missed = problem.violation(candidates, predicted + bold * doubt)
        meeting = hopeful[missed[hopeful] == 0]
        if not len(meeting) and len(hopeful):  # those that come nearest to the limit
            meeting = hopeful[missed[hopeful] == missed[hopeful].min()]
        hopeful = meeting
        bounds = [(-float(np.prod(reference - scaled[i])), int(i)) for i in hopeful]
        heapq.heapify(bounds)
        best, best_gain = -1, -1.0
        while bounds and -bounds[0][0] > best_gain:
            _, i = heapq.heappop(bounds)
            gain = hypervolume(np.vstack([taken, scaled[i]]), reference) - base
            if gain > best_gain:
                best, best_gain = i, gain
        if best < 0:  # nothing is predicted to add volume: the one of which least is known, of those that no other surpasses
            rest = np.setdiff1d(np.arange(len(candidates)), chosen)
            if not len(rest):
                break
            rest = rest[non_dominated(points[rest])]
            best = int(rest[doubt[rest].argmax()])
        chosen.append(best)
    return candidates[chosen]
