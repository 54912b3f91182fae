"""Search cells of images by gradients, from Python: the arguments, the images and the run directory; bilevel.py does the steps.

Liu et al. 2019 (DARTS, arXiv 1806.09055). The training images, without those held out for validation as everywhere here, are
split in two halves: weights learn from one, alphas from the other.
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

from latency.cost import AdditiveCost
from ofa.progress import say
from ofa.run_dir import Run
from ofa.training.data import steps_per_epoch
from ofa.training.distributed import join
from search.joint.bilevel import BilevelSearch
from search.joint.config import DartsConfig
from search.joint.hardware import LatencyTerm
from search.joint.images import open_images
from search.joint.record import SearchError, open_or_create, write_found
from search.joint.relaxation import open_relaxation


def search_images(
    data: str,
    out: Path | str,
    *,
    config: DartsConfig | None = None,
    resume: bool = False,
    latency: AdditiveCost | None = None,
    validation_fraction: float = 0.1,
    flip: bool | None = None,
    device: str = "auto",
) -> Run:
    """Search cells on images and return the run directory, with genotype.txt, cells.svg and arch.json.

    Args:
        data: name, directory or archive of images (ofa.training.data.load_images).
        out: run directory to make.
        resume: go on from the newest checkpoint in `out`, if there is one.
        latency: cost in ms of the network that is to be derived, e.g. a latency table; needed if the config has a target.
        validation_fraction: share of the training images held out, which this search never sees.
        flip: whether augmentation may mirror images; None = unless they are digits or clothes.
        device: "auto", "cpu", "cuda", ...
    Raises:
        OfaError: for a bad argument, unreadable data, an existing search (without `resume`), or a loss that is not finite.
    """
    config, out = config or DartsConfig(), Path(out)
    _require_both_or_neither(config, latency)
    space = open_relaxation(config.space, resolution=config.resolution, cells=config.cells, channels=config.channels)
    term = None if latency is None else LatencyTerm(space, latency, config.target_ms, config.latency_weight)
    with join(device) as world:
        if world.size > 1:
            raise SearchError(f"{world.size} processes were started, but a search by gradients runs in one; leave out torchrun")
        images = open_images(data, config, validation_fraction=validation_fraction, flip=flip)
        names = {"operations": list(space.operations), "edges": {cell: list(rows) for cell, rows in space.edges.items()}}
        settings = {"method": "darts", **asdict(config), **names, "latency_sha256": None if term is None else term.fingerprint}
        whole = space.space.with_num_classes(len(images.source.classes))
        run = open_or_create(out, whole, images.source, settings, resume=resume)
        say(
            f"searching {whole.name} ({whole.size():.2g} cells) on {images}; order {config.order}, "
            f"{config.epochs} epochs of {steps_per_epoch(images.weights, config.batch_size)} steps"
        )
        search = BilevelSearch(run, config, space, (images.weights, images.alphas), images.preprocess, world.device, term)
        search.load()
        search.run_steps()
        found = search.found()
        write_found(out, found.text, found.cells, whole, found.arch)
    return run


def _require_both_or_neither(config: DartsConfig, latency: AdditiveCost | None) -> None:
    """Refuse a latency to stay below without the latencies of the device, and the other way round."""
    both = "give --target-ms and --table, or"
    if config.target_ms > 0 and latency is None:
        raise SearchError(f"target_ms is {config.target_ms:g}, but there is no latency table; {both} neither")
    if config.target_ms == 0 and latency is not None:
        raise SearchError(f"there is a latency table, but no target; {both} neither")
    if latency is None and config.latency_weight != DartsConfig().latency_weight:
        raise SearchError(
            f"latency_weight is {config.latency_weight:g}, but no latency matters to this search; {both} leave it out"
        )
