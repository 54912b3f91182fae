"""Train a supernet: one loop for every rule.

A step draws its batch, its subnets and its augmentation from (seed, step) and sums the gradients of its lessons before one
optimiser update. Nothing else is random, so a run that was stopped anywhere goes on as if it had not been.
"""

from __future__ import annotations

import json
import math
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ofa.artefacts import append_jsonl, read_json, read_jsonl, write_bytes, write_json
from ofa.errors import OfaError
from ofa.progress import progress, say
from ofa.run_dir import DataSource, Run, max_resolution
from ofa.space import ArchConfig, SearchSpace
from ofa.spaces import get_space
from ofa.supernet import Supernet
from ofa.training.calibration import calibrate, top1
from ofa.training.checkpoint import list_checkpoints, load_latest, save_checkpoint
from ofa.training.data import (
    NAMES,
    ORIENTED,
    Images,
    Preprocessing,
    load_images,
    split_validation,
    steps_per_epoch,
    training_batch,
)
from ofa.training.distillation import soft_cross_entropy
from ofa.training.rules import get_rule
from ofa.training.schedule import warmup_cosine

SCHEMA = "ofa.training/1"
QUICK_IMAGES = 1_000  # validation images for the per-epoch look, which must not cost a tenth of the epoch


class TrainingError(OfaError):
    """Training cannot go on."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainConfig:
    """How to train; written to supernet/config.json. Learning rate is that of SGD with Nesterov momentum 0.9."""

    recipe: str = "sandwich"
    epochs: int = 30
    batch_size: int = 128
    lr: float = 0.1  # peak; warm-up over the first twentieth, then cosine to zero
    weight_decay: float = 1e-4  # on weights of convolutions and linear layers, not on BatchNorm and biases
    label_smoothing: float = 0.1  # of the lessons that labels teach
    clip_norm: float = 5.0  # of the gradient summed over a step's lessons
    seed: int = 0

    def __post_init__(self) -> None:
        get_rule(self.recipe)
        for name, least in (("epochs", 1), ("batch_size", 2), ("lr", 0), ("weight_decay", 0), ("clip_norm", 0), ("seed", 0)):
            value = getattr(self, name)
            if not math.isfinite(value) or value < least:
                raise OfaError(f"{name} is {value!r}, expected a number of at least {least}")
        if not 0 <= self.label_smoothing < 1:
            raise OfaError(f"label_smoothing is {self.label_smoothing!r}, expected a number in [0, 1)")


def train_supernet(
    space: str,
    data: str,
    out: Path | str,
    *,
    config: TrainConfig | None = None,
    resume: bool = False,
    arch: ArchConfig | None = None,
    init: Path | str | None = None,
    validation_fraction: float = 0.1,
    flip: bool | None = None,
    strict: bool = False,
) -> Run:
    """Train a supernet on images and return its run directory.

    Args:
        space: name of a search space.
        data: name, directory or archive of images (ofa.training.data.load_images).
        out: run directory to make.
        resume: go on from the newest checkpoint in `out`, if there is one.
        arch: train this one architecture alone instead of all (a baseline for what it inherits from the supernet).
        init: another run of the same space and number of classes whose weights to start from; its validation images must be
            this run's too if accuracies are to mean anything, which the same data and seed ensure.
        validation_fraction: share of the training images held out for search.
        flip: whether augmentation may mirror images; None = unless they are digits or clothes.
        strict: stop at the first image that cannot be read.
    Raises:
        OfaError: for a bad argument, unreadable data, an existing run (without `resume`), or a loss that is not finite.
    """
    config = config or TrainConfig()
    out = Path(out)
    if not 0 < validation_fraction < 1:
        raise TrainingError(f"validation_fraction is {validation_fraction!r}, expected a share between 0 and 1")
    # a quarter larger than the largest input: room for random shifts
    images = load_images(data, "train", max_size=round(1.25 * max_resolution(get_space(space))), strict=strict)
    train, validation = split_validation(images, fraction=validation_fraction, seed=config.seed)
    if len(train) < config.batch_size:
        raise TrainingError(
            f"{data}: {len(train)} training images, fewer than batch_size {config.batch_size}; lower --batch-size"
        )
    if arch is not None:
        get_space(space).check(arch)
    whole = get_space(space, num_classes=len(images.classes))
    preprocess = Preprocessing.of(train, flip=data not in ORIENTED if flip is None else flip)
    source = DataSource(
        source=data if data in NAMES else str(Path(data).resolve()),
        num_images=len(images),
        digest=images.digest(),
        image_size=images.size,
        classes=images.classes,
        validation_fraction=validation_fraction,
        seed=config.seed,
        mean=preprocess.mean,
        std=preprocess.std,
        flip=preprocess.flip,
    )
    begun_from = None if init is None else Run(init)
    run = _open_or_create(out, whole, source, arch, config, resume=resume)
    _train(run, config, train, validation, preprocess, begun_from)
    return run


def _open_or_create(
    out: Path, space: SearchSpace, source: DataSource, arch: ArchConfig | None, config: TrainConfig, *, resume: bool
) -> Run:
    config_path = out / "supernet" / "config.json"
    if not list_checkpoints(out / "supernet"):  # a run that was stopped before its first checkpoint has nothing to keep
        run = Run.create(out, space, source, arch)
        write_json(config_path, {"schema": SCHEMA, **asdict(config)})
        return run
    run = Run(out)
    if run.space_name != space.name:
        raise TrainingError(f"{out}: is a run of space {run.space_name!r}, not {space.name!r}; give another --out")
    if run.record["arch"] != (None if arch is None else space.to_json(arch)):
        raise TrainingError(f"{out}: was begun with another --arch (or none); give the same, or another --out")
    if not resume:
        raise TrainingError(f"{out}: already holds a trained run; add --resume auto to go on, or give another --out")
    _require_equal(out, "data's ", asdict(run.data), asdict(replace(source, source=run.data.source)))
    _require_equal(out, "", read_json(config_path, schema=SCHEMA), asdict(config))
    if source.source != run.data.source:
        run.move_data(source.source)  # the same images, elsewhere
    return Run(out)


def _require_equal(out: Path, what: str, begun: dict[str, Any], now: dict[str, Any]) -> None:
    for name, value in now.items():
        if begun.get(name) != value:
            raise TrainingError(
                f"{out}: {what}{name} is {value!r}, but the run began with {begun.get(name)!r}; use that, or another --out"
            )


def _train(run: Run, config: TrainConfig, train: Images, validation: Images, preprocess: Preprocessing, init: Run | None) -> None:
    torch.manual_seed(config.seed)
    space = run.space
    net = Supernet(space).to(memory_format=torch.channels_last)  # 1.5 to 2 times faster on CPU at these sizes
    optimizer = _optimizer(net, config)
    epoch_steps = steps_per_epoch(train, config.batch_size)
    total = epoch_steps * config.epochs
    start = 0
    if list_checkpoints(run.supernet_dir):
        start = load_latest(run.supernet_dir, net, optimizer)
    elif init is not None:
        load_latest(init.supernet_dir, net)
        run.note_init(init)
    metrics = run.supernet_dir / "metrics.jsonl"
    _forget_after(metrics, start)
    say(
        f"training {space.name} ({space.size():.2g} networks, {sum(p.numel() for p in net.parameters()) / 1e6:.2f} M weights) "
        f"on {len(train)} images of {len(train.classes)} classes, {len(validation)} held out; "
        f"{config.epochs} epochs of {epoch_steps} steps" + (f", from step {start}" if start else "")
    )
    losses: list[float] = []
    began = time.monotonic()
    saved = start
    with progress("training", total, done=start) as advance, _stop_after_step() as stop_asked:
        for step in range(start, total):
            lr = warmup_cosine(step, total_steps=total, warmup_steps=max(1, total // 20), peak=config.lr)
            loss = _step(net, optimizer, space, train, preprocess, config, step, lr)
            if not math.isfinite(loss):
                kept = f"checkpoint of step {saved} is kept" if saved else "no checkpoint was reached"
                raise TrainingError(f"loss is {loss} at step {step}; {kept}; start again with a lower --lr (now {config.lr})")
            losses.append(loss)
            done = step + 1
            advance(note=f"loss {np.mean(losses[-50:]):.3f}")
            if done % epoch_steps == 0 or stop_asked():
                record: dict[str, object] = {"step": done, "epoch": done / epoch_steps, "lr": lr, "loss": float(np.mean(losses))}
                if done % epoch_steps == 0:
                    record |= _quick_look(net, space, train, validation, preprocess)
                    say(
                        f"epoch {done // epoch_steps}/{config.epochs}: "
                        + ", ".join(f"{k} {v:.4f}" for k, v in record.items() if k not in ("step", "epoch"))
                    )
                append_jsonl(metrics, record | {"seconds": round(time.monotonic() - began, 1)})
                losses.clear()
                if not all(bool(p.isfinite().all()) for p in net.parameters()):
                    raise TrainingError(
                        f"weights are not finite after step {step}; the last checkpoint is kept; lower --lr (now {config.lr})"
                    )
                save_checkpoint(run.supernet_dir, net, optimizer, done)
                saved = done
                if stop_asked() and done < total:
                    raise KeyboardInterrupt
    if start == total:
        say(f"{run.path}: all {config.epochs} epochs are done already")


def _step(
    net: Supernet,
    optimizer: torch.optim.Optimizer,
    space: SearchSpace,
    train: Images,
    preprocess: Preprocessing,
    config: TrainConfig,
    step: int,
    lr: float,
) -> float:
    """One optimiser update from the summed gradients of all lessons; returns the first lesson's loss."""
    images, labels = training_batch(train, step, batch_size=config.batch_size, seed=config.seed, flip=preprocess.flip)
    lessons = get_rule(config.recipe)(space, np.random.default_rng((config.seed, step, 0x5B)))
    net.train()
    optimizer.zero_grad(set_to_none=True)
    teacher: Tensor | None = None
    first = math.nan
    for lesson in lessons:
        logits = net(preprocess(images, space.resolution(lesson.arch)), lesson.arch)
        if lesson.from_labels:
            loss = F.cross_entropy(logits, labels, label_smoothing=config.label_smoothing)
        else:
            assert teacher is not None, "a rule's first lesson learns from the labels"
            loss = soft_cross_entropy(logits, teacher)
        loss.backward()
        if teacher is None:
            teacher, first = logits.detach(), float(loss.detach())
            if not math.isfinite(first):
                return first
    if config.clip_norm:
        nn.utils.clip_grad_norm_(net.parameters(), config.clip_norm)
    for group in optimizer.param_groups:
        group["lr"] = lr
    optimizer.step()
    return first


def _optimizer(net: nn.Module, config: TrainConfig) -> torch.optim.Optimizer:
    """SGD; decay only on weights of convolutions and linear layers (vectors are BatchNorm's and biases)."""
    parameters = list(net.named_parameters())
    decayed = [p for name, p in parameters if p.ndim > 1 and "kernel_transforms" not in name]
    plain = [p for name, p in parameters if p.ndim <= 1 or "kernel_transforms" in name]
    groups = [{"params": decayed, "weight_decay": config.weight_decay}, {"params": plain, "weight_decay": 0.0}]
    return torch.optim.SGD(groups, lr=config.lr, momentum=0.9, nesterov=True)


def _quick_look(
    net: Supernet, space: SearchSpace, train: Images, validation: Images, preprocess: Preprocessing
) -> dict[str, float]:
    """Top-1 of the largest and smallest networks on some validation images, re-calibrated."""
    some = validation.subset(np.arange(len(validation))[:: max(1, len(validation) // QUICK_IMAGES)])
    found = {}
    for name, arch in (("top1_largest", space.largest), ("top1_smallest", space.smallest)):
        subnet = net.extract(arch).to(memory_format=torch.channels_last)
        calibrate(subnet, calibration_batches(train, preprocess, space.resolution(arch), num_images=500))
        found[name] = top1(subnet, some, preprocess, space.resolution(arch))
    return found


def calibration_batches(
    train: Images, preprocess: Preprocessing, resolution: int, *, num_images: int = 2_000, batch_size: int = 200
) -> list[Tensor]:
    """Return normalised batches of a fixed random choice of training images, of about equal size.

    A last batch of one image would have no variance where the network ends at one pixel.
    """
    chosen = np.random.default_rng(0).permutation(len(train))[:num_images]
    parts = np.array_split(chosen, max(1, round(len(chosen) / batch_size)))
    return [preprocess(train.subset(part).images, resolution) for part in parts]


def _forget_after(metrics: Path, step: int) -> None:
    """Drop the records of steps that will be run again."""
    if metrics.exists():
        kept = [record for record in read_jsonl(metrics) if record.get("step", 0) <= step]
        write_bytes(metrics, "".join(json.dumps(record) + "\n" for record in kept).encode())


@contextmanager
def _stop_after_step() -> Iterator[Callable[[], bool]]:
    """Turn the first Ctrl-C or SIGTERM into a request to stop between steps; a second one interrupts at once."""
    asked = False

    def ask(signum: int, frame: object) -> None:
        nonlocal asked
        if asked:
            raise KeyboardInterrupt
        asked = True
        say("stopping after this step (once more: stop at once)")

    try:
        previous = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    except ValueError:  # not in the main thread: signals are not ours to handle
        yield lambda: False
        return
    try:
        yield lambda: asked
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
