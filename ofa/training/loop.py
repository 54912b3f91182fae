"""Train a supernet from Python: the arguments, the images and the run directory; trainer.py does the steps.

A step draws its batch, its subnets and its augmentation from (seed, step) and sums the gradients of its lessons before one
optimiser update. Nothing else is random, so a run that was stopped anywhere goes on as if it had not been, and every process of
a distributed run knows what the others do.
"""

from __future__ import annotations

import os
import shutil
import warnings
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, NamedTuple

from torch import nn

from ofa.artefacts import read_json, write_json
from ofa.run_dir import DataSource, Run, max_resolution
from ofa.space import ArchConfig, SearchSpace
from ofa.spaces import get_space
from ofa.training.auxiliary import make_head
from ofa.training.checkpoint import KEEP, list_checkpoints
from ofa.training.config import TrainConfig
from ofa.training.data import ORIENTED, Images, Preprocessing, load_images, split_validation
from ofa.training.distributed import join
from ofa.training.phases import make_phases
from ofa.training.teacher import fingerprint, open_teacher
from ofa.training.trainer import Trainer, TrainingError

SCHEMA = "ofa.training/1"


def train_supernet(
    space: str,
    data: str | Run,
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
        data: name, directory or archive of images (ofa.training.data.load_images); or another run, to take its images, their
            split and their normalisation from.
        out: run directory to make.
        resume: go on from the newest checkpoint in `out`, if there is one.
        arch: train this one architecture alone instead of all (a baseline for what it inherits).
        init: another run of the same space whose weights to start from: a supernet, its largest network trained alone, or with
            `arch` a supernet that has it. With other classes the classifier starts anew. Its validation images must be this run's
            too if accuracies are to mean anything, which the same data and seed ensure.
        teacher: a network, run directory or ONNX file to learn from (ofa.training.teacher.open_teacher).
        validation_fraction: share of the training images held out for search.
        flip: whether augmentation may mirror images; None = unless they are digits or clothes.
        strict: stop at the first image that cannot be read.
        keep: newest checkpoints to keep, at least one; the best one stays besides.
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
    if not get_space(space).slots:
        raise TrainingError(f"space {space}: its networks read no images; recurrent cells are trained with: ofa train-text")
    if arch is None and not get_space(space).is_tabulated:
        raise TrainingError(
            f"space {space}: its blocks are too many to list, so no supernet holds them; "
            "train one network of it: ofa train --arch ARCH (ofa nas nas_rl finds one)"
        )
    if keep < 1:
        raise TrainingError(f"keep is {keep!r}, expected at least 1 checkpoint")
    _check_teaching(config, taught=teacher is not None, begun=init is not None or bool(list_checkpoints(out / "supernet")))
    with join(device) as world:
        if config.batch_size < 2 * world.size:
            raise TrainingError(f"batch_size {config.batch_size} is below two images for each of {world.size} processes")
        images: list[_Loaded] = []
        world.first_does(lambda: images.append(_load(space, data, config, validation_fraction, flip, strict)))
        if not images:  # after the first process, which may have had to download them
            images.append(_load(space, data, config, validation_fraction, flip, strict))
        source, train, validation, preprocess = images[0]
        if len(train) < config.batch_size:
            raise TrainingError(
                f"{source.source}: {len(train)} training images, fewer than batch_size {config.batch_size}; lower --batch-size"
            )
        whole = get_space(space, num_classes=len(source.classes))
        chosen = whole if arch is None else whole.restrict(arch)
        make_phases(chosen, config, total_steps=1_000, taught=teacher is not None)  # raises before anything is written
        if config.auxiliary:
            make_head(chosen)  # likewise
        if config.drop_path and not any(slot.is_path for slot in chosen.slots) and world.is_first:
            warnings.warn(f"drop_path = {config.drop_path!r} has no effect on {space}, which has no cells", stacklevel=2)
        asked = None if teacher is None else open_teacher(teacher, train, preprocess, world.device)
        settings = {
            **asdict(config),
            "teacher": None if teacher is None else fingerprint(teacher),
            "sync_batchnorm": sync_batchnorm,
        }
        world.first_does(lambda: _open_or_create(out, whole, source, arch, settings, resume=resume))
        run = Run(out)
        trainer = Trainer(
            run, config, train, validation, preprocess, world, teacher=asked, keep=keep, sync_batchnorm=sync_batchnorm
        )
        trainer.load(None if init is None else Run(init))
        trainer.train(_tensorboard(run) if tensorboard and world.is_first else None)
    return run


def _check_teaching(config: TrainConfig, *, taught: bool, begun: bool) -> None:
    """Refuse settings that would teach nothing or nonsense, and warn of those that are not looked at."""
    if taught and config.distillation == "none":
        raise TrainingError("a teacher is given, but distillation is 'none'; leave one of them out")
    if config.recipe == "progressive" and config.skip_teacher and not (begun or taught):
        raise TrainingError(
            "skip_teacher needs a trained largest network to begin with: give its run with --init, or a --teacher"
        )
    if int(os.environ.get("RANK", 0)) == 0:
        for name in config.without_effect(taught=taught):
            warnings.warn(f"{name} = {getattr(config, name)!r} has no effect on recipe {config.recipe!r}", stacklevel=3)


class _Loaded(NamedTuple):
    source: DataSource
    train: Images
    validation: Images
    preprocess: Preprocessing


def _load(
    space: str, data: str | Run, config: TrainConfig, validation_fraction: float, flip: bool | None, strict: bool
) -> _Loaded:
    if isinstance(data, Run):
        return _Loaded(data.data, *data.load_train_and_validation(), data.preprocess)
    # a quarter larger than the largest input: room for random shifts
    images = load_images(data, "train", max_size=round(1.25 * max_resolution(get_space(space))), strict=strict)
    train, validation = split_validation(images, fraction=validation_fraction, seed=config.seed)
    preprocess = Preprocessing.of(train, flip=data not in ORIENTED if flip is None else flip)
    source = DataSource.of(data, images, preprocess, validation_fraction=validation_fraction, seed=config.seed)
    return _Loaded(source, train, validation, preprocess)


def _open_or_create(
    out: Path, space: SearchSpace, source: DataSource, arch: ArchConfig | None, settings: dict[str, Any], *, resume: bool
) -> None:
    config_path = out / "supernet" / "config.json"
    if not list_checkpoints(out / "supernet"):  # a run that was stopped before its first checkpoint has nothing to keep
        shutil.rmtree(out / "supernet" / "teacher", ignore_errors=True)
        Run.create(out, space, source, arch)
        write_json(config_path, {"schema": SCHEMA, **settings})
        return
    run = Run(out)
    if run.space_name != space.name:
        raise TrainingError(f"{out}: is a run of space {run.space_name!r}, not {space.name!r}; give another --out")
    if run.record["arch"] != (None if arch is None else space.to_json(arch)):
        raise TrainingError(f"{out}: was begun with another --arch (or none); give the same, or another --out")
    if not resume:
        raise TrainingError(f"{out}: already holds a trained run; add --resume auto to go on, or give another --out")
    _require_equal(out, "data's ", asdict(run.data), asdict(replace(source, source=run.data.source)))
    # of a setting that is younger than the run, the default is what it began with
    _require_equal(out, "", {**asdict(TrainConfig()), **read_json(config_path, schema=SCHEMA)}, settings)
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
