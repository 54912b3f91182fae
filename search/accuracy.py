"""Accuracy of subnets: extracted from the supernet, BatchNorm re-calibrated, on images held out of training."""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import asdict
from functools import cached_property, lru_cache, partial
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from ofa.errors import OfaError
from ofa.progress import progress, say
from ofa.run_dir import Run
from ofa.space import ArchConfig, Population, SearchSpace
from search.engine import Engine
from search.journal import Journal

CALIBRATION_IMAGES = 1_000
GROUP = 8  # architectures that are measured together
MAX_VALIDATION_IMAGES = 5_000

ONE_AT_A_TIME = threading.Lock()  # a dask worker may have several threads; they would share one supernet
OnResult = Callable[[ArchConfig, float], None]


@runtime_checkable
class AccuracyModel(Protocol):
    """Anything that tells the top-1 accuracy of architectures."""

    def __call__(self, archs: Sequence[ArchConfig]) -> NDArray[np.float64]:
        """Return top-1 in [0, 1], or a score that ranks like it, (n,); NaN where it could not be told."""
        ...


@runtime_checkable
class PopulationAccuracy(Protocol):
    """An accuracy model that is as cheap as a predictor: a search asks it directly, as often as it likes."""

    def predict(self, population: Population) -> NDArray[np.float64]:
        """Return top-1 in [0, 1], or a score that ranks like it, (n,); NaN where it could not be told."""
        ...


class JournalledAccuracy(ABC):
    """An accuracy that takes long to tell, and is therefore told once and kept in a journal that all searches of a run share.

    The journal's key holds everything that the number depends on, so that another limit, another device or another day costs no
    evaluation that was made before, and new weights never meet old numbers. While one search measures, another one waits.
    """

    label = "measuring accuracy"

    def __init__(
        self, space: SearchSpace, journal: Path | Journal | None, *, on_result: OnResult | None, field: str = "top1"
    ) -> None:
        self.space, self.on_result = space, on_result
        self._gave_up: set[str] = set()  # this search asks no second time; the next one may
        self.journal = journal if isinstance(journal, Journal) else Journal(journal, field=field)
        if self.journal.field != field:
            raise OfaError(f"{self.journal.path}: opened as a journal of {self.journal.field}, expected one of {field}")

    def __call__(self, archs: Sequence[ArchConfig]) -> NDArray[np.float64]:
        """Return the accuracy, (n,), measuring what the journal does not hold."""
        canonical = self._canonical(archs)
        keys = self._keys(canonical)
        if not all(key in self.journal.trials or key in self._gave_up for key in keys):
            with self.journal.locked():  # and read again: another search may have measured some meanwhile
                known = self.journal.trials.keys() | self._gave_up
                todo = {key: arch for key, arch in zip(keys, canonical, strict=True) if key not in known}
                if todo:
                    self._measure_all(todo)
        trials = self.journal.trials
        return np.array([trials[key].result if key in trials else math.nan for key in keys])

    def all_known(self) -> list[ArchConfig]:
        """Return every architecture that the journal holds a number of that is this model's, in the order of measuring."""
        trials = [(key, trial.values) for key, trial in self.journal.trials.items() if trial.values is not None]
        keys = self._keys([ArchConfig(self.space.name, values) for _, values in trials])
        ours = [values for (key, values), expected in zip(trials, keys, strict=True) if key == expected]
        legal = [frozenset(dimension.options) for dimension in self.space.dimensions]
        fitting = (v for v in ours if len(v) == len(legal) and all(map(frozenset.__contains__, legal, v)))
        return [ArchConfig(self.space.name, values) for values in fitting]

    def _measure_all(self, todo: Mapping[str, ArchConfig]) -> None:
        """Measure architectures and write down every result as it arrives."""
        if again := len(self.journal.failed.keys() & todo.keys()):
            say(f"the accuracy of {again} network{'s' * (again > 1)} could not be told last time; asked again")
        # whoever listens to results shows progress as well
        with contextlib.nullcontext(None) if self.on_result else progress(self.label, len(todo)) as advance:
            with contextlib.closing(self._measure(todo)) as results:
                for key, result in results:
                    if math.isfinite(result):
                        self.journal.add(key, todo[key].values, result)
                    else:
                        self._gave_up.add(key)
                    if advance:
                        advance(note=f"{self.journal.field} {result:.4f}")
                    if self.on_result:
                        self.on_result(todo[key], result)

    @abstractmethod
    def _measure(self, todo: Mapping[str, ArchConfig]) -> Generator[tuple[str, float], None, None]:
        """Yield (key, accuracy) of every architecture as it becomes known, NaN if it could not be told."""

    @property
    @abstractmethod
    def _context(self) -> str:
        """All that a number depends on besides the architecture, as text."""

    def _keys(self, archs: Sequence[ArchConfig]) -> list[str]:
        context = self._context
        return [hashlib.sha256(f"{context}|{arch.values!r}".encode()).hexdigest()[:32] for arch in archs]

    def _canonical(self, archs: Sequence[ArchConfig]) -> list[ArchConfig]:
        return self.space.decode(self.space.canonical(self.space.encode(archs)))


class SupernetAccuracy(JournalledAccuracy):
    """Top-1 on the run's validation images.

    Every engine gives the same numbers. Where the number of threads differs, BatchNorm statistics may differ in their last bits,
    and an image whose two best classes are that close counts for the one or the other; worker processes have one thread each.
    """

    def __init__(
        self,
        run: Run,
        journal: Path | Journal,
        *,
        engine: Engine | str | None = None,
        on_result: OnResult | None = None,
    ) -> None:
        """Measure with the newest weights of `run`.

        Args:
            engine: where to measure (search.engine); a cluster must reach the run and its images by the same paths.
            on_result: is told every new result as it arrives.
        """
        super().__init__(run.space, journal, on_result=on_result)
        self.run, self.engine = run, engine if isinstance(engine, Engine) else Engine(engine)

    def _measure(self, todo: Mapping[str, ArchConfig]) -> Generator[tuple[str, float], None, None]:
        groups = list(self._groups(todo))
        here = self.engine.kind == "in-process"
        measure: Callable[[Sequence[ArchConfig]], list[float]] = (
            self._evaluator if here else partial(_measure_elsewhere, str(self.run.path.resolve()), self._weights_sha256)
        )
        tasks = [[todo[key] for key in group] for group in groups]
        for index, found in self.engine.map(measure, tasks, name=lambda archs: f"{len(archs)} subnets, first {archs[0].values}"):
            yield from zip(groups[index], found, strict=True)

    def _groups(self, todo: Mapping[str, ArchConfig]) -> Iterator[list[str]]:
        """Split architectures into groups that begin alike, small enough that an interruption costs little."""
        keys = list(todo)
        ids = self.space.block_ids(self.space.encode(list(todo.values())))
        ordered = [keys[i] for i in np.lexsort(ids.T[::-1])]
        size = max(1, min(GROUP, math.ceil(len(ordered) / self.engine.workers)))  # every worker gets some
        for start in range(0, len(ordered), size):
            yield ordered[start : start + size]

    @cached_property
    def _context(self) -> str:  # computed once: it reads the weights
        """Weights, data, protocol and precision as text."""
        protocol = {"calibration_images": CALIBRATION_IMAGES, "validation_images": MAX_VALIDATION_IMAGES, "precision": "fp32"}
        data = {name: value for name, value in asdict(self.run.data).items() if name != "source"}  # its digest is what counts
        return json.dumps([self.run.space.name, self._weights_sha256, data, protocol], sort_keys=True)

    @cached_property
    def _weights_sha256(self) -> str:
        return self.run.weights_sha256

    @cached_property
    def _evaluator(self) -> _Evaluator:
        return _Evaluator(self.run, self._weights_sha256)


class _Evaluator:
    """A run's supernet and images, loaded."""

    def __init__(self, run: Run, weights_sha256: str) -> None:
        """Load them.

        Raises:
            OfaError: if the weights are not those that were asked for.
        """
        self.net, self.preprocess = run.load_supernet(), run.preprocess
        if run.weights_sha256 != weights_sha256:
            raise OfaError(f"{run.path}: was trained further while its subnets were measured; search again when training is over")
        self.train, validation = run.load_train_and_validation()
        chosen = np.random.default_rng(0).permutation(len(validation))[:MAX_VALIDATION_IMAGES]
        self.validation = validation.subset(np.sort(chosen))

    def __call__(self, archs: Sequence[ArchConfig]) -> list[float]:
        from ofa.training.evaluation import evaluate

        return evaluate(self.net, archs, self.train, self.validation, self.preprocess, num_calibration=CALIBRATION_IMAGES)


@lru_cache(maxsize=1)
def _evaluator(path: str, weights_sha256: str) -> _Evaluator:
    """Load a run once for all tasks of a worker process."""
    import torch

    torch.set_num_threads(1)  # workers share the cores
    return _Evaluator(Run(path), weights_sha256)


def _measure_elsewhere(path: str, weights_sha256: str, archs: Sequence[ArchConfig]) -> list[float]:
    with ONE_AT_A_TIME:
        return _evaluator(path, weights_sha256)(archs)
