"""Command line verbs about networks: train, import, spaces. Heavy imports stay inside, so that --help answers at once."""

from __future__ import annotations

import os
from dataclasses import fields
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ofa.cli_support import command, print_json
from ofa.training.config import TrainConfig

if TYPE_CHECKING:
    from ofa.space import ArchConfig

DEFAULTS = TrainConfig()


class Resume(str, Enum):
    """Whether to go on from a checkpoint."""

    auto = "auto"
    never = "never"


@command
def train(
    data: Annotated[
        str,
        typer.Option(
            help="digits, cifar10, cifar100, fashion_mnist, or a directory or .tar[.xz] with train/ and test/, a folder a class."
        ),
    ],
    out: Annotated[Path, typer.Option(help="Run directory to write, e.g. runs/x.")],
    space: Annotated[
        str | None, typer.Option(help="Search space; `ofa spaces` lists them. Not needed where --arch tells it.")
    ] = None,
    recipe: Annotated[str, typer.Option(help="sandwich, progressive (OFA), single_path (SPOS) or attentive (AttentiveNAS).")] = (
        DEFAULTS.recipe
    ),
    epochs: Annotated[int, typer.Option(help="Passes over the training images.")] = DEFAULTS.epochs,
    batch_size: Annotated[int, typer.Option(help="Images a step, over all processes.")] = DEFAULTS.batch_size,
    lr: Annotated[float, typer.Option(help="Peak learning rate.")] = DEFAULTS.lr,
    seed: Annotated[int, typer.Option(help="Everything random follows from it.")] = DEFAULTS.seed,
    resume: Annotated[Resume, typer.Option(help="auto: go on from the newest checkpoint in --out.")] = Resume.never,
    arch: Annotated[
        str | None,
        typer.Option(
            help="One network to train alone: arch.json, a folder with one, a genotype in a .txt file, or a published cell "
            "or network (darts_v2, nasnet_a, mobilenet_v3_small:resolution=32, ...)."
        ),
    ] = None,
    cells: Annotated[int | None, typer.Option(help="Networks of cells: how many.", min=1)] = None,
    channels: Annotated[int | None, typer.Option(help="Networks of cells: channels of the first.", min=1)] = None,
    init: Annotated[Path | None, typer.Option(help="Run whose weights to start from, of the same space.")] = None,
    teacher: Annotated[
        Path | None, typer.Option(help="Run directory or ONNX file to learn from, instead of the largest network.")
    ] = None,
    validation_fraction: Annotated[float, typer.Option(help="Share of the training images held out for search.")] = 0.1,
    flip: Annotated[
        bool | None,
        typer.Option("--flip/--no-flip", help="Mirror images at random; default: unless digits or clothes."),
    ] = None,
    crop_scale: Annotated[
        float,
        typer.Option(help="Least share of the area in a random crop; 1: shifts by up to an eighth."),
    ] = DEFAULTS.crop_scale,
    mixup: Annotated[float, typer.Option(help="Mixup's Beta parameter; 0 = off.")] = DEFAULTS.mixup,
    cutmix: Annotated[float, typer.Option(help="CutMix's Beta parameter; 0 = off.")] = DEFAULTS.cutmix,
    strict: Annotated[
        bool,
        typer.Option("--strict", help="Stop at an image that cannot be read, instead of leaving it out."),
    ] = False,
    optimizer: Annotated[str, typer.Option(help="sgd (Nesterov momentum 0.9) or adamw.")] = DEFAULTS.optimizer,
    schedule: Annotated[str, typer.Option(help="Fall of the learning rate: cosine, exponential or linear.")] = DEFAULTS.schedule,
    lr_floor: Annotated[
        float,
        typer.Option(help="Share of the peak that the rate never falls below (BigNAS: 0.05)."),
    ] = DEFAULTS.lr_floor,
    warmup: Annotated[float, typer.Option(help="Share of the steps over which the rate rises.")] = DEFAULTS.warmup,
    weight_decay: Annotated[float, typer.Option(help="Weight decay of convolutions and linear layers.")] = DEFAULTS.weight_decay,
    clip_norm: Annotated[float, typer.Option(help="Largest gradient norm of a step; 0 = no clipping.")] = DEFAULTS.clip_norm,
    ema_decay: Annotated[
        float, typer.Option(help="Use a moving average of the weights with this decay; 0 = off.")
    ] = DEFAULTS.ema_decay,
    precision: Annotated[str, typer.Option(help="fp32, bf16, fp16, or auto: the faster of them.")] = DEFAULTS.precision,
    label_smoothing: Annotated[
        float, typer.Option(help="Label smoothing (sandwich: of the largest network).")
    ] = DEFAULTS.label_smoothing,
    dropout: Annotated[float, typer.Option(help="Dropout before the classifier (likewise).")] = DEFAULTS.dropout,
    drop_connect: Annotated[
        float, typer.Option(help="Drop whole residual branches of the last two stages (likewise).")
    ] = DEFAULTS.drop_connect,
    drop_path: Annotated[
        float, typer.Option(help="Networks of cells: drop operations, with a probability that rises to this.")
    ] = DEFAULTS.drop_path,
    auxiliary: Annotated[
        float, typer.Option(help="Networks of cells, with --arch: weight of an auxiliary classifier's loss (DARTS: 0.4).")
    ] = DEFAULTS.auxiliary,
    cutout: Annotated[int, typer.Option(help="Side of a square left out of every image, pixels (DARTS: 16); 0 = off.")] = (
        DEFAULTS.cutout
    ),
    distillation: Annotated[
        str,
        typer.Option(help="How subnets learn from a teacher: soft_ce, kl, alpha (AlphaNet) or none."),
    ] = DEFAULTS.distillation,
    temperature: Annotated[float, typer.Option(help="Of the distillation.")] = DEFAULTS.temperature,
    kd_ratio: Annotated[float, typer.Option(help="Weight of an external teacher's loss beside the labels'.")] = DEFAULTS.kd_ratio,
    num_random: Annotated[int, typer.Option(help="Sandwich, attentive: random subnets a step.")] = DEFAULTS.num_random,
    num_candidates: Annotated[
        int, typer.Option(help="Attentive: subnets of about equal MACs to choose one from.")
    ] = DEFAULTS.num_candidates,
    prefer: Annotated[
        str, typer.Option(help="Attentive: train the best (BestUp) or the worst (WorstUp) of them.")
    ] = DEFAULTS.prefer,
    least_mmacs: Annotated[
        float, typer.Option(help="Single path: draw networks evenly from so many million multiply-adds on (SPOS: 290),")
    ] = DEFAULTS.least_mmacs,
    most_mmacs: Annotated[float, typer.Option(help="up to so many (360; 0 = draw all choices evenly),")] = DEFAULTS.most_mmacs,
    bin_mmacs: Annotated[float, typer.Option(help="in bins of so many.")] = DEFAULTS.bin_mmacs,
    skip_teacher: Annotated[
        bool,
        typer.Option("--skip-teacher", help="Progressive: --init holds a trained largest network."),
    ] = DEFAULTS.skip_teacher,
    keep: Annotated[int, typer.Option(help="Newest checkpoints to keep; the best stays besides.")] = 2,
    device: Annotated[str, typer.Option(help="auto (a GPU if there is one), cpu, cuda, ...")] = "auto",
    sync_batchnorm: Annotated[
        bool,
        typer.Option("--sync-batchnorm", help="BatchNorm over the images of all processes."),
    ] = False,
    tensorboard: Annotated[bool, typer.Option("--tensorboard", help="Write curves for TensorBoard too.")] = False,
) -> Path | None:
    """Train a supernet on images: once, for all devices.

    Example: ofa train --space mbv3_small_image --data cifar10 --out runs/cifar10 --epochs 12

    One network: ofa train --arch darts_v2 --cells 8 --channels 16 --data cifar10 --out runs/v2 --drop-path 0.2 --cutout 16

    On several GPUs or machines: torchrun --nproc-per-node 8 --no-python ofa train ...

    The first options matter most; docs/training.md explains all and lists the published recipes.
    """
    arguments = dict(locals())

    from ofa.training.loop import train_supernet

    name, only = _which_network(arch, space, {"cells": cells, "channels": channels})
    run = train_supernet(
        name,
        data,
        out,
        config=TrainConfig(**{field.name: arguments[field.name] for field in fields(TrainConfig)}),
        resume=resume is Resume.auto,
        arch=only,
        init=init,
        teacher=teacher,
        validation_fraction=validation_fraction,
        flip=flip,
        strict=strict,
        keep=keep,
        sync_batchnorm=sync_batchnorm,
        tensorboard=tensorboard,
        device=device,
    )
    return run.path if _is_first_process() else None


@command
def specialize(
    run: Annotated[Path, typer.Argument(help="Run directory of the supernet.")],
    arch: Annotated[Path, typer.Option(help="arch.json of the subnet, or a search's best/ folder.")],
    out: Annotated[Path, typer.Option(help="Run directory to write.")],
    epochs: Annotated[int, typer.Option(help="Passes over the training images.")] = 5,
    lr: Annotated[float, typer.Option(help="Peak learning rate.")] = 0.02,
    batch_size: Annotated[int | None, typer.Option(help="Images a step; default: the supernet's.")] = None,
    distill: Annotated[
        bool, typer.Option("--distill/--no-distill", help="Learn from the supernet's largest network besides the labels.")
    ] = True,
    device: Annotated[str, typer.Option(help="auto (a GPU if there is one), cpu, cuda, ...")] = "auto",
    resume: Annotated[Resume, typer.Option(help="auto: go on from the newest checkpoint in --out.")] = Resume.never,
) -> Path | None:
    """Fine-tune one subnet, starting from the weights that it inherits.

    Example: ofa specialize runs/x --arch runs/x/search/best --out runs/x-special --epochs 5
    """
    from ofa.artefacts import read_json
    from ofa.find_arch import arch_file
    from ofa.run_dir import Run
    from ofa.space import ARCH_SCHEMA
    from ofa.training.specialize import specialize as fine_tune

    trained = Run(run)
    chosen = trained.space.from_json(read_json(arch_file(arch), schema=ARCH_SCHEMA))
    tuned = fine_tune(
        trained,
        chosen,
        out,
        epochs=epochs,
        lr=lr,
        batch_size=batch_size,
        distill=distill,
        resume=resume is Resume.auto,
        device=device,
    )
    return tuned.path if _is_first_process() else None


@command
def import_(
    path: Annotated[
        Path, typer.Argument(help="Checkpoint (.pth, .pt, .safetensors), or JSON of an architecture (.json, net.config).")
    ],
    format: Annotated[str, typer.Option(help="mit_ofa (once-for-all), attentive_nas (also AlphaNet), spos or torchvision.")],
    out: Annotated[Path, typer.Option(help="Run directory to write; for an architecture a folder or .json file.")],
    space: Annotated[str | None, typer.Option(help="Space that it belongs to; default: the published one that it fits.")] = None,
    data: Annotated[
        str | None, typer.Option(help="Images with the checkpoint's classes, as for `ofa train`; without, the run has none.")
    ] = None,
    arch: Annotated[
        Path | None,
        typer.Option(help="The checkpoint is one static network: its architecture (net.config, JSON, arch.json)."),
    ] = None,
    resolution: Annotated[
        int | None, typer.Option(help="Input pixels of an architecture; default: what it says, or the largest.")
    ] = None,
) -> Path | None:
    """Import published weights as a run, or an architecture.

    Example: ofa import ofa_mbv3_d234_e346_k357_w1.0 --format mit_ofa --data imagenet --out runs/mit

    One network: ofa import init --arch net.config --format mit_ofa --resolution 160 --data imagenet --out runs/one;
    then ofa export runs/one/arch.json -o out/

    Without --data these work on the run: profile, report, train --init. Search and export need images.
    """
    from ofa.formats.importing import import_arch, import_checkpoint, is_arch_file
    from ofa.formats.published import FormatError
    from ofa.progress import say

    if is_arch_file(path):
        if data is not None or arch is not None:
            unused = "--data" if arch is None else "--arch"
            raise FormatError(f"{path}: is an architecture, which has no use for {unused}; leave it out, or give a checkpoint")
        say(f"architecture: {import_arch(path, out, format=format, space=space, resolution=resolution)}")
        return None
    if resolution is not None and arch is None:
        raise FormatError(f"{path}: is a checkpoint; --resolution is of an architecture: leave it out, or give --arch too")
    run = import_checkpoint(path, out, format=format, space=space, data=data, arch=arch, resolution=resolution)
    what = run.space_name if arch is None else f"one network of {run.space_name}"
    say(f"{run.path}: {what} with {run.num_classes} classes" + ("" if data else ", without images"))
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
        resolutions = space.dimensions[space.column["resolution"]].options if "resolution" in space.column else ()
        elastic = sorted({d.name.rpartition(".")[2].rstrip("0123456789") for d in space.dimensions if len(d.options) > 1})
        rows[name] = {
            "networks": float(space.size()),
            "resolutions": list(resolutions),
            "elastic": elastic,
            "blocks": len(space.all_blocks) if space.slots and space.is_tabulated else None,
        }
    if json:
        print_json(rows)
        return None
    for name, row in rows.items():
        sizes = row["resolutions"]
        pixels = f"{', '.join(map(str, sizes))} px" if len(sizes) < 10 else f"{len(sizes)} sizes of {sizes[0]} to {sizes[-1]} px"
        choices = f", elastic {', '.join(row['elastic'])}" if row["elastic"] else ""
        blocks = f", {row['blocks']} distinct blocks" if row["blocks"] else ""
        number = "one network" if row["networks"] == 1 else f"{row['networks']:.1e} networks"
        print(f"{name:20} {number}{blocks}, {pixels if sizes else 'text'}{choices}")
    return None


def _which_network(arch: str | None, space: str | None, numbers: dict[str, int | None]) -> tuple[str, ArchConfig | None]:
    """The space to train and, if it is only one network of it, which."""
    from ofa.find_arch import find_arch
    from ofa.spaces import get_space

    given = {name: value for name, value in numbers.items() if value is not None}
    if arch is not None:
        found, only = find_arch(arch, space=space, **given)
        return found.name, only
    if space is None:
        raise typer.BadParameter("give what to train: --space (`ofa spaces` lists them) or --arch")
    whole = get_space(space).with_numbers(**given) if given else get_space(space)
    return whole.name, whole.largest if whole.size() == 1 else None


def _is_first_process() -> bool:
    """Whether this process is the one that writes, of those that torchrun started."""
    return int(os.environ.get("RANK", 0)) == 0
