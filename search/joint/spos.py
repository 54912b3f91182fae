"""Search a space as Single Path One-Shot does, from Python: a supernet trained by single paths, then evolution on what it says.

The two stages are those of every supernet here (ofa.training.loop, search.run); this module gives them the published settings, in
one call that can be stopped anywhere. Guo et al. 2020 (arXiv 1904.00420), sections 3.3, 3.4 and 4, and the release. Deviations:
accuracies are measured with BatchNorm calibrated on 1,000 images (there 25,600); gradients are clipped at a norm of 5; BatchNorm
of the supernet is affine and its momentum Nesterov's (in the release neither); paths are drawn uniformly unless --least-mmacs is
given (in the release by their MACs); weights that are inherited are trained on at a fifth of the rate.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from deploy.device import list_devices
from deploy.limits import ON_DEVICE, Limit, parse_limit
from latency.cost import CostModel, CountCost, MemoryCost, SizeCost
from latency.profile import profile_device
from ofa.artefacts import write_json
from ofa.progress import say
from ofa.run_dir import Run
from ofa.space import SearchSpace
from ofa.spaces import get_space
from ofa.training.config import TrainConfig
from ofa.training.loop import train_supernet
from search.constraints import Constraints
from search.drawing import write_network
from search.joint.record import FOLDER, SearchError
from search.prices import counted, most
from search.result import SearchResult
from search.run import search_run

EPOCHS, BATCH, LR = 120, 128, 0.0625  # published: 150,000 steps of 1,024 images of ImageNet at 0.5; the rate goes with the batch
POPULATION, GENERATIONS = 50, 20
WEIGHTS = ("scratch", "inherit")
DRAWING = "network.svg"
TRAINED = {"scratch": "trained", "inherit": "tuned"}  # --weights -> what is added to the run's name


def single_path_config(**changes: Any) -> TrainConfig:
    """Return the published settings of the supernet's training, some of them changed.

    Raises:
        OfaError: for a value that is none.
    """
    published: dict[str, Any] = {
        "recipe": "single_path",
        "epochs": EPOCHS,
        "batch_size": BATCH,
        "lr": LR,
        "schedule": "linear",
        "warmup": 0.0,
        "weight_decay": 4e-5,
        "label_smoothing": 0.1,
        "dropout": 0.1,
    }
    return TrainConfig(**{**published, **changes})


def search_single_path(
    space: str,
    data: str,
    out: Path | str,
    *,
    config: TrainConfig | None = None,
    where: Sequence[str] = (),
    population: int = POPULATION,
    generations: int = GENERATIONS,
    weights: str | None = None,
    final_epochs: int | None = None,
    resume: bool = False,
    validation_fraction: float = 0.1,
    flip: bool | None = None,
    engine: str | None = None,
    device: str = "auto",
) -> SearchResult | None:
    """Train a supernet, search it by evolution and return what was found; with 0 generations only train it and return None.

    The run directory has, besides what training and searching write, arch.json and network.svg. Called again with `resume`, it
    goes on where it was stopped: in the training, or in the evolution, none of whose measurements is repeated.

    Args:
        space: name of any space with images.
        data: name, directory or archive of images (ofa.training.data.load_images).
        out: run directory to make.
        config: of the supernet's training; None = single_path_config().
        where: limits that what is found must meet, e.g. ["macs <= 330M", "latency@ort_cpu_1t <= 12ms"]. Devices that are this
            machine are measured between the stages; for others the run must hold a table.
        population: networks that are measured in each generation.
        generations: how often.
        weights: train what was found afterwards, in a run of its own beside this one: "scratch" from new weights, in OUT-trained,
            "inherit" from the supernet's, in OUT-tuned; None = not at all.
        final_epochs: of that training; None = as many as the supernet's, or a tenth of them where weights are inherited.
        engine: where to measure, e.g. "joblib:2" (search.engine).
        validation_fraction, flip, device: as in ofa.training.loop.train_supernet.
    Raises:
        InfeasibleError: if nothing meets the limits; of limits that need no device before anything is trained.
        OfaError: for a bad argument, unreadable data, an existing run (without `resume`), or a loss that is not finite.
    """
    config, out = config or single_path_config(), Path(out)
    _check(config, population, generations, weights, final_epochs)
    if (out / FOLDER).exists():
        raise SearchError(f"{out}: holds a search of another method; give another --out")
    devices = _check_limits(get_space(space, num_classes=2), where, out)
    run = train_supernet(
        space,
        data,
        out,
        config=config,
        resume=resume,
        validation_fraction=validation_fraction,
        flip=flip,
        device=device,
    )
    if not generations:
        return None
    for name in devices:
        say(f"measuring {name}, which a limit names")
        profile_device(run, name)
    found = search_run(
        run,
        where,
        strategy=f"spos:population={population},generations={generations}",
        evals=population * generations,
        predictor="none",
        engine=engine,
        seed=config.seed,
    )
    write_json(out / "arch.json", run.space.to_json(found.best.arch), sealed=True)
    write_network(out / DRAWING, run.space.blocks(found.best.arch))
    if weights is not None:
        _train_found(run, found, config, weights, final_epochs, resume=resume, device=device)
    return found


def final_run(out: Path, weights: str) -> Path:
    """Return the run directory in which what was found is trained."""
    return out.with_name(f"{out.name}-{TRAINED[weights]}")


def _train_found(
    run: Run, found: SearchResult, config: TrainConfig, weights: str, epochs: int | None, *, resume: bool, device: str
) -> None:
    inherits = weights == "inherit"
    settings = replace(config, epochs=epochs or max(1, config.epochs // (10 if inherits else 1)), least_mmacs=0.0, most_mmacs=0.0)
    settings = replace(settings, bin_mmacs=TrainConfig().bin_mmacs, lr=config.lr / 5 if inherits else config.lr)
    say(f"training what was found for {settings.epochs} epochs, {'from the supernet' if inherits else 'from new weights'}")
    train_supernet(
        run.space_name,
        run,
        final_run(run.path, weights),
        config=settings,
        arch=found.best.arch,
        init=run.path if inherits else None,
        resume=resume,
        device=device,
    )


def _check(config: TrainConfig, population: int, generations: int, weights: str | None, final_epochs: int | None) -> None:
    if config.recipe != "single_path":
        raise SearchError(f"recipe is {config.recipe!r}, expected 'single_path': this search trains one path a step")
    if population < 2 or generations < 0:
        raise SearchError(f"population is {population}, generations {generations}: expected at least 2, and 0 (train only)")
    if weights is not None and weights not in WEIGHTS:
        raise SearchError(f"weights is {weights!r}, expected {' or '.join(WEIGHTS)}")
    if weights is not None and not generations:
        raise SearchError(f"weights is {weights!r}, but with 0 generations nothing is found that could be trained")
    if final_epochs is not None and (weights is None or final_epochs < 1):
        raise SearchError(f"final_epochs is {final_epochs}, expected at least 1, together with weights scratch or inherit")


def _check_limits(space: SearchSpace, where: Sequence[str], out: Path) -> list[str]:
    """Refuse before anything is trained what is known to fail, and return the devices that are to be measured.

    Args:
        space: with the fewest classes that there can be: nothing costs less.
    """
    if space.size() == 1:
        raise SearchError(f"{space.name}: is one network, there is nothing to search; train it: ofa train --arch {space.name}")
    makers: dict[str, Callable[[Limit], CostModel]] = {
        **dict.fromkeys(("macs", "params", "bitops"), lambda limit: _count(limit, space)),
        "memory": lambda limit: MemoryCost(space, limit.precision or "fp32"),
        "size": lambda limit: SizeCost(space, limit.precision or "fp32"),
    }

    def largest(limit: Limit) -> float:
        return most(makers[limit.quantity](limit), space) if limit.quantity in makers else 1.0

    limits = [parse_limit(text, largest=largest) for text in where]
    known = [limit for limit in limits if limit.quantity in makers]
    costs = {limit.key: makers[limit.quantity](limit) for limit in known}
    Constraints.of(space, limits, costs)  # refuses two of one quantity
    if known:
        Constraints.of(space, known, costs).require_feasible()
    asked = dict.fromkeys(str(limit.device) for limit in limits if limit.quantity in ON_DEVICE)
    unknown = [name for name in asked if not (out / "latency" / f"{name}.json").exists()]
    for name in unknown:
        if name not in list_devices():
            raise SearchError(
                f"limit on {name}: {out} has no latency table of it; train first (--generations 0), then measure it: ofa profile "
                f"{out} --device {name}=ssh:USER@HOST; then give this command again with --resume auto"
            )
    return unknown


def _count(limit: Limit, space: SearchSpace) -> CountCost:
    if limit.quantity not in counted(space):
        raise SearchError(f"limit {str(limit)!r}: no block of {space.name} has {limit.quantity} to count; leave the limit out")
    return CountCost(limit.quantity, space)
