"""Command line verbs about networks: train, spaces. Heavy imports stay inside, so that --help answers at once."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated, Any

import typer

from ofa.cli_support import command, print_json


class Resume(str, Enum):
    """Whether to go on from a checkpoint."""

    auto = "auto"
    never = "never"


@command
def train(
    space: Annotated[str, typer.Option(help="Search space; `ofa spaces` lists them.")],
    data: Annotated[
        str,
        typer.Option(
            help="digits, cifar10, cifar100, fashion_mnist, or a directory or .tar[.xz] with train/ and test/, a folder a class."
        ),
    ],
    out: Annotated[Path, typer.Option(help="Run directory to write, e.g. runs/x.")],
    recipe: Annotated[str, typer.Option(help="Training rule: sandwich.")] = "sandwich",
    epochs: Annotated[int, typer.Option(help="Passes over the training images.")] = 30,
    batch_size: Annotated[int, typer.Option(help="Images a step.")] = 128,
    lr: Annotated[float, typer.Option(help="Peak learning rate of SGD; cosine to zero after a short warm-up.")] = 0.1,
    weight_decay: Annotated[float, typer.Option(help="Weight decay of convolutions and linear layers.")] = 1e-4,
    label_smoothing: Annotated[float, typer.Option(help="Label smoothing of the largest network.")] = 0.1,
    clip_norm: Annotated[float, typer.Option(help="Largest gradient norm of a step; 0 = no clipping.")] = 5.0,
    validation_fraction: Annotated[float, typer.Option(help="Share of the training images held out for search.")] = 0.1,
    flip: Annotated[
        bool | None, typer.Option("--flip/--no-flip", help="Mirror images at random; default: unless digits or clothes.")
    ] = None,
    strict: Annotated[
        bool, typer.Option("--strict", help="Stop at an image that cannot be read, instead of leaving it out.")
    ] = False,
    arch: Annotated[
        Path | None, typer.Option(help="arch.json of one network to train alone: the baseline for what it inherits.")
    ] = None,
    init: Annotated[Path | None, typer.Option(help="Run whose weights to start from, of the same space.")] = None,
    seed: Annotated[int, typer.Option(help="Everything random follows from it.")] = 0,
    resume: Annotated[Resume, typer.Option(help="auto: go on from the newest checkpoint in --out.")] = Resume.never,
) -> Path | None:
    """Train a supernet on images: once, for all devices.

    Example: ofa train --space mbv3_small_image --data cifar10 --out runs/cifar10 --epochs 12
    """
    from ofa.artefacts import read_json
    from ofa.space import ARCH_SCHEMA
    from ofa.spaces import get_space
    from ofa.training.loop import TrainConfig, train_supernet

    config = TrainConfig(
        recipe=recipe,
        epochs=epochs,
        batch_size=batch_size,
        lr=lr,
        weight_decay=weight_decay,
        label_smoothing=label_smoothing,
        clip_norm=clip_norm,
        seed=seed,
    )
    only = None if arch is None else get_space(space).from_json(read_json(arch, schema=ARCH_SCHEMA))
    run = train_supernet(
        space,
        data,
        out,
        config=config,
        resume=resume is Resume.auto,
        arch=only,
        init=init,
        validation_fraction=validation_fraction,
        flip=flip,
        strict=strict,
    )
    return run.path


@command
def spaces(json: Annotated[bool, typer.Option("--json", help="Print JSON on stdout.")] = False) -> Path | None:
    """List the search spaces.

    Number of networks, resolutions, and what is elastic.
    """
    from ofa.spaces import get_space, list_spaces

    rows: dict[str, dict[str, Any]] = {}
    for name in list_spaces():
        space = get_space(name)
        resolutions = space.dimensions[space.column["resolution"]].options
        elastic = sorted({d.name.rpartition(".")[2] for d in space.dimensions})
        rows[name] = {
            "networks": float(space.size()),
            "resolutions": list(resolutions),
            "elastic": elastic,
            "blocks": len(space.all_blocks),
        }
    if json:
        print_json(rows)
        return None
    for name, row in rows.items():
        pixels = ", ".join(map(str, row["resolutions"]))
        choices = ", ".join(row["elastic"])
        print(f"{name:20} {row['networks']:.1e} networks, {row['blocks']} distinct blocks, {pixels} px, elastic {choices}")
    return None
