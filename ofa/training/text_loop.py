"""The loop that a search on text and the training of a language model share: pieces of text in order, epoch after epoch.

The hidden state goes on from piece to piece. What a step does is a function of (weights, optimisers' state, hidden state, seed,
step): pieces and dropout are drawn from the last two, so that what was stopped goes on as if it had not been.
"""

from __future__ import annotations

import json
import math
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ofa.artefacts import append_jsonl, forget_after, read_json, write_json
from ofa.errors import OfaError
from ofa.genotype import RecurrentGenotype
from ofa.language_model import LanguageModel, Noise
from ofa.progress import progress, say, stop_after_step
from ofa.training.checkpoint import (
    CHECKPOINT_SECONDS,
    list_checkpoints,
    load_training,
    load_weights,
    newest_checkpoint,
    save_checkpoint,
)
from ofa.training.distributed import World
from ofa.training.text import Corpus, batchify, cut, piece
from ofa.training.text_config import TextConfig

METRICS = "metrics.jsonl"


class TextTrainingError(OfaError):
    """Training on text cannot begin or go on."""


class TextLoop(ABC):
    """A network, a text, and where training stands; subclasses know what a step is."""

    doing = "training"  # for the progress bar
    lines: tuple[str, ...] = (METRICS,)  # files with a line an epoch

    def __init__(self, folder: Path, net: LanguageModel, corpus: Corpus, config: TextConfig, device: torch.device) -> None:
        self.folder, self.net, self.corpus, self.config, self.device = folder, net.to(device), corpus, config, device
        self.text = batchify(corpus.train, config.batch_size).to(device)
        batchify(corpus.valid, config.eval_batch_size)  # raises before anything is written
        self.step = self.epoch = self.done = 0  # steps and epochs done; pieces of this epoch done
        self.hidden = self.net.no_text(config.batch_size)
        self.losses: list[tuple[int, float]] = []  # of this epoch: tokens, nats a token

    # -- what subclasses know ------------------------------------------------------------------------------------------

    @abstractmethod
    def one_step(self, tokens: Tensor, targets: Tensor) -> float:
        """Train on (time, batch) tokens from `self.hidden` on, which is set anew; returns the loss in nats a token."""

    @abstractmethod
    def look(self) -> tuple[dict[str, Any], float | None]:
        """End an epoch: return what to note of it, and a score if checkpoints have one, the larger the better."""

    @abstractmethod
    def state(self) -> tuple[Mapping[str, Tensor], dict[str, Tensor], dict[str, Any]]:
        """Return the weights to use, further tensors and further facts to go on from."""

    @abstractmethod
    def load_state(self, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> None:
        """Take over the tensors and facts that `state` returned; the weights to use are loaded already."""

    def more(self) -> str | None:
        """Do one more step of this epoch, after its text; returns what to show of it, None if there was nothing left to do."""
        return None

    # -- checkpoints ---------------------------------------------------------------------------------------------------

    def load(self) -> None:
        """Go on from the newest checkpoint, if there is one, and forget what was noted after it."""
        if not list_checkpoints(self.folder):
            for name in self.lines:
                (self.folder / name).unlink(missing_ok=True)
            return
        checkpoint = newest_checkpoint(self.folder)
        load_weights(checkpoint, self.net)
        facts, tensors = checkpoint.state(), load_training(checkpoint)
        self.step, self.epoch, self.done = checkpoint.step, int(facts["epoch"]), int(facts["pieces"])
        self.losses = [(int(tokens), float(loss)) for tokens, loss in facts["losses"]]
        self.hidden = tensors.pop("hidden").to(self.device)
        self.load_state(tensors, facts)
        for name in self.lines:
            forget_after(self.folder / name, self.step)

    def save(self, score: float | None = None) -> None:
        """Write a checkpoint."""
        weights, tensors, facts = self.state()
        facts = facts | {"epoch": self.epoch, "pieces": self.done, "losses": self.losses}
        save_checkpoint(
            self.folder, weights, self.step, training=tensors | {"hidden": self.hidden}, score=score, extra=facts, keep=2
        )

    # -- the loop ------------------------------------------------------------------------------------------------------

    def run(self) -> None:
        """Run all epochs that are left.

        Raises:
            TextTrainingError: if a loss or a weight is not finite.
        """
        if self.epoch == self.config.epochs:
            return
        began = saved_at = time.monotonic()
        saved, rows = self.step, len(self.text) - 1

        def pause() -> None:
            nonlocal saved, saved_at
            if stop() or time.monotonic() - saved_at > CHECKPOINT_SECONDS:
                self._require_finite(saved)
                self.save()
                saved, saved_at = self.step, time.monotonic()
                if stop():
                    raise KeyboardInterrupt

        done = self.epoch * rows + sum(tokens for tokens, _ in self.losses)
        with progress(self.doing, self.config.epochs * rows, done=done) as advance, stop_after_step() as stop:
            while self.epoch < self.config.epochs:
                pieces = self.pieces()
                if self.done == 0:
                    self.hidden = self.net.no_text(self.config.batch_size)
                for start, length in pieces[self.done :]:
                    loss = self.one_step(*piece(self.text, start, length))
                    if not math.isfinite(loss):
                        raise TextTrainingError(f"loss is {loss} at step {self.step}; {self._advice(saved)}")
                    self.losses.append((length, loss))
                    self.step, self.done = self.step + 1, self.done + 1
                    advance(length, note=f"perplexity {perplexity_of(_mean(self.losses[-50:])):.1f}")
                    if self.done < len(pieces):
                        pause()
                while (note := self.more()) is not None:
                    self.step += 1
                    advance(0, note=note)
                    pause()
                self._require_finite(saved)
                score = self._end_epoch(began)
                self.save(score)
                saved, saved_at = self.step, time.monotonic()
                if stop() and self.epoch < self.config.epochs:
                    raise KeyboardInterrupt

    def pieces(self) -> list[tuple[int, int]]:
        """Return (start, length) of the pieces of this epoch."""
        return cut(len(self.text), self.config.bptt, np.random.default_rng((self.config.seed, self.epoch, 0x7E)))

    def noise(self, part: int = 0) -> Noise:
        """Return the dropout of this step: the same masks each time it is asked for."""
        return Noise(self.config.dropouts, self.generator(part, self.device))

    def generator(self, part: int, device: torch.device | str = "cpu") -> torch.Generator:
        """Return where the draws of this step come from; other parts of a step have others."""
        seed = np.random.SeedSequence((self.config.seed, self.step, part, 0xD0)).generate_state(1, np.uint64)
        return torch.Generator(device).manual_seed(int(seed[0] >> np.uint64(1)))

    def _end_epoch(self, began: float) -> float | None:
        loss = _mean(self.losses)
        self.epoch, self.done, self.losses = self.epoch + 1, 0, []
        found, score = self.look()
        if score is not None and not math.isfinite(score):
            raise TextTrainingError(f"validation loss is {-score} after epoch {self.epoch}; {self._advice(self.step)}")
        record = {"step": self.step, "epoch": self.epoch, "loss": loss, **found}
        append_jsonl(self.folder / METRICS, record | {"seconds": round(time.monotonic() - began, 1)})
        facts = ", ".join(f"{name} {value:.4f}" for name, value in record.items() if isinstance(value, float))
        say(f"epoch {self.epoch}/{self.config.epochs}: {facts}")
        return score

    def _require_finite(self, saved: int) -> None:
        if not all(bool(p.isfinite().all()) for p in self.net.parameters()):
            raise TextTrainingError(f"weights are not finite after step {self.step - 1}; {self._advice(saved)}")

    def _advice(self, saved: int) -> str:
        kept = f"the checkpoint of step {saved} is kept" if saved else "no checkpoint was reached"
        return f"{kept}; start again with a lower --lr (now {self.config.lr:g})"


@torch.no_grad()
def nats_a_token(
    net: LanguageModel, stream: Tensor, *, batch: int, bptt: int = 35, choice: Tensor | RecurrentGenotype | None = None
) -> float:
    """Return the mean cross-entropy of a text, in nats a token; its exponential is the perplexity.

    Args:
        stream: (tokens,) of the text; all but the first of each of `batch` parts are predicted, and up to batch - 1 at the end
            left out.
        bptt: tokens at a time, which changes nothing but the memory.
        choice: probabilities (edges, 5) for a mixed cell, a genotype for shared weights.
    """
    text = batchify(stream, batch).to(net.embedding.device)
    training, hidden, total = net.training, net.no_text(batch), 0.0
    net.eval()
    for start in range(0, len(text) - 1, bptt):
        tokens, targets = piece(text, start, min(bptt, len(text) - 1 - start))
        logits, hidden, _ = net(tokens, hidden, choice)
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="sum")
        total += float(loss)
    net.train(training)
    return total / ((len(text) - 1) * batch)


def perplexity_of(nats: float) -> float:
    """Return exp(nats a token), or 1e304 where a number could not hold it, or where the loss is none (NaN)."""
    return math.exp(nats if nats < 700.0 else 700.0)


def require_one_process(world: World) -> None:
    """Refuse to run in several processes, which would all do the same."""
    if world.size > 1:
        raise TextTrainingError(f"{world.size} processes were started, but training on text runs in one; leave out torchrun")


def open_or_create(folder: Path, schema: str, settings: Mapping[str, Any], *, resume: bool) -> None:
    """Write config.json into a new folder, or check that what is to go on was begun with the same settings.

    What was stopped before its first checkpoint begins anew.

    Raises:
        TextTrainingError: if there is something already and `resume` is not asked for, or it was begun with other settings.
    """
    path = folder / "config.json"
    if not list_checkpoints(folder):
        if not path.exists() and folder.exists() and any(folder.iterdir()):
            raise TextTrainingError(f"{folder}: is not empty and holds no training on text; give another --out")
        write_json(path, {"schema": schema, **settings})
        return
    begun, now = read_json(path, schema=schema), json.loads(json.dumps(settings))
    if not resume:
        raise TextTrainingError(f"{folder}: already holds checkpoints; add --resume auto to go on, or give another --out")
    for name, value in now.items():
        if begun.get(name) != value:
            raise TextTrainingError(
                f"{folder}: {name} is {value!r}, but it began with {begun.get(name)!r}; use that, or another --out"
            )


def _mean(losses: list[tuple[int, float]]) -> float:
    return sum(tokens * loss for tokens, loss in losses) / max(1, sum(tokens for tokens, _ in losses))
