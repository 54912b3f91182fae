"""Command line verb `ofa nas nas_rl`: a controller draws architectures, each is trained from scratch. Heavy imports inside."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ofa.cli import Resume
from search.given import needed, refuse, some
from search.nas_options import Data, Flip, Seed

if TYPE_CHECKING:
    from ofa.run_dir import Run

SHARED = ("children", "controller_lr", "baseline_decay", "lr", "batch_size", "seed")  # settings of both kinds of search
OF_CNN = ("layers", "least_layers", "strides", "resolution")  # other spaces of images have numbers in their names
OF_CHAINS = (*OF_CNN, "grow_every")
OF_IMAGES = ("last_epochs", "schedule", "weight_decay", "max_images", "entropy_weight", "reward_power")
REWARDED = ("reward", "where", "table")
OF_TEXT = ("tokens", "max_vocabulary", "features", "bptt", "base")
RECURRENT = "rnn"


def nas_rl(
    out: Annotated[Path, typer.Option(help="Run directory to write, e.g. runs/nas_rl.")],
    space: Annotated[
        str,
        typer.Option(
            help="cnn: convolutions that read any of those before them. rnn: recurrent cells, with --text. Or the name of any "
            "space of images (`ofa spaces`), e.g. darts:cells=4,channels=8."
        ),
    ] = "cnn",
    data: Data = None,
    text: Annotated[
        Path | None, typer.Option(help="With rnn: a text file, or a folder with train.txt, valid.txt and test.txt.")
    ] = None,
    children: Annotated[
        int | None, typer.Option(help="Architectures to train, in all; default 12,800, with rnn 15,000, as published.")
    ] = None,
    batch: Annotated[int | None, typer.Option(help="Children to an update of the controller; default 8.")] = None,
    engine: Annotated[
        str,
        typer.Option(
            help="Where children are trained: in-process, joblib:N (N processes), dask:ADDRESS, dask:N, ray:ADDRESS or ray:N."
        ),
    ] = "in-process",
    layers: Annotated[int | None, typer.Option(help="cnn: most layers; default 15.")] = None,
    least_layers: Annotated[int | None, typer.Option(help="cnn: layers that the search begins with; default 6.")] = None,
    grow_every: Annotated[
        int | None,
        typer.Option(help="cnn, nas_rl_cnn:...: children after which there may be two layers more; default 1,600."),
    ] = None,
    strides: Annotated[int | None, typer.Option(help="cnn: 1 (default): none; 3: layers choose from 1, 2 and 3.")] = None,
    resolution: Annotated[int | None, typer.Option(help="cnn: input pixels; default 32.")] = None,
    child_epochs: Annotated[int | None, typer.Option(help="Epochs of a child; default 50, with rnn 35.")] = None,
    last_epochs: Annotated[
        int | None, typer.Option(help="The best accuracy after one of so many last epochs counts; default 5.")
    ] = None,
    batch_size: Annotated[int | None, typer.Option(help="Images a step of a child; default 128. Of text: pieces, 64.")] = None,
    lr: Annotated[float | None, typer.Option(help="Learning rate of a child; default 0.1, of text 20.")] = None,
    schedule: Annotated[
        str | None,
        typer.Option(help="Its fall: constant (default), cosine or linear; with few epochs a falling rate tells more."),
    ] = None,
    weight_decay: Annotated[float | None, typer.Option(help="Of a child; default 0.0001.")] = None,
    max_images: Annotated[
        int | None, typer.Option(help="Train children on so many images only, for small machines; default: all.")
    ] = None,
    reward: Annotated[
        str | None, typer.Option(help="What costs are worth: mnasnet_soft, mnasnet_hard or mobilenetv3; with --where.")
    ] = None,
    where: Annotated[
        list[str] | None, typer.Option(help="Target of --reward, e.g. 'macs <= 30M' or 'latency@pi4 <= 12ms'; repeatable.")
    ] = None,
    table: Annotated[Path | None, typer.Option(help="Latency table, for a target of latency.")] = None,
    reward_power: Annotated[float | None, typer.Option(help="Rewards are raised to this power; default 3, as published.")] = None,
    controller_lr: Annotated[
        float | None, typer.Option(help="Learning rate of the controller (Adam); default 0.0006, with rnn 0.0005.")
    ] = None,
    baseline_decay: Annotated[
        float | None, typer.Option(help="How much of the mean of previous rewards an update keeps; default 0.95.")
    ] = None,
    entropy_weight: Annotated[
        float | None, typer.Option(help="Worth of a nat of the controller's entropy, in rewards; default 0, as published.")
    ] = None,
    base: Annotated[int | None, typer.Option(help="With rnn: leaves of the tree; default 8.")] = None,
    tokens: Annotated[str | None, typer.Option(help="With rnn: words (default) or characters.")] = None,
    features: Annotated[int | None, typer.Option(help="With rnn: size of the embedding and of every state; default 850.")] = None,
    bptt: Annotated[int | None, typer.Option(help="With rnn: tokens that a gradient reaches back; default 35.")] = None,
    max_vocabulary: Annotated[
        int | None, typer.Option(help="With rnn: tell apart only so many tokens, the most frequent; default: all.")
    ] = None,
    dropout: Annotated[
        float | None,
        typer.Option(help="With rnn: factor on all dropouts, as for `ofa train-text`; default 1, small networks need less."),
    ] = None,
    seed: Seed = None,
    resume: Annotated[Resume, typer.Option(help="auto: go on from the newest checkpoint in --out.")] = Resume.never,
    flip: Flip = None,
    device: Annotated[
        str, typer.Option(help="auto (a GPU if there is one), cpu, cuda, ... where children are trained.")
    ] = "auto",
) -> Path | None:
    """Search with reinforcement learning: a controller draws architectures, each is trained from scratch.

    The reward of an architecture is its accuracy on validation images, cubed; the controller learns by REINFORCE. Defaults are
    those of Zoph and Le 2017 (arXiv 1611.01578), who had 800 GPUs: 12,800 children of 50 epochs. No child is trained twice, and
    with --resume auto none that was finished is trained again.

    Example: ofa nas nas_rl --data cifar10 --out runs/rl --engine joblib:8

    On two cores, some 20 minutes: --children 240 --batch 4 --controller-lr 0.01 --layers 8 --grow-every 120 --strides 3
    --resolution 16 --max-images 3000 --child-epochs 4 --last-epochs 1 --batch-size 64 --schedule cosine --engine joblib:2

    Fast networks: ofa nas nas_rl --data cifar10 --out runs/fast --reward mnasnet_soft --where "macs <= 30M"

    Recurrent cells: ofa nas nas_rl --space rnn --text words.txt --out runs/cell
    """
    given = {name: value for name, value in locals().items() if value is not None}
    if space == RECURRENT:
        refuse(given, ("data", "flip", *OF_CHAINS, *OF_IMAGES, *REWARDED), "--space rnn searches a cell for text")
        settings = some(given, (*SHARED, *OF_TEXT)) | _renamed(given, batch="batch_children", child_epochs="epochs")
        _search_text(text, out, settings, dropout, resume=resume is Resume.auto, engine=engine, device=device)
        return None
    refuse(given, ("text", "dropout", *OF_TEXT), "this searches networks for images")
    if space != "cnn":
        refuse(given, OF_CNN, f"--space {space} comes with numbers of its own")
        if "grow_every" in given:
            _require_growing(given, space)
    from search.joint.nas_rl import search_nas_rl
    from search.joint.nas_rl_config import NasRlConfig

    settings = some(given, ("space", *SHARED, *OF_CHAINS, *OF_IMAGES, "child_epochs")) | _renamed(given, batch="batch_children")
    run = search_nas_rl(
        needed(data, "a search needs images: --data cifar10, or a directory (or --space rnn with --text)"),
        out,
        config=NasRlConfig(**settings),
        resume=resume is Resume.auto,
        engine=engine,
        reward=reward,
        where=where or (),
        table=table,
        flip=flip,
        device=device,
    )
    _show(run)
    return run.path


def _require_growing(given: dict[str, Any], space: str) -> None:
    from ofa.conv_chain_space import ConvChainSpace
    from ofa.spaces import get_space

    if not isinstance(get_space(space), ConvChainSpace):
        refuse(given, ("grow_every",), f"networks of --space {space} do not grow")


def _renamed(given: dict[str, Any], **names: str) -> dict[str, Any]:
    """Return options under the names that settings have."""
    return {setting: given[option] for option, setting in names.items() if option in given}


def _search_text(
    text: Path | None,
    out: Path,
    settings: dict[str, Any],
    dropout: float | None,
    *,
    resume: bool,
    engine: str,
    device: str,
) -> None:
    from ofa.text_cli import scaled
    from search.joint.nas_rl_rnn import search_tree
    from search.joint.nas_rl_rnn_config import NasRlRnnConfig

    path = needed(text, "--space rnn needs a text: --text FILE")
    if dropout is not None:
        settings = settings | {"dropouts": scaled(NasRlRnnConfig().dropouts, dropout)}
    print(search_tree(path, out, config=NasRlRnnConfig(**settings), resume=resume, engine=engine, device=device))


def _show(run: Run) -> None:
    """Print what was found, and what to do next."""
    from ofa.progress import say
    from search.joint.nas_rl import train_commands

    print(run.path / "arch.json")
    say(
        "Children were trained for a few epochs, and the best of many is partly luck: train the best few longer, as was "
        "published, and keep the one whose validation accuracy is best."
    )
    for number, line in enumerate(train_commands(run)):
        say(f"{'      ' if number else 'next: '}{line}")
    say(f"      ofa report {shlex.quote(str(run.path))}")
