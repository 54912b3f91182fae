"""Command line verbs `ofa nas ...`: searches that train weights and architecture together. Heavy imports stay inside."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ofa.cli import Resume
from ofa.cli_support import command
from search.enas_cli import enas
from search.given import needed, refuse, some
from search.nas_options import Data, Flip, MaxImages, Resolution, Seed
from search.nas_rl_cli import nas_rl
from search.spos_cli import spos

if TYPE_CHECKING:
    from ofa.run_dir import Run

app = typer.Typer(
    name="nas",
    no_args_is_help=True,
    rich_markup_mode=None,
    help="Find architectures: by gradients, in one network that holds all operations, or by a controller that is rewarded.",
    epilog="A search ends in a run directory with arch.json and a drawing. What it found is a structure without weights: train "
    "it with `ofa train --arch RUN/arch.json`; then profile, export, verify and report as ever. A cell for text: train it with "
    "`ofa train-text RUN`, then export; it has no report.",
)
GUARDS = ("max_skips", "stop_skips", "warmup_epochs", "skip_drop")
SHARED = ("order", "epochs", "batch_size", "lr", "alpha_lr", "seed")  # settings of every search
OF_IMAGES = ("space", "cells", "channels", "resolution", "max_images", "target_ms", "latency_weight")
OF_CYCLES = (
    *("cells", "evaluation_cells", "channels", "resolution", "pretrain_epochs", "cycles", "warmup_epochs", "cycle_epochs"),
    *(
        "sample_ratio",
        "batch_size",
        "distillation",
        "edge_weights",
        "penalty",
        "max_images",
        "lr",
        "evaluation_lr",
        "alpha_lr",
        "seed",
    ),
)
OF_TEXT = ("tokens", "max_vocabulary", "features", "bptt", "untied_unrolled_embedding")
NOT_SETTINGS = ("data", "table", "flip")  # besides, what a search of text has no use for


@app.command("darts")
@command
def darts(
    out: Annotated[Path, typer.Option(help="Run directory to write, e.g. runs/darts.")],
    data: Data = None,
    rnn: Annotated[bool, typer.Option("--rnn", help="Search a recurrent cell for text instead; needs --text.")] = False,
    text: Annotated[
        Path | None, typer.Option(help="A text file, or a folder with train.txt, valid.txt and test.txt; with --rnn.")
    ] = None,
    tokens: Annotated[str | None, typer.Option(help="With --rnn: words (default) or characters.")] = None,
    features: Annotated[
        int | None, typer.Option(help="With --rnn: size of the embedding and of every state; default 300.")
    ] = None,
    bptt: Annotated[int | None, typer.Option(help="With --rnn: tokens that a gradient reaches back; default 35.")] = None,
    max_vocabulary: Annotated[
        int | None, typer.Option(help="With --rnn: tell apart only so many tokens, the most frequent; default: all.")
    ] = None,
    dropout: Annotated[
        float | None,
        typer.Option(
            help="With --rnn: factor on all published dropouts (outputs 0.75, hidden states 0.25, inputs 0.75, embeddings 0.2, "
            "words 0); 1 (default) = as published, 0 = none; small networks need less."
        ),
    ] = None,
    untied_unrolled_embedding: Annotated[
        bool | None,
        typer.Option(
            "--untied-unrolled-embedding",
            help="With --rnn, order 2 or exact: leave the embedding behind as the published code does.",
        ),
    ] = None,
    space: Annotated[
        str | None, typer.Option(help="darts (default: a normal and a reduction cell) or nasbench201 (one cell, six edges).")
    ] = None,
    order: Annotated[
        str | None,
        typer.Option(
            help="Of the alphas' gradients. 1 (default): at the weights as they are, 2 passes a step. 2: after one more step of "
            "the weights, as published, 5 passes. exact: the derivative that 2 approximates; a different search."
        ),
    ] = None,
    cells: Annotated[
        int | None, typer.Option(help="Cells of the search network; default 8, of nasbench201 5 in each of three stages.")
    ] = None,
    channels: Annotated[int | None, typer.Option(help="Channels of its first cell; default 16.")] = None,
    resolution: Resolution = None,
    epochs: Annotated[int | None, typer.Option(help="Passes over the images, or the text; default 50.")] = None,
    batch_size: Annotated[
        int | None, typer.Option(help="Images a step, for weights and for alphas alike; default 64, of text 256.")
    ] = None,
    max_images: MaxImages = None,
    lr: Annotated[float | None, typer.Option(help="Learning rate of the weights at first; default 0.025, of text 20.")] = None,
    alpha_lr: Annotated[float | None, typer.Option(help="Learning rate of the alphas; default 0.0003, of text 0.003.")] = None,
    seed: Seed = None,
    resume: Annotated[Resume, typer.Option(help="auto: go on from the newest checkpoint in --out.")] = Resume.never,
    max_skips: Annotated[int | None, typer.Option(help="Guard: most skips in the derived normal cell (P-DARTS has 2).")] = None,
    stop_skips: Annotated[
        int | None, typer.Option(help="Guard: end the search when the normal cell would have so many skips (DARTS+ has 2).")
    ] = None,
    warmup_epochs: Annotated[
        int | None, typer.Option(help="Guard: epochs in which weights learn before alphas do (P-DARTS: 10 of 25).")
    ] = None,
    skip_drop: Annotated[
        float | None, typer.Option(help="Guard: share of images that lose a skip, falling to 0 over the search, e.g. 0.3.")
    ] = None,
    table: Annotated[
        Path | None,
        typer.Option(help="Latency table of a device, made by `ofa profile` for the network to be derived; with --target-ms."),
    ] = None,
    target_ms: Annotated[
        float | None, typer.Option(help="Latency there that the alphas are pushed below, while it is expected to be higher.")
    ] = None,
    latency_weight: Annotated[
        float | None, typer.Option(help="How hard: the loss that twice the target adds; default 1; with --target-ms and --table.")
    ] = None,
    flip: Flip = None,
    device: Annotated[str | None, typer.Option(help="auto (a GPU if there is one), cpu, cuda, ...")] = None,
) -> Path | None:
    """Search cells as DARTS does: images, or with --rnn text.

    One network holds all operations on all edges; its weights learn from half of the training images, the probabilities of the
    operations (alphas) from the other half. Defaults are the published ones, which are meant for a GPU; on a processor begin with
    --max-images 5000 --epochs 10 --channels 8.

    Example: ofa nas darts --data cifar10 --out runs/darts --max-skips 2

    Fast on a phone: ofa nas darts --data cifar10 --out runs/fast --table runs/x/latency/pi4.json --target-ms 20

    Recurrent: ofa nas darts --rnn --text words.txt --out runs/rnn

    The accuracy during the search is that of the network of all operations. It says little about the cells that are found:
    train them, and compare searches of several seeds.
    """
    given = {name: value for name, value in locals().items() if value is not None}
    if rnn:
        refuse(given, (*NOT_SETTINGS, *OF_IMAGES, *GUARDS), "--rnn searches a cell for text")
        _search_text(text, out, some(given, (*SHARED, *OF_TEXT)), dropout, resume=resume is Resume.auto, device=device)
        return None
    refuse(given, ("text", "dropout", *OF_TEXT), "without --rnn this searches cells for images")
    if table is None and target_ms is None:
        refuse(given, ("latency_weight",), "this search has no --target-ms and no --table")
    from search.joint.config import DartsConfig
    from search.joint.darts import search_images
    from search.joint.guards import Guards
    from search.joint.hardware import open_table

    run = search_images(
        needed(data, "a search needs images: --data cifar10, or a directory (or --rnn with --text)"),
        out,
        config=DartsConfig(**some(given, (*SHARED, *OF_IMAGES)), guards=Guards(**some(given, GUARDS))),
        resume=resume is Resume.auto,
        latency=None if table is None else open_table(table),
        flip=flip,
        device=device or "auto",
    )
    _show(run)
    return run.path


@app.command("cdarts")
@command
def cdarts(
    out: Annotated[Path, typer.Option(help="Run directory to write, e.g. runs/cdarts.")],
    data: Annotated[str, typer.Option(help="Images, as for `ofa nas darts`.")],
    variant: Annotated[
        str, typer.Option(help="paper, or released: the losses of the released code where they are not the paper's.")
    ] = "paper",
    cells: Annotated[int | None, typer.Option(help="Cells of the search network; default 8.")] = None,
    evaluation_cells: Annotated[int | None, typer.Option(help="Cells of the evaluation network; default 20.")] = None,
    channels: Annotated[int | None, typer.Option(help="Channels of the first cell of both; default 16.")] = None,
    resolution: Resolution = None,
    pretrain_epochs: Annotated[int | None, typer.Option(help="Epochs of the search network alone at first; default 5.")] = None,
    cycles: Annotated[
        int | None, typer.Option(help="Times that cells are derived, warmed up and learn jointly; default 5.")
    ] = None,
    warmup_epochs: Annotated[
        int | None, typer.Option(help="Epochs of the evaluation network alone in a cycle; default 5.")
    ] = None,
    cycle_epochs: Annotated[int | None, typer.Option(help="Joint epochs in a cycle; default 5.")] = None,
    sample_ratio: Annotated[
        float | None, typer.Option(help="Share of the batches of a pass that an epoch has; default 0.2, as released.")
    ] = None,
    batch_size: Annotated[int | None, typer.Option(help="Images a step; default 128.")] = None,
    distillation: Annotated[
        str | None, typer.Option(help="Distance between the networks: kl (default), cosine, mse or smooth_l1.")
    ] = None,
    edge_weights: Annotated[
        str | None, typer.Option(help="Weights of a node's edges besides: none (default), learned (betas) or equal.")
    ] = None,
    penalty: Annotated[
        float | None, typer.Option(help="Of skip connections' alphas at first; default 5, 0 after half of the joint epochs.")
    ] = None,
    max_images: MaxImages = None,
    lr: Annotated[float | None, typer.Option(help="Learning rate of the search network at first; default 0.05.")] = None,
    evaluation_lr: Annotated[
        float | None, typer.Option(help="Learning rate of the evaluation network as a cycle begins; default 0.1.")
    ] = None,
    alpha_lr: Annotated[float | None, typer.Option(help="Learning rate of the alphas; default 0.0006.")] = None,
    seed: Seed = None,
    resume: Annotated[Resume, typer.Option(help="auto: go on from the newest checkpoint in --out.")] = Resume.never,
    flip: Flip = None,
    device: Annotated[str, typer.Option(help="auto (a GPU if there is one), cpu, cuda, ...")] = "auto",
) -> Path | None:
    """Search cells as Cyclic-DARTS does: with a second network that teaches the first.

    The search network holds all operations; an evaluation network, larger and of the cells derived so far, learns beside it. In
    joint epochs it teaches the search network, so that alphas learn what serves a deep network. Skip connections pay a penalty
    that falls to nothing. Yu et al. 2022 (arXiv 2006.10724).

    Example: ofa nas cdarts --data cifar10 --out runs/cdarts

    On a processor begin small: --max-images 5000 --channels 8 --evaluation-cells 8 --cycles 3 --cycle-epochs 2
    """
    given = {name: value for name, value in locals().items() if value is not None}
    from search.joint import cyclic_config
    from search.joint.cdarts import search_cyclic

    config = cyclic_config.variant(variant, **some(given, OF_CYCLES))
    run = search_cyclic(data, out, config=config, resume=resume is Resume.auto, flip=flip, device=device)
    _show(run)
    return run.path


app.command("enas")(command(enas))
app.command("nas_rl")(command(nas_rl))
app.command("spos")(command(spos))


def _search_text(
    text: Path | None, out: Path, settings: dict[str, Any], dropout: float | None, *, resume: bool, device: str | None
) -> None:
    from ofa.text_cli import scaled
    from search.joint.darts_rnn import search_recurrent
    from search.joint.rnn_config import RecurrentSearchConfig

    path = needed(text, "--rnn needs a text: --text FILE")
    if dropout is not None:
        settings = settings | {"dropouts": scaled(RecurrentSearchConfig().dropouts, dropout)}
    config = RecurrentSearchConfig(**settings)
    print(search_recurrent(path, out, config=config, resume=resume, device=device or "auto"))


def _show(run: Run) -> None:
    """Print the cells, what their accuracy is not, and what to do next."""
    from ofa.progress import say
    from search.joint.record import DRAWING, GENOTYPE, train_command

    print((run.path / GENOTYPE).read_text().strip())
    say(f"cells: {run.path / GENOTYPE}, drawn in {run.path / DRAWING}")
    say(
        "The accuracy of the search is that of the network of all operations, not of these cells: those must be trained anew. "
        "Cells of one seed vary: search with several (--seed), train each for some epochs, keep the best."
    )
    say(f"next: {train_command(run)}")
    say(f"      ofa report {shlex.quote(str(run.path))}")
