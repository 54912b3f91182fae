"""What searches by gradients share: steps, epochs, checkpoints, and the end for what is not finite.

What a step does is a function of (weights, alphas, the optimisers' state, seed, step): all that is random is drawn from the last
two, so that a search that was stopped goes on as if it had not been.
"""

from __future__ import annotations

import math
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

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
from search.joint.record import ALPHAS, FOLDER, METRICS, SearchError
from search.joint.relaxation import Found

INITIAL_DEVIATION = 1e-3  # of alphas before the first step

Losses = tuple[float, float | None]  # of the weights and of the alphas, None while they wait
Optimizers = list[tuple[str, nn.Module, torch.optim.Optimizer]]  # prefix in a checkpoint, whose parameters, what moves them


class SteppedSearch(ABC):
    """Networks, alphas, and where their search stands."""

    def __init__(self, run: Run, net: nn.Module, alphas: nn.ParameterDict, *, epoch_steps: int, epochs: int, advice: str) -> None:
        """Begin; `advice` says what to do about weights that are not finite."""
        self.run, self.net, self.alphas, self.advice = run, net, alphas, advice
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
        """Take step number `step`; returns the loss of the weights and that of the alphas."""

    @abstractmethod
    def optimizers(self) -> Optimizers:
        """Return what a checkpoint holds besides weights and alphas."""

    @abstractmethod
    def probabilities(self) -> dict[str, Tensor]:
        """Return cell -> (edges, operations), with gradients to the alphas."""

    @abstractmethod
    def found(self, *, limited: bool = True) -> Found:
        """Return what the alphas decide for as they are now; `limited`: with at most as many skips as a guard allows."""

    @abstractmethod
    def facts(self, epoch: int, losses: Sequence[Losses]) -> dict[str, Any]:
        """Return what metrics.jsonl says of an epoch that has just ended, counted from 0."""

    def ends(self, epoch: int, skips: Mapping[str, int]) -> str:
        """Return why the search ends after an epoch; "" = it goes on."""
        return ""

    # -- checkpoints ---------------------------------------------------------------------------------------------------

    def state(self) -> dict[str, Any]:
        """Return facts of a checkpoint that are no tensors."""
        return {"epoch": self.step / self.epoch_steps, "stopped": self.stopped, "losses": self.losses}

    def restore(self, checkpoint: Checkpoint) -> None:
        """Take over what `state` returned, before optimisers are read."""
        state = checkpoint.state()
        self.stopped = str(state["stopped"])
        self.losses = [(loss, of_alphas) for loss, of_alphas in state.get("losses", [])]  # older checkpoints have none

    def load(self) -> None:
        """Go on from the newest checkpoint, if there is one."""
        if not list_checkpoints(self.folder):
            return
        checkpoint = newest_checkpoint(self.folder)
        self.step = load_latest(self.folder, self.net)
        self.restore(checkpoint)
        tensors = load_training(checkpoint)
        with torch.no_grad():
            for cell, alphas in self.alphas.items():
                alphas.copy_(tensors[f"alphas|{cell}"])
        for prefix, module, optimizer in self.optimizers():
            own = {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
            load_optimizer(module, optimizer, own)

    def save(self) -> None:
        """Write a checkpoint."""
        training: dict[str, Tensor] = {f"alphas|{cell}": alphas for cell, alphas in self.alphas.items()}
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
        for name in (METRICS, ALPHAS):
            forget_after(self.folder / name, start)
        if start == 0:
            self._note_alphas()
        began = saved_at = time.monotonic()
        with progress("searching", self.total_steps, done=start) as advance, stop_after_step() as stop_asked:
            while self.step < self.total_steps and not self.stopped:
                found = self.one_step()
                if not all(loss is None or math.isfinite(loss) for loss in found):
                    raise SearchError(
                        f"loss is {found[0]} on images of the weights and {found[1]} on those of the alphas at step {self.step}; "
                        f"{_kept(saved)}; {self.advice}"
                    )
                self.losses.append(found)
                self.step += 1
                stop, epoch_done = stop_asked(), self.step % self.epoch_steps == 0
                advance(note=f"loss {np.mean([loss for loss, _ in self.losses[-50:]]):.3f}")
                if not (epoch_done or stop or time.monotonic() - saved_at > CHECKPOINT_SECONDS):
                    continue
                if not all(bool(tensor.isfinite().all()) for tensor in (*self.net.parameters(), *self.alphas.values())):
                    raise SearchError(f"weights are not finite after step {self.step - 1}; {_kept(saved)}; {self.advice}")
                if epoch_done:
                    self._end_epoch(began)
                self.save()
                saved, saved_at = self.step, time.monotonic()
                if stop and self.step < self.total_steps:
                    raise KeyboardInterrupt

    def _end_epoch(self, began: float) -> None:
        done = self.epoch  # the next step begins another
        record: dict[str, Any] = {"step": self.step, "epoch": done, **self.facts(done - 1, self.losses)}
        self.losses.clear()
        append_jsonl(self.folder / METRICS, record | {"seconds": round(time.monotonic() - began, 1)})
        skips = self._note_alphas()
        self.stopped = self.ends(done - 1, skips)
        shown = ", ".join(f"{name} {value:.4f}" for name, value in record.items() if isinstance(value, float))
        say(f"epoch {done}/{self.epochs}: {shown}, skips " + ", ".join(f"{n} ({cell})" for cell, n in skips.items()))
        if self.stopped:
            say(f"the search ends here: {self.stopped}")

    def _note_alphas(self) -> dict[str, int]:
        """Write where the alphas stand; returns the number of skips that they decide for."""
        skips = self.found(limited=False).skips
        rows = {cell: [[round(p, 5) for p in row] for row in value.tolist()] for cell, value in self.probabilities().items()}
        record = {"step": self.step, "epoch": self.epoch, "skips": skips, "genotype": self.found().text}
        append_jsonl(self.folder / ALPHAS, record | {"probabilities": rows})
        return skips


def fresh_alphas(shapes: Mapping[str, tuple[int, ...]], seed: int, device: torch.device) -> nn.ParameterDict:
    """Return alphas before the first step: nearly nothing, but no two alike."""
    generator = torch.Generator().manual_seed(seed)
    found = {name: (INITIAL_DEVIATION * torch.randn(shape, generator=generator)).to(device) for name, shape in shapes.items()}
    return nn.ParameterDict(found)


def _kept(step: int) -> str:
    return f"the checkpoint of step {step} is kept" if step else "no checkpoint was reached"
