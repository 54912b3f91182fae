"""Search cells of images by gradients, from Python: the arguments, the images and the run directory; bilevel.py does the steps.

Liu et al. 2019 (DARTS, arXiv 1806.09055). The training images, without those held out for validation as everywhere here, are
split in two halves: weights learn from one, alphas from the other.
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import numpy as np

from latency.cost import AdditiveCost
from ofa.progress import say
from ofa.run_dir import DataSource, Run
from ofa.training.data import ORIENTED, Images, Preprocessing, load_images, split_validation, steps_per_epoch
from ofa.training.distributed import join
from search.joint.bilevel import BilevelSearch
from search.joint.config import DartsConfig
from search.joint.hardware import LatencyTerm
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
    if not 0 < validation_fraction < 1:
        raise SearchError(f"validation_fraction is {validation_fraction!r}, expected a share between 0 and 1")
    if (config.target_ms > 0) != (latency is not None):
        raise SearchError(f"target_ms is {config.target_ms:g}; give a target and a latency table, or neither")
    space = open_relaxation(config.space, resolution=config.resolution, cells=config.cells, channels=config.channels)
    term = None if latency is None else LatencyTerm(space, latency, config.target_ms, config.latency_weight)
    with join(device) as world:
        if world.size > 1:
            raise SearchError(f"{world.size} processes were started, but a search by gradients runs in one; leave out torchrun")
        images = load_images(data, "train", max_size=round(1.25 * config.resolution))
        train, validation = split_validation(images, fraction=validation_fraction, seed=config.seed)
        preprocess = Preprocessing.of(train, flip=data not in ORIENTED if flip is None else flip)
        source = DataSource.of(data, images, preprocess, validation_fraction=validation_fraction, seed=config.seed)
        halves = split_halves(train, config)
        names = {"operations": list(space.operations), "edges": {cell: list(rows) for cell, rows in space.edges.items()}}
        settings = {"method": "darts", **asdict(config), **names, "latency_sha256": None if term is None else term.fingerprint}
        whole = space.space.with_num_classes(len(source.classes))
        run = open_or_create(out, whole, source, settings, resume=resume)
        say(
            f"searching {whole.name} ({whole.size():.2g} cells) on {len(train)} images of {len(source.classes)} classes: "
            f"{len(halves[0])} for weights, {len(halves[1])} for alphas; {len(validation)} held out; order {config.order}, "
            f"{config.epochs} epochs of {steps_per_epoch(halves[0], config.batch_size)} steps"
        )
        search = BilevelSearch(run, config, space, halves, preprocess, world.device, term)
        search.load()
        search.run_steps()
        found = search.found()
        write_found(out, found.text, found.cells, whole, found.arch)
    return run


def split_halves(train: Images, config: DartsConfig) -> tuple[Images, Images]:
    """Split training images into those for weights and those for alphas, the same share of every class.

    Raises:
        SearchError: if either would be smaller than a batch.
    """
    rng = np.random.default_rng((config.seed, 0x4A1F))
    shares: tuple[list[np.ndarray], list[np.ndarray]] = ([], [])
    used = min(1.0, config.max_images / len(train)) if config.max_images else 1.0
    for label in range(len(train.classes)):
        members = rng.permutation(np.flatnonzero(train.labels.numpy() == label))
        members = members[: round(used * len(members))]
        cut = round(config.train_portion * len(members))
        shares[0].append(members[:cut])
        shares[1].append(members[cut:])
    first, second = (train.subset(np.sort(np.concatenate(share))) for share in shares)
    least = min(len(first), len(second))
    if least < config.batch_size:
        raise SearchError(
            f"{len(first)} images for weights and {len(second)} for alphas, fewer than batch_size {config.batch_size}; "
            "lower --batch-size or give more images"
        )
    return first, second
