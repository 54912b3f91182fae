"""The steps of a search by gradients: alphas on one half of the images, weights on the other, epoch after epoch.

What a step does is a function of (weights, alphas, both optimisers' state, seed, step): batches, augmentation and dropped skips
are drawn from the last two, so that a search that was stopped goes on as if it had not been.
"""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ofa.artefacts import append_jsonl
from ofa.progress import progress, say, stop_after_step
from ofa.run_dir import Run
from ofa.training.augment import augment, draw
from ofa.training.checkpoint import list_checkpoints, load_latest, load_training, newest_checkpoint, save_checkpoint
from ofa.training.config import TrainConfig
from ofa.training.data import Images, Preprocessing, in_batches, steps_per_epoch, training_batch
from ofa.training.optimizer import load_optimizer, optimizer_tensors
from search.joint.architect import AlphaGradients, first_order, momentum_buffers, second_order, second_order_exact
from search.joint.config import DartsConfig
from search.joint.hardware import LatencyTerm
from search.joint.record import ALPHAS, FOLDER, METRICS, SearchError, forget_after
from search.joint.relaxation import Found, Relaxation

CHECKPOINT_SECONDS = 600.0  # longer epochs are saved in between
LOOK_IMAGES = 2_000  # of those that alphas learn from, on which accuracy is looked at after each epoch
INITIAL_DEVIATION = 1e-3  # of the alphas before the first step

Batch = tuple[Tensor, Tensor]  # images and labels
Losses = tuple[float, float | None]  # of the weights and of the alphas, None while they wait


class BilevelSearch:
    """The network of all operations, the alphas, their optimisers, and where the search stands."""

    def __init__(
        self,
        run: Run,
        config: DartsConfig,
        space: Relaxation,
        halves: tuple[Images, Images],
        preprocess: Preprocessing,
        device: torch.device,
        term: LatencyTerm | None = None,
    ) -> None:
        torch.manual_seed(config.seed)
        self.run, self.config, self.space, self.term, self.device = run, config, space, term, device
        self.weight_half, self.alpha_half, self.preprocess = *halves, preprocess
        net = space.build(run.num_classes)
        self.net = net.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.weights = list(self.net.parameters())
        self.alphas = self._fresh_alphas()
        self.optimizer = torch.optim.SGD(
            self.weights, lr=config.lr, momentum=config.momentum, weight_decay=config.weight_decay, fused=True
        )
        self.alpha_optimizer = torch.optim.Adam(
            self.alphas.parameters(), lr=config.alpha_lr, betas=(0.5, 0.999), weight_decay=config.alpha_weight_decay
        )
        self.batches = TrainConfig(batch_size=config.batch_size, seed=config.seed)
        self.epoch_steps = steps_per_epoch(self.weight_half, config.batch_size)
        self.total_steps = self.epoch_steps * config.epochs
        self.step, self.stopped = 0, ""

    @property
    def folder(self) -> Path:
        return self.run.path / FOLDER

    def probabilities(self) -> dict[str, Tensor]:
        """Return cell -> (edges, operations), with gradients to the alphas."""
        return {cell: alphas.softmax(-1) for cell, alphas in self.alphas.items()}

    def found(self, *, limited: bool = True) -> Found:
        """Return what the alphas decide for as they are now; `limited`: with at most max_skips skips."""
        chosen = {cell: p.detach() for cell, p in self.probabilities().items()}
        return self.space.derive(chosen, self.config.guards.max_skips if limited else None)

    # -- checkpoints ---------------------------------------------------------------------------------------------------

    def load(self) -> None:
        """Go on from the newest checkpoint, if there is one."""
        if not list_checkpoints(self.folder):
            return
        checkpoint = newest_checkpoint(self.folder)
        self.step = load_latest(self.folder, self.net)
        self.stopped = str(checkpoint.state()["stopped"])
        tensors = load_training(checkpoint)
        with torch.no_grad():
            for cell, alphas in self.alphas.items():
                alphas.copy_(tensors[f"alphas|{cell}"])
        for prefix, module, optimizer in self._optimizers():
            own = {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
            load_optimizer(module, optimizer, own)

    def save(self) -> None:
        """Write a checkpoint."""
        training = {f"alphas|{cell}": alphas for cell, alphas in self.alphas.items()}
        for prefix, module, optimizer in self._optimizers():
            training |= {f"{prefix}{name}": value for name, value in optimizer_tensors(module, optimizer).items()}
        extra = {"epoch": self.step / self.epoch_steps, "stopped": self.stopped}
        save_checkpoint(self.folder, self.net.state_dict(), self.step, training=training, extra=extra)

    def _optimizers(self) -> list[tuple[str, nn.Module, torch.optim.Optimizer]]:
        return [("sgd|", self.net, self.optimizer), ("adam|", self.alphas, self.alpha_optimizer)]

    # -- the loop ------------------------------------------------------------------------------------------------------

    def run_steps(self) -> None:
        """Run all steps that are left.

        Raises:
            SearchError: if a loss or a weight is not finite.
        """
        start = saved = self.step
        if self.stopped or start == self.total_steps:
            return
        forget_after(self.folder, start)
        if start == 0:
            self._note_alphas()
        began = saved_at = time.monotonic()
        losses: list[Losses] = []
        with progress("searching", self.total_steps, done=start) as advance, stop_after_step() as stop_asked:
            while self.step < self.total_steps and not self.stopped:
                found = self.one_step()
                if not all(loss is None or math.isfinite(loss) for loss in found):
                    raise SearchError(
                        f"loss is {found[0]} on images of the weights and {found[1]} on those of the alphas at step {self.step}; "
                        f"{_kept(saved)}; start again with a lower --lr (now {self.config.lr:g})"
                    )
                losses.append(found)
                self.step += 1
                stop, epoch_done = stop_asked(), self.step % self.epoch_steps == 0
                advance(note=f"loss {np.mean([loss for loss, _ in losses[-50:]]):.3f}")
                if not (epoch_done or stop or time.monotonic() - saved_at > CHECKPOINT_SECONDS):
                    continue
                if not all(bool(tensor.isfinite().all()) for tensor in (*self.weights, *self.alphas.values())):
                    raise SearchError(
                        f"weights are not finite after step {self.step - 1}; {_kept(saved)}; "
                        f"start again with a lower --lr (now {self.config.lr:g})"
                    )
                if epoch_done:
                    self._end_epoch(losses, began)
                    losses.clear()
                self.save()
                saved, saved_at = self.step, time.monotonic()
                if stop and self.step < self.total_steps:
                    raise KeyboardInterrupt

    def one_step(self) -> Losses:
        """One step of the alphas, unless they wait, and one of the weights; returns the losses of the latter and the former."""
        config, epoch = self.config, self.step // self.epoch_steps
        lr, drop = config.learning_rate(epoch), config.guards.drop_rate(self.step, self.total_steps)
        self.net.train()
        own = self._prepared(*training_batch(self.weight_half, self.step, self.batches, flip=self.preprocess.flip))
        alpha_loss = None
        if config.guards.decides(epoch):
            other = self._prepared(*self._alpha_batch())
            gradients = self._alpha_gradients(own, other, lr, drop)
            alpha_loss = float(gradients.loss)
            for alphas, gradient in zip(self.alphas.values(), gradients.gradients, strict=True):
                alphas.grad = gradient
            if self.term is not None:
                self.term(self.probabilities()).backward()  # adds to what is there
            self.alpha_optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        loss = self._loss(*own, drop, {cell: p.detach() for cell, p in self.probabilities().items()})
        loss.backward()
        if config.clip_norm:
            nn.utils.clip_grad_norm_(self.weights, config.clip_norm)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.optimizer.step()
        return float(loss.detach()), alpha_loss

    def _alpha_gradients(self, own: Batch, other: Batch, lr: float, drop: float) -> AlphaGradients:
        config, alphas = self.config, list(self.alphas.values())

        def train_loss() -> Tensor:
            return self._loss(*own, drop, self.probabilities())

        def valid_loss() -> Tensor:
            return self._loss(*other, drop, self.probabilities())

        if config.order == "1":
            return first_order(valid_loss, alphas)
        differentiate = second_order if config.order == "2" else second_order_exact
        return differentiate(
            train_loss,
            valid_loss,
            self.weights,
            alphas,
            eta=lr,
            momentum=config.momentum,
            buffers=momentum_buffers(self.optimizer, self.weights),
            weight_decay=config.weight_decay,
        )

    def _loss(self, images: Tensor, labels: Tensor, drop: float, chosen: dict[str, Tensor]) -> Tensor:
        # every pass of a step drops the same skips, as a difference between passes needs
        seed = np.random.SeedSequence((self.config.seed, self.step, 0xD5)).generate_state(1, np.uint64)
        generator = torch.Generator().manual_seed(int(seed[0] >> np.uint64(1)))
        logits = self.space.forward(self.net, images, chosen, skip_drop=drop, generator=generator)
        return F.cross_entropy(logits, labels)

    def _alpha_batch(self) -> Batch:
        """A random batch of the alphas' images: the published code shuffles them anew for every step."""
        rng = np.random.default_rng((self.config.seed, self.step, 0xA1FA))
        batch = rng.choice(len(self.alpha_half), self.config.batch_size, replace=False)
        draws = draw(rng, len(batch), self.alpha_half.size, flip=self.preprocess.flip, crop_scale=1.0)
        return augment(self.alpha_half.images[batch], draws), self.alpha_half.labels[batch]

    def _prepared(self, images: Tensor, labels: Tensor) -> Batch:
        images, labels = images.to(self.device), labels.to(self.device)
        return self.preprocess(images, self.config.resolution), labels

    def _fresh_alphas(self) -> nn.ParameterDict:
        generator = torch.Generator().manual_seed(self.config.seed)
        shape = {cell: (len(rows), len(self.space.operations)) for cell, rows in self.space.edges.items()}
        return nn.ParameterDict(
            {cell: (INITIAL_DEVIATION * torch.randn(size, generator=generator)).to(self.device) for cell, size in shape.items()}
        )

    # -- what is noted -------------------------------------------------------------------------------------------------

    def _end_epoch(self, losses: list[Losses], began: float) -> None:
        epoch = self.step // self.epoch_steps
        record: dict[str, Any] = {"step": self.step, "epoch": epoch, "lr": self.config.learning_rate(epoch - 1)}
        record["loss"] = float(np.mean([loss for loss, _ in losses]))
        if alpha_losses := [loss for _, loss in losses if loss is not None]:
            record["alpha_loss"] = float(np.mean(alpha_losses))
        record["alpha_top1"] = self._look()
        if self.term is not None:
            record["expected_ms"] = float(self.term.expected({c: p.detach() for c, p in self.probabilities().items()}))
        append_jsonl(self.folder / METRICS, record | {"seconds": round(time.monotonic() - began, 1)})
        skips = self._note_alphas()
        self.stopped = self.config.guards.ends(epoch - 1, skips) or ""
        facts = ", ".join(f"{name} {value:.4f}" for name, value in record.items() if isinstance(value, float))
        say(f"epoch {epoch}/{self.config.epochs}: {facts}, skips " + ", ".join(f"{n} ({cell})" for cell, n in skips.items()))
        if self.stopped:
            say(f"the search ends here: {self.stopped}")

    def _note_alphas(self) -> dict[str, int]:
        """Write where the alphas stand; returns the number of skips that they decide for."""
        skips = self.found(limited=False).skips
        rows = {cell: [[round(p, 5) for p in row] for row in value.tolist()] for cell, value in self.probabilities().items()}
        record = {"step": self.step, "epoch": self.step // self.epoch_steps, "skips": skips, "genotype": self.found().text}
        append_jsonl(self.folder / ALPHAS, record | {"probabilities": rows})
        return skips

    @torch.no_grad()
    def _look(self) -> float:
        """Top-1 of the network of all operations on images that alphas learn from: not that of what is derived from it.

        BatchNorm goes by the batch, as in the search.
        """
        size = self.config.batch_size
        order = np.random.default_rng((self.config.seed, 0x100C)).permutation(len(self.alpha_half))
        some = self.alpha_half.subset(order[: max(1, min(LOOK_IMAGES, len(order)) // size) * size])
        chosen, generator, right = self.probabilities(), torch.Generator(), 0
        for batch in in_batches(some, size):
            images, labels = self._prepared(*batch)
            logits = self.space.forward(self.net, images, chosen, skip_drop=0.0, generator=generator)
            right += int((logits.argmax(1) == labels).sum())
        return right / len(some)


def _kept(step: int) -> str:
    return f"the checkpoint of step {step} is kept" if step else "no checkpoint was reached"
