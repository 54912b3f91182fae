"""Measuring during a search: what is known, what is new, and how the search goes."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from ofa.errors import OfaError
from ofa.progress import progress
from ofa.run_dir import Run
from ofa.space import ArchConfig, Population
from search.accuracy import AccuracyModel, JournalledAccuracy, OnResult, PopulationAccuracy
from search.active import Trials, best_of
from search.outcome import front_volume
from search.problem import Accuracy, Problem


class Measuring:
    """Measures populations, remembers them in `trials`, and shows how the search goes."""

    def __init__(self, run: Run, problems: Sequence[Problem], model: AccuracyModel, trials: Trials, evals: int) -> None:
        self.run, self.problems, self.model, self.trials = run, problems, model, trials
        self.new = 0  # networks that were measured anew
        self._bar = progress("measuring networks", evals)
        self._listener: OnResult | None = None

    def __enter__(self) -> Measuring:
        self._advance = self._bar.__enter__()
        if isinstance(self.model, JournalledAccuracy):
            self._listener = self.model.on_result
            self.model.on_result = self._note
        return self

    def __exit__(self, *exception: object) -> None:
        if isinstance(self.model, JournalledAccuracy):
            self.model.on_result = self._listener
        self._bar.__exit__(*exception)  # type: ignore[arg-type]

    def _note(self, arch: ArchConfig, top1: float) -> None:
        self.new += 1
        self._advance()
        if self._listener:
            self._listener(arch, top1)

    def __call__(self, population: Population, round_: int) -> None:
        """Measure architectures of which nothing is known."""
        self.trials.add(population, self.quietly(population), round_)
        self.show()

    def quietly(self, population: Population) -> NDArray[np.float64]:
        """Return the accuracy of architectures, (n,)."""
        if not len(population):
            return np.empty(0)
        self.show()
        found = checked(self.model(self.run.space.decode(population)), len(population))
        if not isinstance(self.model, JournalledAccuracy):  # which knows what another search measured meanwhile
            self.new += len(population)
            self._advance(len(population))
        return found

    def allowed_by(self, problem: Problem, *, most: int) -> Accuracy:
        """Return what measures the architectures that meet a problem's limits on costs, and says 0 of the others.

        Args:
            most: networks to measure; beyond them, accuracy is NaN.
        """
        space, trials, end = self.run.space, self.trials, self.new + most

        def accuracy(population: Population) -> NDArray[np.float64]:
            top1 = np.zeros(len(population))
            missed = np.zeros(len(population)) if problem.reward else problem.constraints.violation(population)
            allowed = np.flatnonzero(missed == 0)
            fresh = trials.without_known(space.distinct(population[allowed]))[: max(0, end - self.new)]
            trials.add(fresh, self.quietly(fresh), int(trials.round.max(initial=0)) + 1)
            known = dict(zip(space.keys(trials.population).tolist(), trials.top1.tolist(), strict=True))
            top1[allowed] = [known.get(key, np.nan) for key in space.keys(population[allowed]).tolist()]
            self.show()
            return top1

        return accuracy

    def show(self) -> None:
        """Show the best so far of the first target."""
        problem, trials = self.problems[0], self.trials
        if trials.told.any():
            best = best_of(problem, trials)[0]
            if problem.violation(trials.population[[best]], trials.top1[[best]])[0] == 0:
                size, volume = front_volume(problem, trials.population, trials.top1)
                self._advance(0, note=f"best {trials.top1[best]:.4f}, front {size}, hypervolume {volume:.4f}")


def asking(model: PopulationAccuracy) -> Callable[[Population], NDArray[np.float64]]:
    """Return what asks an accuracy model of populations, and checks its answers."""
    return lambda population: checked(model.predict(population), len(population))


def checked(answer: object, count: int) -> NDArray[np.float64]:
    """Return what an accuracy model answered, (count,); NaN for what is no finite number.

    Raises:
        OfaError: if it did not answer with a number for each network.
    """
    try:
        found = np.asarray(answer, dtype=np.float64)
    except (TypeError, ValueError):
        raise OfaError(f"an accuracy model answered {str(answer)[:60]!r}, expected {count} numbers, one a network") from None
    if found.shape != (count,):
        raise OfaError(f"an accuracy model answered with the shape {found.shape}, expected {count} numbers, one a network")
    return np.where(np.isfinite(found), found, np.nan)
