"""What searches of weights and architecture together share: steps, epochs, checkpoints, and the end for what is not finite.

What a step does is a function of (weights, what decides the architecture, the optimisers' state, seed, step): all that is random
is drawn from the last two, so that a search that was stopped goes on as if it had not been.
"""

from __future__ import annotations

import math
import time
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Generic, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from ofa.artefacts import append_jsonl, forget_after
from ofa.progress import progress, say, stop_after_step
from ofa.run_dir import Run
from ofa.training.checkpoint import (
    CHECKPOINT_SECONDS,
    Checkpoint,
    list_checkpoints,
    load_latest,
    load_training,
    newest_checkpoint,
    save_checkpoint,
)
from ofa.training.optimizer import load_optimizer, optimizer_tensors
from search.joint.record import FOLDER, METRICS, SearchError

# losses of one step, of the weights and of what decides the architecture; None: that was no part of it
Losses = TypeVar("Losses", bound=tuple[float | None, float | None])
Optimizers = list[tuple[str, nn.Module, torch.optim.Optimizer]]  # prefix in a checkpoint, whose parameters, what moves them


class SteppedSearch(ABC, Generic[Losses]):
    """Networks, and where their search stands."""

    lines: ClassVar[tuple[str, ...]] = (METRICS,)  # files that grow with the epochs
    loss_names: ClassVar[tuple[str, str]]  # of the two losses: "of ..."
    epoch_name: ClassVar[str] = "epoch"

    def __init__(self, run: Run, net: nn.Module, *, epoch_steps: int, epochs: int, advice: str) -> None:
        """Begin; `advice` says what to do about weights that are not finite."""
        self.run, self.net, self.advice = run, net, advice
        self.epoch_steps, self.epochs, self.total_steps = epoch_steps, epochs, epoch_steps * epochs
        self.step, self.stopped = 0, ""
        self.losses: list[Losses] = []  # of this epoch

    @property
    def folder(self) -> Path:
        return self.run.path / FOLDER

    @property
    def epoch(self) -> int:
        """Epoch of the next step, counted from 0."""
        return self.step // self.epoch_steps

    # -- what a method is ----------------------------------------------------------------------------------------------

    @abstractmethod
    def one_step(self) -> Losses:
        """Take step number `step`; returns the loss of the weights and that of what decides the architecture."""

    @abstractmethod
    def optimizers(self) -> Optimizers:
        """Return what a checkpoint holds besides weights and `tensors`."""

    @abstractmethod
    def facts(self, epoch: int, losses: Sequence[Losses]) -> dict[str, Any]:
        """Return what metrics.jsonl says of an epoch that has just ended, counted from 0."""

    def begin(self) -> None:
        """Note what is to be noted before the first step."""

    def end_epoch(self, epoch: int) -> str:
        """Do what an epoch ends with, counted from 0, after its line was written; returns what to say of it besides.

        May set `stopped`, the reason why the search ends here.
        """
        return ""

    def learned(self) -> Iterable[Tensor]:
        """Return what must stay finite."""
        return self.net.parameters()

    # -- checkpoints ---------------------------------------------------------------------------------------------------

    def tensors(self) -> dict[str, Tensor]:
        """Return tensors of a checkpoint besides the weights and the optimisers' state."""
        return {}

    def load_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """Take over what `tensors` returned; there are others among them."""

    def state(self) -> dict[str, Any]:
        """Return facts of a checkpoint that are no tensors."""
        return {"epoch": self.step / self.epoch_steps, "stopped": self.stopped, "losses": self.losses}

    def restore(self, checkpoint: Checkpoint) -> None:
        """Take over what `state` returned, before optimisers are read."""
        state = checkpoint.state()
        self.stopped = str(state["stopped"])
        self.losses = [(first, second) for first, second in state.get("losses", [])]  # type: ignore[misc]  # older ones have none

    def load(self) -> None:
        """Go on from the newest checkpoint, if there is one."""
        if not list_checkpoints(self.folder):
            return
        checkpoint = newest_checkpoint(self.folder)
        self.step = load_latest(self.folder, self.net)
        self.restore(checkpoint)
        tensors = load_training(checkpoint)
        self.load_tensors(tensors)
        for prefix, module, optimizer in self.optimizers():
            own = {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
            load_optimizer(module, optimizer, own)

    def save(self) -> None:
        """Write a checkpoint."""
        training = self.tensors()
        for prefix, module, optimizer in self.optimizers():
            training |= {f"{prefix}{name}": value for name, value in optimizer_tensors(module, optimizer).items()}
        save_checkpoint(self.folder, self.net.state_dict(), self.step, training=training, extra=self.state())

    # -- the loop ------------------------------------------------------------------------------------------------------

    def run_steps(self) -> None:
        """Run all steps that are left.

        Raises:
            SearchError: if a loss or a weight is not finite.
        """
        start = saved = self.step
        if self.stopped or start == self.total_steps:
            return
        for name in self.lines:
            forget_after(self.folder / name, start)
        if start == 0:
            self.begin()
        began = saved_at = time.monotonic()
        with progress("searching", self.total_steps, done=start) as advance, stop_after_step() as stop_asked:
            while self.step < self.total_steps and not self.stopped:
                found = self.one_step()
                if not all(loss is None or math.isfinite(loss) for loss in found):
                    said = [f"{loss} {name}" for loss, name in zip(found, self.loss_names, strict=True) if loss is not None]
                    raise SearchError(f"loss is {' and '.join(said)} at step {self.step}; {_kept(saved)}; {self.advice}")
                self.losses.append(found)
                self.step += 1
                stop, epoch_done = stop_asked(), self.step % self.epoch_steps == 0
                advance(note=self.last_seen())
                if not (epoch_done or stop or time.monotonic() - saved_at > CHECKPOINT_SECONDS):
                    continue
                if not all(bool(tensor.isfinite().all()) for tensor in self.learned()):
                    raise SearchError(f"weights are not finite after step {self.step - 1}; {_kept(saved)}; {self.advice}")
                if epoch_done:
                    self._end_epoch(began)
                self.save()
                saved, saved_at = self.step, time.monotonic()
                if stop and self.step < self.total_steps:
                    raise KeyboardInterrupt

    def last_seen(self) -> str:
        """Return what progress says of the last steps."""
        some = [loss for loss, _ in self.losses[-50:] if loss is not None]
        return f"loss {np.mean(some):.3f}" if some else ""

    def _end_epoch(self, began: float) -> None:
        done = self.epoch  # the next step begins another
        record: dict[str, Any] = {"step": self.step, "epoch": done, **self.facts(done - 1, self.losses)}
        self.losses.clear()
        append_jsonl(self.folder / METRICS, record | {"seconds": round(time.monotonic() - began, 1)})
        besides = self.end_epoch(done - 1)
        shown = [f"{name} {value:.4f}" for name, value in record.items() if isinstance(value, float)]
        say(f"{self.epoch_name} {done}/{self.epochs}: {', '.join([*shown, besides] if besides else shown)}")
        if self.stopped:
            say(f"the search ends here: {self.stopped}")


def _kept(step: int) -> str:
    return f"the checkpoint of step {step} is kept" if step else "no checkpoint was reached"
