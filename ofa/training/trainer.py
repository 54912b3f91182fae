"""The training loop: phases of steps, each step a batch, some lessons and one update; checkpoints and looks in between."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from ofa.artefacts import append_jsonl, forget_after
from ofa.counts import macs
from ofa.errors import OfaError
from ofa.progress import progress, say, stop_after_step
from ofa.run_dir import Run
from ofa.sorting import sort_channels
from ofa.supernet import Noise, Supernet
from ofa.training.augment import cut_out
from ofa.training.auxiliary import Auxiliary
from ofa.training.calibration import calibrate
from ofa.training.checkpoint import (
    CHECKPOINT_SECONDS,
    KEEP,
    list_checkpoints,
    load_latest,
    load_training,
    newest_checkpoint,
    save_checkpoint,
    save_weights,
)
from ofa.training.config import TrainConfig
from ofa.training.data import Images, Preprocessing, calibration_batches, steps_per_epoch, training_batch
from ofa.training.distillation import DISTILLATIONS
from ofa.training.distributed import World, synchronize_batchnorm
from ofa.training.optimizer import MovingAverage, load_optimizer, make_optimizer, optimizer_tensors
from ofa.training.phases import Phase, make_phases
from ofa.training.rules import Lesson
from ofa.training.schedule import learning_rate
from ofa.training.teacher import Teacher, network_teacher
from ofa.training.validation import look_at, plan_look


class TrainingError(OfaError):
    """Training cannot go on."""


class Trainer:
    """A supernet, its optimiser, and where training stands."""

    def __init__(
        self,
        run: Run,
        config: TrainConfig,
        train: Images,
        validation: Images,
        preprocess: Preprocessing,
        world: World,
        *,
        teacher: Teacher | None = None,
        keep: int = KEEP,
        sync_batchnorm: bool = False,
    ) -> None:
        torch.manual_seed(config.seed)
        self.run, self.config, self.world, self.keep = run, config, world, keep
        self.images, self.validation, self.preprocess = train, validation, preprocess
        self.space = run.space
        # channels_last: 1.5 to 2 times faster on a processor at these sizes
        self.net = Supernet(self.space).to(world.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        if sync_batchnorm and world.size > 1:
            self.net.adapt_blocks(synchronize_batchnorm)
        self.epoch_steps = steps_per_epoch(train, config.batch_size)
        self.total_steps = self.epoch_steps * config.epochs
        self.phases = make_phases(self.space, config, total_steps=self.total_steps, taught=teacher is not None)
        self.look = plan_look(
            self.space,
            epoch_images=self.epoch_steps * config.batch_size,
            num_validation=len(validation),
            step_macs=min(self._mean_macs(phase) for phase in self.phases),
        )
        self.optimizer = make_optimizer(self.net, config)
        self.auxiliary = Auxiliary(self.space, config, world.device) if config.auxiliary else None
        self.average = MovingAverage(self.net, config.ema_decay) if config.ema_decay else None
        self.precision = _precision(config, world.device)
        self.scaler = torch.amp.GradScaler(world.device.type, enabled=self.precision is torch.float16)
        self.outside_teacher = self.teacher = teacher
        self.step = 0

    # -- checkpoints ---------------------------------------------------------------------------------------------------

    def load(self, init: Run | None) -> None:
        """Go on from the newest checkpoint if there is one, else start from the weights of `init`."""
        if list_checkpoints(self.run.supernet_dir):
            checkpoint = newest_checkpoint(self.run.supernet_dir)
            self.step = load_latest(self.run.supernet_dir, self.net)
            training = load_training(checkpoint)
            if self.average:
                self.average = MovingAverage(self.net, self.config.ema_decay)
                with torch.no_grad():
                    for name, parameter in self.net.named_parameters():
                        parameter.copy_(training[f"weights|{name}"])
            load_optimizer(self.net, self.optimizer, _under("optimizer", training))
            if self.auxiliary:
                self.auxiliary.load(_under("auxiliary", training))
            if state := _under("rule", training):
                self._phase().rule.load_state(state)
            if self.scaler.is_enabled():
                self.scaler.load_state_dict(checkpoint.state()["scaler"])
        elif init is not None:
            self._inherit(init)
            if self.world.is_first:
                self.run.note_init(init)
            if self.average:
                self.average = MovingAverage(self.net, self.config.ema_decay)

    def _inherit(self, init: Run) -> None:
        if init.space_name != self.run.space_name:
            raise TrainingError(f"--init {init.path}: is a run of space {init.space_name!r}, expected {self.run.space_name!r}")
        fresh = [] if init.space.num_classes == self.space.num_classes else [list(self.net.layers)[-1]]
        if fresh:
            self._say(
                f"{init.path} has {init.space.num_classes} classes, not {self.space.num_classes}: the classifier starts anew"
            )
        self.net.inherit(init.load_supernet(), fresh=fresh)

    def save(self, score: float | None = None) -> None:
        """Write a checkpoint."""
        if not self.world.is_first:
            return
        rule = self._phase(self.step - 1).rule.state()
        training = {f"optimizer|{k}": v for k, v in optimizer_tensors(self.net, self.optimizer).items()}
        training |= {f"rule|{k}": v for k, v in rule.items()}
        if self.auxiliary:
            training |= {f"auxiliary|{k}": v for k, v in self.auxiliary.tensors().items()}
        if self.average:
            training |= {f"weights|{name}": p.detach().clone() for name, p in self.net.named_parameters()}
        scaler = {"scaler": self.scaler.state_dict()} if self.scaler.is_enabled() else {}
        with self._averaged():
            save_checkpoint(
                self.run.supernet_dir,
                self.net.state_dict(),
                self.step,
                training=training,
                score=score,
                extra={"epoch": self.step / self.epoch_steps, "phase": self._phase(self.step - 1).name, **scaler},
                keep=self.keep,
            )

    @contextmanager
    def _averaged(self) -> Iterator[None]:
        """Inside, the network has the averaged weights if training keeps them."""
        if not self.average:
            yield
            return
        self.average.swap(self.net)
        try:
            yield
        finally:
            self.average.swap(self.net)

    # -- the loop ------------------------------------------------------------------------------------------------------

    def train(self, board: Any = None) -> None:
        """Run all steps that are left."""
        config, start = self.config, self.step
        metrics = self.run.supernet_dir / "metrics.jsonl"
        if self.world.is_first:
            forget_after(metrics, start)
            self._introduce()
        if start == self.total_steps:
            self._say(f"{self.run.path}: all {config.epochs} epochs are done already")
            return
        losses: list[float] = []
        began = saved_at = time.monotonic()
        saved = start
        stop = False
        with progress("training", self.total_steps, done=start) as advance, stop_after_step() as stop_asked:
            while self.step < self.total_steps:
                phase = self._phase()
                if self.step == phase.start or self.step == start:
                    self.enter(phase)
                lr = learning_rate(
                    config.schedule,
                    self.step - phase.start,
                    total_steps=phase.end - phase.start,
                    warmup_steps=phase.warmup_steps,
                    peak=phase.lr,
                    floor=config.lr_floor,
                )
                loss, stop = self.one_step(phase, lr, stop=stop_asked())
                if not math.isfinite(loss):
                    kept = f"checkpoint of step {saved} is kept" if saved else "no checkpoint was reached"
                    raise TrainingError(
                        f"loss is {loss} at step {self.step}; {kept}; start again with a lower --lr (now {config.lr})"
                    )
                losses.append(loss)
                self.step += 1
                advance(note=f"{phase.name} loss {np.mean(losses[-50:]):.3f}")
                epoch_done = self.step % self.epoch_steps == 0
                if not (epoch_done or stop):
                    if time.monotonic() - saved_at > CHECKPOINT_SECONDS and self._is_finite():
                        self.save()
                        saved, saved_at = self.step, time.monotonic()
                    continue
                if not self._is_finite():
                    raise TrainingError(
                        f"weights are not finite after step {self.step - 1}; the last checkpoint is kept; "
                        f"lower --lr (now {config.lr})"
                    )
                record: dict[str, Any] = {"step": self.step, "epoch": self.step / self.epoch_steps, "phase": phase.name}
                record |= {"lr": lr, "loss": float(np.mean(losses))}
                score = self._report(record, metrics, began, board) if self.world.is_first else None
                losses.clear()
                self.save(score)
                self.world.barrier()
                saved, saved_at = self.step, time.monotonic()
                if stop and self.step < self.total_steps:
                    raise KeyboardInterrupt

    def one_step(self, phase: Phase, lr: float, *, stop: bool) -> tuple[float, bool]:
        """One optimiser update from the summed gradients of all lessons; returns the first lesson's loss and whether to stop."""
        config, world = self.config, self.world
        images, labels = training_batch(
            self.images, self.step, config, flip=self.preprocess.flip, rank=world.rank, num_ranks=world.size
        )
        images, labels = images.to(world.device), labels.to(world.device)
        share = len(images) / config.batch_size  # processes may hold different numbers of images
        lessons = phase.rule.lessons(np.random.default_rng((config.seed, self.step, 0x5B)))
        self.net.train()
        self._zero_grad()
        asks = any(lesson.teacher_weight for lesson in lessons)
        teacher = self.teacher(images) if asks and self.teacher else None
        losses = []
        for index, lesson in enumerate(lessons):
            inputs = self.preprocess(images, self.space.resolution(lesson.arch))
            if config.cutout:
                inputs = cut_out(inputs, self._cutout_centres(), config.cutout)
            noise = self._noise(index) if lesson.regularized else None
            observe = self.auxiliary.observe if self.auxiliary else None
            if self.precision is torch.float32:
                logits = self.net(inputs, lesson.arch, noise, observe=observe)
            else:
                with torch.autocast(world.device.type, self.precision):
                    logits = self.net(inputs, lesson.arch, noise, observe=observe).float()
            if teacher is None:
                teacher = logits.detach()  # in place: the first lesson of the step
            loss = self._loss(lesson, logits, labels, teacher)
            if self.auxiliary:
                loss = loss + self.auxiliary.loss(labels)
            self.scaler.scale(loss * share).backward()
            losses.append(loss.detach() * share)
        numbers = torch.stack([*losses, torch.full_like(losses[0], float(stop))])
        *summed, stops = world.add_up(self._parameters(), numbers).tolist()
        phase.rule.observe(lessons, summed)
        for optimizer in self._optimizers():
            self.scaler.unscale_(optimizer)
            for group in optimizer.param_groups:
                group["lr"] = lr
        if config.clip_norm:
            nn.utils.clip_grad_norm_(self._parameters(), config.clip_norm)
        for optimizer in self._optimizers():
            self.scaler.step(optimizer)
        self.scaler.update()
        if self.average:
            self.average.update(self.net, self.step)
        return summed[0], stops > 0

    def _loss(self, lesson: Lesson, logits: Tensor, labels: Tensor, teacher: Tensor) -> Tensor:
        loss = logits.new_zeros(())
        if lesson.label_weight:
            smoothing = self.config.label_smoothing if lesson.regularized else 0.0
            loss = loss + lesson.label_weight * F.cross_entropy(logits, labels, label_smoothing=smoothing)
        if lesson.teacher_weight:
            distil = DISTILLATIONS[self.config.distillation]
            loss = loss + lesson.teacher_weight * distil(logits, teacher, self.config.temperature)
        return loss

    def _noise(self, index: int) -> Noise | None:
        """Dropout of the step's lesson number `index`: other masks on every process."""
        config = self.config
        drop_path = config.drop_path * (self.step // self.epoch_steps) / config.epochs  # rises with the epochs, as published
        if not (config.dropout or config.drop_connect or drop_path):
            return None
        seed = np.random.SeedSequence((config.seed, self.step, index, self.world.rank, 0xD0)).generate_state(1, np.uint64)
        generator = torch.Generator().manual_seed(int(seed[0] >> np.uint64(1)))
        return Noise(config.dropout, config.drop_connect, generator, drop_path)

    def _cutout_centres(self) -> NDArray[np.float64]:
        """Centres of the squares that this process's part of the batch lacks, (n, 2) shares of the side."""
        config = self.config
        drawn = np.random.default_rng((config.seed, self.step, 0xC07)).random((min(config.batch_size, len(self.images)), 2))
        return np.array_split(drawn, self.world.size)[self.world.rank]

    def _optimizers(self) -> list[torch.optim.Optimizer]:
        return [self.optimizer, *([self.auxiliary.optimizer] if self.auxiliary else [])]

    def _parameters(self) -> list[nn.Parameter]:
        return [*self.net.parameters(), *(self.auxiliary.head.parameters() if self.auxiliary else [])]

    def _zero_grad(self) -> None:
        for optimizer in self._optimizers():
            optimizer.zero_grad(set_to_none=True)

    def _phase(self, step: int | None = None) -> Phase:
        """The phase of a step; the last one after the last step."""
        step = self.step if step is None else step
        return next((phase for phase in self.phases if phase.start <= step < phase.end), self.phases[-1])

    def enter(self, phase: Phase) -> None:
        """Do what a phase begins with, or look up what it began with."""
        if self.step == phase.start and self.step > 0:
            self.optimizer = make_optimizer(self.net, self.config)
        if len(self.phases) > 1:
            self._say(f"phase {phase.name}: steps {phase.start} to {phase.end}")
        if phase.rule.taught and self.outside_teacher is None:
            first = next(p for p in self.phases if p.rule.taught)
            self.teacher = self._own_teacher(make=self.step == first.start)
        if self.step == phase.start and phase.sort_channels is not None:
            sort_channels(self.net, phase.sort_channels)
            if self.average:
                self.average.restart(self.net)  # the averages know nothing of the new order

    def _own_teacher(self, *, make: bool) -> Teacher:
        """The largest network as it was when the first phase that has a teacher began; `make`: that is now."""
        folder, largest = self.run.supernet_dir / "teacher", self.space.largest
        resolution = self.space.resolution(largest)
        if self.world.is_first and make:
            net = self.net.extract(largest)
            batches = calibration_batches(self.images, self.preprocess, resolution)
            calibrate(net, [batch.to(self.world.device) for batch in batches])
            save_weights(folder, net)
        self.world.barrier()
        net = self.net.extract(largest)
        load_latest(folder, net)
        return network_teacher(net, self.preprocess, resolution, self.world.device)

    # -- talk ----------------------------------------------------------------------------------------------------------

    def _introduce(self) -> None:
        space, config = self.space, self.config
        self._say(
            f"training {space.name} ({space.size():.2g} networks, {sum(p.numel() for p in self.net.parameters()) / 1e6:.2f} M "
            f"weights) on {len(self.images)} images of {len(self.images.classes)} classes, {len(self.validation)} held out; "
            f"{config.recipe}, {config.epochs} epochs of {self.epoch_steps} steps"
            + (f" on {self.world.size} processes" if self.world.size > 1 else "")
            + (f", from step {self.step}" if self.step else "")
        )

    def _report(self, record: dict[str, Any], metrics: Path, began: float, board: Any) -> float | None:
        """Look at accuracy if it is time to, write the record, and return the mean accuracy."""
        epoch, left = divmod(self.step, self.epoch_steps)
        found: dict[str, float] = {}
        if left == 0 and (epoch % self.look.every == 0 or self.step == self.total_steps):
            looked = time.monotonic()
            with self._averaged():
                found = look_at(self.net, self.look, self.images, self.validation, self.preprocess)
            record = {**record, **found, "look_seconds": round(time.monotonic() - looked, 1)}
        if left == 0:
            facts = ", ".join(f"{k} {v:.4f}" for k, v in record.items() if k == "lr" or k == "loss" or k in found)
            self._say(f"epoch {epoch}/{self.config.epochs}: {facts}")
        append_jsonl(metrics, record | {"seconds": round(time.monotonic() - began, 1)})
        if board is not None:
            for name in ("lr", "loss", *found):
                board.add_scalar(name, record[name], self.step)
            board.flush()
        return float(np.mean(list(found.values()))) if found else None

    def _mean_macs(self, phase: Phase) -> float:
        """Multiply-adds of one image's forward passes in a step, averaged over some steps."""
        steps = 8
        archs = [
            lesson.arch for s in range(steps) for lesson in phase.rule.lessons(np.random.default_rng((self.config.seed, s, 0x5B)))
        ]
        return float(macs(self.space, self.space.encode(archs)).sum()) / steps

    def _is_finite(self) -> bool:
        return all(bool(p.isfinite().all()) for p in self.net.parameters())

    def _say(self, message: str) -> None:
        if self.world.is_first:
            say(message)


def _under(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors under "<prefix>|", without it."""
    return {name[len(prefix) + 1 :]: value for name, value in tensors.items() if name.startswith(f"{prefix}|")}


def _precision(config: TrainConfig, device: torch.device) -> torch.dtype:
    """The type to compute in. On a processor bf16 is slower than fp32 (docs/benchmarks.md)."""
    if config.precision != "auto":
        return {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[config.precision]
    return torch.bfloat16 if device.type == "cuda" and torch.cuda.is_bf16_supported() else torch.float32
