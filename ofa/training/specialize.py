"""Fine-tune one subnet, starting from what it inherits and taught by the supernet's largest network."""

from __future__ import annotations

from pathlib import Path

from ofa.run_dir import Run
from ofa.space import ArchConfig
from ofa.training.config import TrainConfig
from ofa.training.loop import train_supernet


def specialize(
    run: Run | Path | str,
    arch: ArchConfig,
    out: Path | str,
    *,
    epochs: int = 5,
    lr: float = 0.02,
    distill: bool = True,
    resume: bool = False,
    config: TrainConfig | None = None,
) -> Run:
    """Train an extracted subnet further and return its own run directory, which `ofa export` takes like any other.

    The images, their split and their augmentation are those of the supernet's run, so that its validation and test images stay
    unseen.

    Args:
        run: the supernet's run.
        arch: the subnet.
        out: run directory to make.
        epochs: passes over the training images.
        lr: peak learning rate; much lower than the supernet's.
        distill: learn from the largest network besides the labels.
        config: all settings at once, instead of epochs and lr; its seed must be that of the run.
    Raises:
        OfaError: as `train_supernet`.
    """
    run = run if isinstance(run, Run) else Run(run)
    config = config or TrainConfig(epochs=epochs, lr=lr, seed=run.data.seed)
    return train_supernet(
        run.space_name,
        run.data.source,
        out,
        config=config,
        resume=resume,
        arch=arch,
        init=run.path,
        teacher=run.path if distill else None,
        validation_fraction=run.data.validation_fraction,
        flip=run.data.flip,
    )
