"""Accuracy of architectures that are each trained from scratch, for a few epochs: the reward of Zoph and Le's search.

Steps, augmentation and the re-estimated BatchNorm statistics are those of all training here (ofa.training). What becomes of an
architecture is a function of it, the images, the settings and their seed; which worker trains it, and after which others, is of
no effect.
"""

from __future__ import annotations

import json
import math
import tempfile
from collections.abc import Generator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property, lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from ofa.errors import OfaError
from ofa.progress import say
from ofa.run_dir import Run
from ofa.space import ArchConfig
from ofa.training.config import TrainConfig
from ofa.training.data import Images
from ofa.training.distributed import World, join
from ofa.training.evaluation import evaluate
from ofa.training.schedule import learning_rate
from ofa.training.trainer import Trainer
from search.accuracy import CALIBRATION_IMAGES, MAX_VALIDATION_IMAGES, ONE_AT_A_TIME, JournalledAccuracy, OnResult
from search.engine import Engine
from search.journal import Journal
from search.worker import Failure

VERSION = 1  # of how children are trained, in the journal's key: another one where numbers would change
MAX_FAILURES = 3  # of different architectures, and no success ever: then it is not the architectures


@dataclass(frozen=True, slots=True)
class Scratch:
    """How each architecture is trained, and when it is looked at."""

    # Zoph and Le 2017, section 4.1; of smoothing, clipping and the size of batches they say nothing
    config: TrainConfig = field(
        default_factory=lambda: TrainConfig(epochs=50, lr=0.1, lr_floor=1.0, warmup=0.0, label_smoothing=0.0)
    )
    last_epochs: int = 5  # the best accuracy after one of these counts
    max_images: int = 0  # training images to use, of every class alike; 0 = all

    def __post_init__(self) -> None:
        if self.last_epochs < 1 or self.max_images < 0:
            raise OfaError(f"last_epochs {self.last_epochs}, max_images {self.max_images}: expected at least 1, at least 0")
        if self.config.recipe == "progressive":
            raise OfaError("recipe 'progressive' is for supernets; an architecture trained from scratch needs another one")


class Trained(NamedTuple):
    """What came of an architecture."""

    top1: float  # in [0, 1]; that of guessing where training diverged
    diverged: str = ""  # where


class ScratchAccuracy(JournalledAccuracy):
    """Top-1 on a run's validation images after training from scratch, each architecture in one worker.

    An architecture whose training diverges, or that a worker fails at, counts as one that guesses; of failures the journal keeps
    the reason, and another search tries again. The run holds the images and the space, and need not have weights.
    """

    label = "training from scratch"

    def __init__(
        self,
        run: Run,
        journal: Path | Journal | None,
        scratch: Scratch | None = None,
        *,
        engine: Engine | str | None = None,
        on_result: OnResult | None = None,
        device: str = "auto",
    ) -> None:
        """Train on the images of `run`.

        Args:
            scratch: how; None = as published.
            engine: where (search.engine); a cluster must reach the run and its images by the same paths.
            on_result: is told every new result as it arrives, NaN for a failure.
            device: "auto", "cpu", "cuda", ... of each worker.
        """
        super().__init__(run.space, journal, on_result=on_result)
        self.run, self.scratch, self.device = run, scratch or Scratch(), device
        self.engine = engine if isinstance(engine, Engine) else Engine(engine)
        self.chance = 1 / run.num_classes
        self._failures = 0

    def __call__(self, archs: Sequence[ArchConfig]) -> NDArray[np.float64]:
        """Return top-1, (n,), training what the journal does not hold."""
        found = super().__call__(archs)
        return np.where(np.isnan(found), self.chance, found)

    def _measure(self, todo: Mapping[str, ArchConfig]) -> Generator[tuple[str, float], None, None]:
        keys, archs = list(todo), list(todo.values())
        child = _Child(str(self.run.path.resolve()), self.scratch, self.device)
        for index, outcome in self.engine.attempt(child, archs, retries=1):
            if isinstance(outcome, Failure):
                self._failures += 1
                self.journal.add_failure(keys[index], archs[index].values, outcome.reason)
                say(f"warning: an architecture could not be trained and counts as guessing: {outcome.reason}")
                if self._failures >= MAX_FAILURES and not self.all_known():
                    raise OfaError(
                        f"{self._failures} architectures one after the other could not be trained, the last time with: "
                        f"{outcome.reason}"
                    )
                yield keys[index], math.nan
            else:
                if outcome.diverged:
                    say(f"an architecture counts as guessing: {outcome.diverged}")
                yield keys[index], outcome.top1

    @cached_property
    def _context(self) -> str:
        """Images, settings and protocol as text."""
        data = {name: value for name, value in asdict(self.run.data).items() if name != "source"}  # its digest is what counts
        looks = {"calibration_images": CALIBRATION_IMAGES, "validation_images": MAX_VALIDATION_IMAGES}
        return json.dumps([self.space.name, "scratch", VERSION, data, asdict(self.scratch), looks], sort_keys=True)


@dataclass(frozen=True, slots=True)
class _Child:
    """Trains one architecture, in whatever process."""

    run: str
    scratch: Scratch
    device: str

    def __call__(self, arch: ArchConfig) -> Trained:
        with ONE_AT_A_TIME, join(self.device) as world:  # threads of a process share the generator that weights are drawn from
            train, validation = _images(self.run, self.scratch.max_images)
            return train_from_scratch(Run(self.run), arch, train, validation, self.scratch, world)


def train_from_scratch(run: Run, arch: ArchConfig, train: Images, validation: Images, scratch: Scratch, world: World) -> Trained:
    """Train one architecture and return its best accuracy after one of the last epochs; the weights are forgotten.

    Args:
        run: has the space and the normalisation of the images.
        validation: images that accuracy is measured on.
    Raises:
        OfaError: for an architecture that is not of the run's space, or settings that fit no single network.
    """
    config, top1 = scratch.config, 0.0
    with tempfile.TemporaryDirectory() as folder, torch.random.fork_rng():
        alone = Run.create(Path(folder), run.whole_space, run.data, arch)
        trainer = Trainer(alone, config, train, validation, run.preprocess, world)
        (phase,) = trainer.phases
        trainer.enter(phase)
        while trainer.step < trainer.total_steps:
            rate = learning_rate(
                config.schedule,
                trainer.step,
                total_steps=phase.end,
                warmup_steps=phase.warmup_steps,
                peak=phase.lr,
                floor=config.lr_floor,
            )
            loss, _ = trainer.one_step(phase, rate, stop=False)
            trainer.step += 1
            epoch, left = divmod(trainer.step, trainer.epoch_steps)
            if not math.isfinite(loss):
                return Trained(1 / run.num_classes, f"its loss was {loss} in epoch {epoch + bool(left)} of {config.epochs}")
            if left == 0 and epoch > config.epochs - scratch.last_epochs:
                found = evaluate(trainer.net, [arch], train, validation, run.preprocess, num_calibration=CALIBRATION_IMAGES)
                top1 = max(top1, *found)
    return Trained(top1)


@lru_cache(maxsize=1)  # for all architectures of a worker
def _images(path: str, max_images: int) -> tuple[Images, Images]:
    """Load the images of a run: some to train on, some to validate on."""
    run = Run(path)
    train, validation = run.load_train_and_validation()
    rng = np.random.default_rng((run.data.seed, 0x5C7A))
    chosen = rng.permutation(len(validation))[:MAX_VALIDATION_IMAGES]
    return _share(train, max_images, rng), validation.subset(np.sort(chosen))


def _share(images: Images, number: int, rng: np.random.Generator) -> Images:
    """Return about so many images, of every class the same share; 0 = all."""
    if not 0 < number < len(images):
        return images
    members = (rng.permutation(np.flatnonzero(images.labels.numpy() == label)) for label in range(len(images.classes)))
    kept = [of_class[: max(1, round(number / len(images) * len(of_class)))] for of_class in members]
    return images.subset(np.sort(np.concatenate(kept)))
