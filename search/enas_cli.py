"""Command line verb `ofa nas enas`: search with a controller and shared weights. Heavy imports stay inside."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ofa.cli import Resume
from ofa.errors import OfaError
from search.given import needed, refuse, some
from search.nas_options import Data, Flip, MaxImages, Resolution, Seed

if TYPE_CHECKING:
    from ofa.run_dir import Run

SPACES = ("micro", "macro", "rnn")
SHARED = ("epochs", "batch_size", "lr", "controller_steps", "controller_lr", "candidates", "seed")  # settings of every search
OF_IMAGES = ("depth", "channels", "final_channels", "resolution", "restart_epochs", "samples", "train_portion", "max_images")
OF_TEXT = ("tokens", "max_vocabulary", "features", "bptt")
IMAGES_ALONE = ("data", *(name for name in OF_IMAGES if name != "samples"), "reward", "where", "table", "flip")


def enas(
    out: Annotated[Path, typer.Option(help="Run directory to write, e.g. runs/enas.")],
    space: Annotated[
        str, typer.Option(help="micro (a normal and a reduction cell), macro (a chain with skips) or rnn (a recurrent cell).")
    ] = "micro",
    data: Data = None,
    text: Annotated[
        Path | None, typer.Option(help="rnn: a text file, or a folder with train.txt, valid.txt and test.txt.")
    ] = None,
    variant: Annotated[
        str | None,
        typer.Option(
            help="Rules: paper (default), or release: what the published code does otherwise. "
            "Numbers of images are the code's in both."
        ),
    ] = None,
    depth: Annotated[
        int | None, typer.Option(help="Of the network of shared weights: cells (micro, default 8) or layers (macro, 12).")
    ] = None,
    channels: Annotated[int | None, typer.Option(help="Of its first cells or layers; default 20, macro 36.")] = None,
    final_channels: Annotated[
        int | None, typer.Option(help="Of the first cells or layers of the network to be trained; default 36.")
    ] = None,
    resolution: Resolution = None,
    epochs: Annotated[
        int | None,
        typer.Option(help="Passes over the images or the text; default 150, macro 310."),
    ] = None,
    batch_size: Annotated[
        int | None, typer.Option(help="Images of a step of the weights, and of a reward; default 160, macro 128, rnn 64.")
    ] = None,
    lr: Annotated[float | None, typer.Option(help="Learning rate of the weights at first; default 0.05, rnn 20.")] = None,
    restart_epochs: Annotated[
        int | None, typer.Option(help="Epochs of the rate's first cosine, each further one twice as long; default 10.")
    ] = None,
    controller_steps: Annotated[
        int | None, typer.Option(help="Steps of the controller after each epoch; default 30, macro 50, rnn 2000.")
    ] = None,
    samples: Annotated[
        int | None, typer.Option(help="Architectures that a step of the controller measures; default 10, macro 20, rnn 1.")
    ] = None,
    controller_lr: Annotated[
        float | None, typer.Option(help="Learning rate of the controller; default 0.0035, macro 0.001, rnn 0.00035.")
    ] = None,
    candidates: Annotated[
        int | None, typer.Option(help="Architectures drawn and measured at the end; default 10, rnn 100. The best is found.")
    ] = None,
    train_portion: Annotated[
        float | None, typer.Option(help="Share of the images that weights learn from, the rest rewards; default 0.9.")
    ] = None,
    max_images: MaxImages = None,
    reward: Annotated[
        str | None,
        typer.Option(help="What costs are worth, with --where: mnasnet_soft, mnasnet_hard or mobilenetv3; default: nothing."),
    ] = None,
    where: Annotated[
        list[str] | None,
        typer.Option(
            help='Target of the reward, e.g. "macs <= 300M" or "latency@pi4 <= 12ms"; of the network to be trained: '
            "17 cells (micro) or --depth layers (macro), of --final-channels, which the command printed at the end trains."
        ),
    ] = None,
    table: Annotated[Path | None, typer.Option(help="Latency table of the device, made by `ofa profile`.")] = None,
    tokens: Annotated[str | None, typer.Option(help="rnn: words (default) or characters.")] = None,
    features: Annotated[int | None, typer.Option(help="rnn: size of the embedding and of every state; default 720.")] = None,
    bptt: Annotated[int | None, typer.Option(help="rnn: tokens that a gradient reaches back; default 35.")] = None,
    max_vocabulary: Annotated[
        int | None, typer.Option(help="rnn: tell apart only so many tokens, the most frequent; default: all.")
    ] = None,
    dropout: Annotated[
        float | None, typer.Option(help="rnn: factor on all published dropouts; 0 = none; small networks need less than 1.")
    ] = None,
    seed: Seed = None,
    resume: Annotated[Resume, typer.Option(help="auto: go on from the newest checkpoint in --out.")] = Resume.never,
    flip: Flip = None,
    device: Annotated[str, typer.Option(help="auto (a GPU if there is one), cpu, cuda, ...")] = "auto",
) -> Path | None:
    """Search as ENAS does: a controller writes architectures that share their weights.

    An epoch trains the shared weights, each step one architecture of the controller's; then it trains the controller, rewarded by
    accuracy on images that the weights do not learn from. At the end some architectures are measured, and the best is found.
    Pham et al. 2018 (arXiv 1802.03268). Defaults are meant for a GPU. They are numbers of the published code; the paper names
    temperature 5, tanh constant 2.5, controller's rate 0.00035, entropy weights 0.1 (images) and 0.0001 (text).

    Example: ofa nas enas --space micro --data cifar10 --out runs/enas

    Fast on a phone: ofa nas enas --data cifar10 --out runs/fast --reward mnasnet_soft --table pi4.json --where "latency <= 20ms"

    On a processor begin small: --space macro --depth 6 --channels 12 --resolution 16 --epochs 30 --controller-lr 0.01. The
    published rate is for thousands of steps of the controller; in hundreds it hardly moves.

    Recurrent: ofa nas enas --space rnn --text words.txt --out runs/rnn
    """
    given = {name: value for name, value in locals().items() if value is not None}
    if space not in SPACES:
        raise OfaError(f"space is {space!r}, expected one of: {', '.join(SPACES)}")
    if space == "rnn":
        refuse(given, IMAGES_ALONE, "--space rnn searches a cell for text")
        _search_text(text, out, given, resume=resume is Resume.auto, device=device)
        return None
    refuse(given, ("text", "dropout", *OF_TEXT), f"--space {space} searches on images")
    from search.joint.enas import search_enas
    from search.joint.enas_config import configure

    run = search_enas(
        needed(data, "a search needs images: --data cifar10, or a directory (or --space rnn with --text)"),
        out,
        config=configure(space, variant or "paper", **some(given, (*SHARED, *OF_IMAGES))),
        resume=resume is Resume.auto,
        reward=reward,
        where=where or (),
        table=table,
        flip=flip,
        device=device,
    )
    _show(run)
    return run.path


def _search_text(text: Path | None, out: Path, given: dict[str, Any], *, resume: bool, device: str) -> None:
    from ofa.text_cli import scaled
    from search.joint.enas_rnn import search_enas_recurrent
    from search.joint.enas_rnn_config import EnasRnnConfig, configure_rnn

    path = needed(text, "--space rnn needs a text: --text FILE")
    settings = some(given, (*SHARED, *OF_TEXT))
    if "samples" in given:
        settings["controller_samples"] = given["samples"]
    if "dropout" in given:
        settings["dropouts"] = scaled(EnasRnnConfig().dropouts, given["dropout"])
    print(
        search_enas_recurrent(
            path, out, config=configure_rnn(given.get("variant", "paper"), **settings), resume=resume, device=device
        )
    )


def _show(run: Run) -> None:
    """Print the architecture, what its accuracy is not, and what to do next."""
    from ofa.progress import say
    from search.joint.candidates import CANDIDATES
    from search.joint.record import ARC, CHAIN, DRAWING, FOLDER, train_command

    print((run.path / ARC).read_text().strip())
    drawing = CHAIN if run.space_name.startswith("enas_macro") else DRAWING
    say(f"architecture: {run.path / 'arch.json'}, drawn in {run.path / drawing}; ranking: {run.path / FOLDER / CANDIDATES}")
    say(
        "Accuracies of the search are those with shared weights: this architecture must be trained anew. Compare it with random "
        "ones that are trained alike; in comparisons by others, ENAS' controller was hardly better."
    )
    if drawing == CHAIN:
        say("A network of more layers needs a search of more: ENAS' published one has 24 (--depth 24).")
    say(f"next: {train_command(run)}")
    say(f"      ofa report {shlex.quote(str(run.path))}")
