"""Train a supernet from Python: the arguments, the images and the run directory; trainer.py does the steps.

A step draws its batch, its subnets and its augmentation from (seed, step) and sums the gradients of its lessons before one
optimiser update. Nothing else is random, so a run that was stopped anywhere goes on as if it had not been, and every process of
a distributed run knows what the others do.
"""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from torch import nn

from ofa.artefacts import read_json, write_json
from ofa.run_dir import DataSource, Run, max_resolution
from ofa.space import ArchConfig, SearchSpace
from ofa.spaces import get_space
from ofa.training.checkpoint import KEEP, list_checkpoints
from ofa.training.config import TrainConfig
from ofa.training.data import NAMES, ORIENTED, Preprocessing, load_images, split_validation
from ofa.training.distributed import join
from ofa.training.teacher import open_teacher
from ofa.training.trainer import Trainer, TrainingError

SCHEMA = "ofa.training/1"


def train_supernet(
    space: str,
    data: str,
    out: Path | str,
    *,
    config: TrainConfig | None = None,
    resume: bool = False,
    arch: ArchConfig | None = None,
    init: Path | str | None = None,
    teacher: nn.Module | Path | str | None = None,
    validation_fraction: float = 0.1,
    flip: bool | None = None,
    strict: bool = False,
    keep: int = KEEP,
    sync_batchnorm: bool = False,
    tensorboard: bool = False,
    device: str = "auto",
) -> Run:
    """Train a supernet on images and return its run directory.

    Started by torchrun, all its processes train this one supernet together.

    Args:
        space: name of a search space.
        data: name, directory or archive of images (ofa.training.data.load_images).
        out: run directory to make.
        resume: go on from the newest checkpoint in `out`, if there is one.
        arch: train this one architecture alone instead of all (a baseline for what it inherits from the supernet).
        init: another run of the same space and number of classes whose weights to start from (with `arch`: what it inherits);
            its validation images must be this run's too if accuracies are to mean anything, which the same data and seed ensure.
        teacher: a network, run directory or ONNX file to learn from (ofa.training.teacher.open_teacher).
        validation_fraction: share of the training images held out for search.
        flip: whether augmentation may mirror images; None = unless they are digits or clothes.
        strict: stop at the first image that cannot be read.
        keep: newest checkpoints to keep; the best one stays besides.
        sync_batchnorm: BatchNorm over the images of all processes instead of each its own.
        tensorboard: write curves for TensorBoard too.
        device: "auto", "cpu", "cuda", ...
    Raises:
        OfaError: for a bad argument, unreadable data, an existing run (without `resume`), or a loss that is not finite.
    """
    config = config or TrainConfig()
    out = Path(out)
    if not 0 < validation_fraction < 1:
        raise TrainingError(f"validation_fraction is {validation_fraction!r}, expected a share between 0 and 1")
    with join(device) as world:
        if config.batch_size < 2 * world.size:
            raise TrainingError(f"batch_size {config.batch_size} is below two images for each of {world.size} processes")
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
        if world.is_first:
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
            _open_or_create(out, whole, source, arch, config, resume=resume)
        world.barrier()
        run = Run(out)
        asked = None if teacher is None else open_teacher(teacher, train, preprocess, world.device)
        trainer = Trainer(
            run, config, train, validation, preprocess, world, teacher=asked, keep=keep, sync_batchnorm=sync_batchnorm
        )
        trainer.load(None if init is None else Run(init))
        trainer.train(_tensorboard(run) if tensorboard and world.is_first else None)
    return run


def _open_or_create(
    out: Path, space: SearchSpace, source: DataSource, arch: ArchConfig | None, config: TrainConfig, *, resume: bool
) -> None:
    config_path = out / "supernet" / "config.json"
    if not list_checkpoints(out / "supernet"):  # a run that was stopped before its first checkpoint has nothing to keep
        Run.create(out, space, source, arch)
        write_json(config_path, {"schema": SCHEMA, **asdict(config)})
        return
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


def _require_equal(out: Path, what: str, begun: dict[str, Any], now: dict[str, Any]) -> None:
    for name, value in now.items():
        if begun.get(name) != value:
            raise TrainingError(
                f"{out}: {what}{name} is {value!r}, but the run began with {begun.get(name)!r}; use that, or another --out"
            )


def _tensorboard(run: Run) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise TrainingError(
            "--tensorboard needs the package tensorboard, which is not installed: pip install tensorboard"
        ) from None
    return SummaryWriter(str(run.supernet_dir / "tensorboard"))
