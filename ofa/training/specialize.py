"""Fine-tune one subnet, starting from what it inherits and taught by the supernet's largest network."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from ofa.artefacts import read_json
from ofa.run_dir import Run
from ofa.space import ArchConfig
from ofa.training.config import TrainConfig
from ofa.training.loop import SCHEMA, train_supernet

LIKE_THE_SUPERNET = ("batch_size", "weight_decay", "clip_norm", "optimizer", "crop_scale", "mixup", "cutmix", "precision")


def specialize(
    run: Run | Path | str,
    arch: ArchConfig,
    out: Path | str,
    *,
    epochs: int = 5,
    lr: float = 0.02,
    batch_size: int | None = None,
    distill: bool = True,
    resume: bool = False,
    config: TrainConfig | None = None,
    device: str = "auto",
) -> Run:
    """Train an extracted subnet further and return its own run directory, which `ofa export` takes like any other.

    The images, their split and their normalisation are those of the supernet's run, so that its validation and test images stay
    unseen; augmentation, batch size and optimiser are too, unless given.

    Args:
        run: the supernet's run.
        arch: the subnet.
        out: run directory to make.
        epochs: passes over the training images.
        lr: peak learning rate; much lower than the supernet's.
        batch_size: images a step; None = the supernet's.
        distill: learn from the largest network besides the labels.
        config: all settings at once, instead of epochs, lr and batch_size.
        device: as in `train_supernet`.
    Raises:
        OfaError: as `train_supernet`; also if the run's images are not those that the supernet was trained on.
    """
    run = run if isinstance(run, Run) else Run(run)
    if config is None:
        config = replace(_settings_of(run), epochs=epochs, lr=lr)
        config = config if batch_size is None else replace(config, batch_size=batch_size)
    return train_supernet(
        run.space_name,
        run,
        out,
        config=config,
        resume=resume,
        arch=arch,
        init=run.path,
        teacher=run.path if distill else None,
        device=device,
    )


def _settings_of(run: Run) -> TrainConfig:
    """The settings of the supernet's training that one network shares; the defaults for an imported supernet."""
    path = run.supernet_dir / "config.json"
    if not path.exists():
        return TrainConfig(batch_size=min(TrainConfig().batch_size, run.data.num_images // 2))
    begun = read_json(path, schema=SCHEMA)
    return TrainConfig(**{name: begun[name] for name in LIKE_THE_SUPERNET if name in begun})
