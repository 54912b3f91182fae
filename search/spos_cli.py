"""Command line verb `ofa nas spos`: a supernet by single paths, and evolution or gates. Heavy imports stay inside."""

from __future__ import annotations

import shlex
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ofa.cli import Resume
from search.given import refuse, some
from search.nas_options import Flip, Seed

if TYPE_CHECKING:
    from ofa.run_dir import Run
    from search.result import SearchResult

OF_TRAINING = (
    *("epochs", "batch_size", "lr", "weight_decay", "dropout", "ema_decay", "least_mmacs", "most_mmacs", "bin_mmacs", "seed"),
)
OF_EVOLUTION = (
    *("population", "generations", "dropout", "ema_decay", "least_mmacs", "most_mmacs", "bin_mmacs", "weights", "final_epochs"),
    "engine",
)
OF_GATES = ("fix", "warmup_epochs", "alpha_lr", "alpha_every", "table", "max_images", "train_portion")
OF_GRADIENT, OF_REWARD = ("target_ms", "latency_weight", "latency_loss"), ("reward", "samples")


class Decide(str, Enum):
    """What chooses the network."""

    evolution = "evolution"
    gates = "gates"
    reinforce = "reinforce"


def spos(
    data: Annotated[
        str,
        typer.Option(
            help="digits, cifar10, cifar100, fashion_mnist, or a directory or .tar[.xz] with train/ and test/, a folder a class."
        ),
    ],
    out: Annotated[Path, typer.Option(help="Run directory to write, e.g. runs/spos.")],
    space: Annotated[
        str,
        typer.Option(
            help="shufflenet (a choice of four blocks at each place), shufflenet_channels (and of its width), shufflenet_bits "
            "(and of its bits), each with numbers such as shufflenet:resolution=32,stem=cifar,channels=8,blocks=2; or any other."
        ),
    ] = "shufflenet",
    decide: Annotated[
        Decide,
        typer.Option(
            help="evolution: as published, after the training. Or ProxylessNAS, during it: gates, by gradients through two "
            "paths, or reinforce, by a reward; their options stand at the end."
        ),
    ] = Decide.evolution,
    where: Annotated[
        list[str] | None,
        typer.Option(help='A limit, e.g. "macs <= 330M" or "latency@ort_cpu_1t <= 12ms"; repeat for more.'),
    ] = None,
    population: Annotated[
        int | None, typer.Option(help="Networks that are measured in each generation of the evolution; default 50.")
    ] = None,
    generations: Annotated[int | None, typer.Option(help="How often; 0 = train the supernet only; default 20.")] = None,
    epochs: Annotated[
        int | None, typer.Option(help="Of the supernet: passes over the training images; default 120, of gates 160.")
    ] = None,
    batch_size: Annotated[int | None, typer.Option(help="Images a step; default 128, of gates 256.")] = None,
    lr: Annotated[
        float | None,
        typer.Option(
            help="Peak learning rate, falling linearly; default 0.0625 (published: 0.5 for 1,024 images); of gates 0.025, in "
            "half a cosine."
        ),
    ] = None,
    weight_decay: Annotated[float | None, typer.Option(help="Default 0.00004.")] = None,
    dropout: Annotated[float | None, typer.Option(help="Before the classifier; default 0.1.")] = None,
    ema_decay: Annotated[
        float | None, typer.Option(help="Use a moving average of the weights with this decay; default 0 = off.")
    ] = None,
    least_mmacs: Annotated[
        float | None,
        typer.Option(
            help="Draw paths evenly from so many million multiply-adds on, as the release does (290); default: as they come,"
        ),
    ] = None,
    most_mmacs: Annotated[float | None, typer.Option(help="up to so many (360),")] = None,
    bin_mmacs: Annotated[float | None, typer.Option(help="in bins of so many (10).")] = None,
    weights: Annotated[
        str | None,
        typer.Option(
            help="Train what was found as well: scratch (from new weights, in OUT-trained) or inherit (from the supernet's, in "
            "OUT-tuned)."
        ),
    ] = None,
    final_epochs: Annotated[
        int | None, typer.Option(help="Of that training; default: the supernet's, or a tenth of them with --weights inherit.")
    ] = None,
    engine: Annotated[str | None, typer.Option(help="Where to measure: joblib:2, dask:ADDRESS or ray:ADDRESS.")] = None,
    seed: Seed = None,
    resume: Annotated[
        Resume, typer.Option(help="auto: go on in --out, with the training or the evolution, wherever it was stopped.")
    ] = Resume.never,
    flip: Flip = None,
    device: Annotated[str, typer.Option(help="auto (a GPU if there is one), cpu, cuda, ...")] = "auto",
    fix: Annotated[
        list[str] | None,
        typer.Option(help='Gates: choices that are not searched, e.g. "resolution=32" or "*.depth=4"; repeat for more.'),
    ] = None,
    warmup_epochs: Annotated[
        int | None, typer.Option(help="Gates: of the epochs, before the alphas learn; default a quarter.")
    ] = None,
    alpha_lr: Annotated[
        float | None, typer.Option(help="Gates: learning rate of the alphas; default 0.001, for few steps 0.01 and more.")
    ] = None,
    alpha_every: Annotated[int | None, typer.Option(help="Gates: steps of the weights for one of the alphas; default 5.")] = None,
    train_portion: Annotated[
        float | None, typer.Option(help="Gates: share of the images that weights learn from, not alphas; default 0.9.")
    ] = None,
    max_images: Annotated[int | None, typer.Option(help="Gates: search on so many training images only; default: all.")] = None,
    table: Annotated[
        Path | None, typer.Option(help="Gates: latency table of a device, of the blocks to choose from (ofa profile).")
    ] = None,
    target_ms: Annotated[float | None, typer.Option(help="Gates: latency T there that the loss is relative to.")] = None,
    latency_weight: Annotated[
        float | None, typer.Option(help="Gates: what expected latency weighs in the loss; default 0.1.")
    ] = None,
    latency_loss: Annotated[
        str | None,
        typer.Option(help="Gates: add (default: + weight x E / T) or multiply (x (log E / log T) ** weight; published: 0.3)."),
    ] = None,
    reward: Annotated[
        str | None,
        typer.Option(help="Reinforce: mnasnet_soft, mnasnet_hard or mobilenetv3; what limits (--where) are worth in accuracy."),
    ] = None,
    samples: Annotated[int | None, typer.Option(help="Reinforce: paths of a step of the alphas; default 10.")] = None,
) -> Path | None:
    """Search as Single Path One-Shot does: train all networks, one random one a step, then let the best breed.

    A step of the supernet costs what one network costs. The evolution measures networks that meet the limits, BatchNorm
    calibrated for each, on images held out of the training, and writes down every number: stopped, it goes on with --resume auto;
    under other limits it measures only what is new. Defaults are the published ones, for ImageNet. Guo et al. 2020 (arXiv
    1904.00420).

    Example: ofa nas spos --data imagenet/ --out runs/spos --where "macs <= 330M" --least-mmacs 290 --most-mmacs 360

    On a processor begin small: ofa nas spos --data cifar10 --out runs/spos --epochs 20 --generations 4 --population 25
    --space shufflenet:resolution=32,stem=cifar,channels=8,blocks=2 --where "macs <= 17M"

    For another device: train first (--generations 0), then ofa profile runs/spos --device pi4=ssh:USER@HOST, then the same
    command with --where "latency@pi4 <= 12ms" --resume auto.

    In the run: arch.json, network.svg, search/front.json; then train the network from scratch, or export it as it is.

    ProxylessNAS (Cai et al. 2019, arXiv 1812.00332): alphas, one for each option of each choice, learn beside the weights; a step
    of theirs takes two paths, not all. With --table what latency is expected is part of their loss.

    Example: ofa nas spos --decide gates --data cifar10 --out runs/gates --epochs 30 --warmup-epochs 10 --alpha-lr 0.01
    --space shufflenet:resolution=32,stem=cifar,channels=8,blocks=2 --table runs/spos/latency/ort_cpu_1t.json --target-ms 2
    """
    given = {name: value for name, value in locals().items() if value is not None}
    if decide is not Decide.evolution:
        return _gates(given, decide)
    refuse(given, (*OF_GATES, *OF_GRADIENT, *OF_REWARD), "the evolution decides, not gates (--decide gates)")
    from search.joint.spos import search_single_path, single_path_config

    found = search_single_path(
        space,
        data,
        out,
        config=single_path_config(**some(given, OF_TRAINING)),
        where=where or (),
        **some(given, ("population", "generations")),
        weights=weights,
        final_epochs=final_epochs,
        resume=resume is Resume.auto,
        flip=flip,
        engine=engine,
        device=device,
    )
    _show(out, found, weights)
    return out


def _gates(given: dict[str, Any], decide: Decide) -> Path:
    """Search by gates, or by a reward, while the weights learn."""
    refuse(given, OF_EVOLUTION, f"--decide {decide.value} has no evolution")
    by_reward = decide is Decide.reinforce
    refuse(given, OF_GRADIENT if by_reward else OF_REWARD, f"--decide {decide.value}")
    if "table" not in given and "target_ms" not in given:
        refuse(given, ("latency_weight", "latency_loss"), "this search has no --target-ms and no --table")
    from search.joint.gates_config import GatesConfig
    from search.joint.proxyless import search_gates

    numbers = ("space", "epochs", "batch_size", "lr", "weight_decay", "seed", *OF_GATES, *OF_GRADIENT, "samples")
    settings = some(given, [name for name in numbers if name not in ("table", "fix")])
    run = search_gates(
        given["data"],
        given["out"],
        config=GatesConfig(fix=tuple(given.get("fix", ())), update="reinforce" if by_reward else "gradient", **settings),
        resume=given["resume"] is Resume.auto,
        **some(given, ("table", "reward", "where", "flip", "device")),
    )
    _show_gates(run)
    return run.path


def _show_gates(run: Run) -> None:
    from ofa.progress import say
    from search.joint.proxyless import DRAWING
    from search.joint.record import ALPHAS, FOLDER, train_command

    say(f"architecture: {run.path / 'arch.json'}, drawn in {run.path / DRAWING}; alphas: {run.path / FOLDER / ALPHAS}")
    say(f"next, from scratch: {train_command(run)}")


def _show(out: Path, found: SearchResult | None, weights: str | None) -> None:
    """Print what was found and what to do next."""
    from deploy.limits import format_value
    from ofa.progress import say
    from ofa.run_dir import Run
    from search.joint.spos import DRAWING, final_run

    where = shlex.quote(str(out))
    if found is None:
        say(f"next: the same command with --resume auto and --generations 20; or first: ofa profile {where} --device DEVICE")
        return
    costs = ", ".join(f"{key} {format_value(key.partition('@')[0], value)}" for key, value in found.best.costs.items())
    say(f"best: {found.describe_accuracy()} with the supernet's weights, {costs}")
    say(f"architecture: {out / 'arch.json'}, drawn in {out / DRAWING}; all that was measured: {found.path / 'front.csv'}")
    if weights is not None:
        trained = final_run(out, weights)
        say(f"next: ofa export {shlex.quote(str(trained / 'arch.json'))} -o {shlex.quote(str(trained / 'export'))}")
    else:
        argv = ["ofa", "train", "--arch", str(out / "arch.json"), "--data", Run(out).data.source, "--out", f"{out}-trained"]
        say(f"next, from scratch: {shlex.join(argv)}")
        best = found.path / "best"
        say(f"or with the supernet's weights: ofa export {shlex.quote(str(best))} -o {shlex.quote(str(out / 'export' / 'best'))}")
    say(f"      ofa report {where}")
