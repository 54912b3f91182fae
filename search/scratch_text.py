"""How well recurrent cells do that are each trained from scratch on a text, for a few epochs: the reward of Zoph and Le's search.

Steps are those of all language models here (ofa.training.language), without averages of weights. What becomes of a cell is a
function of it, the text, the settings and their seed; which worker trains it, and after which others, is of no effect.
"""

from __future__ import annotations

import json
import math
from collections.abc import Generator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from ofa.errors import OfaError
from ofa.genotype import RecurrentGenotype
from ofa.language_model import LanguageModel, build_cell
from ofa.progress import say
from ofa.recurrent_space import RecurrentSpace
from ofa.space import ArchConfig
from ofa.training.distributed import join
from ofa.training.language import LanguageConfig, LanguageTrainer
from ofa.training.text import Corpus, load_text, piece
from ofa.training.text_loop import nats_a_token
from ofa.tree_genotype import TreeGenotype, parse_text_cell
from search.accuracy import ONE_AT_A_TIME, JournalledAccuracy, OnResult
from search.engine import Engine
from search.journal import Journal
from search.worker import Failure

VERSION = 1  # of how cells are trained, in the journal's key: another one where numbers would change
MAX_FAILURES = 3  # of different cells, and no success ever: then it is not the cells


class Trained(NamedTuple):
    """What came of a cell."""

    nats: float  # a token of the validation text, the lowest after an epoch; those of guessing where training diverged
    diverged: str = ""  # where


class TextScratch(JournalledAccuracy):
    """Score of cells: their lowest validation loss after an epoch, negative, in nats a token.

    A cell whose training diverges, or that a worker fails at, counts as one that guesses; of failures the journal keeps the
    reason, and another search tries again.
    """

    label = "training from scratch"

    def __init__(
        self,
        space: RecurrentSpace,
        text: Path | str,
        corpus: Corpus,
        config: LanguageConfig,
        journal: Path | Journal | None,
        *,
        engine: Engine,
        on_result: OnResult | None = None,
        device: str = "auto",
    ) -> None:
        """Train on a text.

        Args:
            text: where `corpus` is from; workers load it from there, by the same path.
            config: how each cell is trained.
            on_result: is told every new score as it arrives, NaN for a failure.
        """
        super().__init__(space, journal, on_result=on_result, field="score")
        self.cells, self.corpus, self.config, self.engine = space, corpus, config, engine
        self._train = _Child(str(Path(text).resolve()), corpus.sha256, config, device)
        self._failures = 0

    def __call__(self, archs: Sequence[ArchConfig]) -> NDArray[np.float64]:
        """Return scores, (n,), training what the journal does not hold."""
        found = super().__call__(archs)
        return np.where(np.isnan(found), -math.log(len(self.corpus.vocabulary)), found)

    def _measure(self, todo: Mapping[str, ArchConfig]) -> Generator[tuple[str, float], None, None]:
        keys, archs = list(todo), list(todo.values())
        texts = [str(self.cells.to_genotype(arch)) for arch in archs]
        for index, outcome in self.engine.attempt(self._train, texts, retries=1):
            if isinstance(outcome, Failure):
                self._failures += 1
                self.journal.add_failure(keys[index], archs[index].values, outcome.reason)
                say(f"warning: a cell could not be trained and counts as guessing: {outcome.reason}")
                if self._failures >= MAX_FAILURES and not self.all_known():
                    raise OfaError(f"{self._failures} cells could not be trained, the last time with: {outcome.reason}")
                yield keys[index], math.nan
            else:
                if outcome.diverged:
                    say(f"a cell counts as guessing: {outcome.diverged}")
                yield keys[index], -outcome.nats

    @cached_property
    def _context(self) -> str:
        """Text, settings and protocol as text."""
        return json.dumps([self.space.name, "text", VERSION, self.corpus.sha256, asdict(self.config)], sort_keys=True)


@dataclass(frozen=True, slots=True)
class _Child:
    """Trains one cell, in whatever process."""

    text: str
    sha256: str
    config: LanguageConfig
    device: str

    def __call__(self, genotype: str) -> Trained:
        corpus = _corpus(self.text, self.config.tokens, self.config.max_vocabulary)
        if corpus.sha256 != self.sha256:
            raise OfaError(f"{self.text}: is another text than when the search began; use that, or another --out")
        with ONE_AT_A_TIME, join(self.device) as world:  # threads of a process share the generator that weights are drawn from
            return train_from_scratch(parse_text_cell(genotype), corpus, self.config, world.device)


def train_from_scratch(
    genotype: RecurrentGenotype | TreeGenotype, corpus: Corpus, config: LanguageConfig, device: torch.device
) -> Trained:
    """Train the language model of a cell and return its lowest validation loss after an epoch; the weights are forgotten."""
    guessing = math.log(len(corpus.vocabulary))
    with torch.random.fork_rng():
        torch.manual_seed(config.seed)
        net = LanguageModel(len(corpus.vocabulary), build_cell(genotype, config.features))
        trainer = LanguageTrainer(Path(), net, corpus, config, device)  # a folder that nothing is written to
        lowest = math.inf
        for trainer.epoch in range(config.epochs):
            trainer.hidden = net.no_text(config.batch_size)
            for start, length in trainer.pieces():
                loss = trainer.one_step(*piece(trainer.text, start, length))
                trainer.step += 1
                if not math.isfinite(loss):
                    return Trained(guessing, f"its loss was {loss} in epoch {trainer.epoch + 1} of {config.epochs}")
            nats = nats_a_token(net, corpus.valid, batch=config.eval_batch_size)
            if not math.isfinite(nats):
                return Trained(guessing, f"its validation loss was {nats} after epoch {trainer.epoch + 1} of {config.epochs}")
            lowest = min(lowest, nats)
    return Trained(lowest)


@lru_cache(maxsize=1)  # for all cells of a worker
def _corpus(text: str, kind: str, max_vocabulary: int) -> Corpus:
    return load_text(text, kind=kind, max_vocabulary=max_vocabulary)
