"""Search cells with two networks that teach each other (Cyclic-DARTS), from Python; cyclic_search.py does the steps.

Yu et al. 2022 (arXiv 2006.10724).
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

from ofa.progress import say
from ofa.run_dir import Run
from ofa.spaces.darts import SPACE
from ofa.training.distributed import join
from search.joint.cyclic_config import CyclicConfig
from search.joint.cyclic_search import CyclicSearch
from search.joint.images import open_images
from search.joint.record import SearchError, open_or_create, write_found
from search.joint.relaxation import DartsCells


def search_cyclic(
    data: str,
    out: Path | str,
    *,
    config: CyclicConfig | None = None,
    resume: bool = False,
    validation_fraction: float = 0.1,
    flip: bool | None = None,
    device: str = "auto",
) -> Run:
    """Search cells on images and return the run directory, with genotype.txt, cells.svg and arch.json.

    Args:
        data: name, directory or archive of images (ofa.training.data.load_images).
        out: run directory to make.
        config: see `variant` for that of the released code.
        resume: go on from the newest checkpoint in `out`, if there is one.
        validation_fraction: share of the training images held out, which this search never sees.
        flip: whether augmentation may mirror images; None = unless they are digits or clothes.
        device: "auto", "cpu", "cuda", ...
    Raises:
        OfaError: for a bad argument, unreadable data, an existing search (without `resume`), or a loss that is not finite.
    """
    config, out = config or CyclicConfig(), Path(out)
    cells = DartsCells(resolution=config.resolution)
    with join(device) as world:
        if world.size > 1:
            raise SearchError(f"{world.size} processes were started, but a search by gradients runs in one; leave out torchrun")
        images = open_images(data, config, validation_fraction=validation_fraction, flip=flip)
        names = {"operations": list(cells.operations), "edges": {cell: list(rows) for cell, rows in cells.edges.items()}}
        settings = {"method": "cdarts", **asdict(config), "epochs": config.epochs, **names}
        whole = SPACE.with_numbers(resolution=config.resolution).with_num_classes(len(images.source.classes))
        run = open_or_create(out, whole, images.source, settings, resume=resume)
        search = CyclicSearch(run, config, images, world.device)
        say(
            f"searching {whole.name} ({whole.size():.2g} cells) on {images}; networks of {config.cells} and "
            f"{config.evaluation_cells} cells, {config.epochs} epochs of {search.epoch_steps} steps"
        )
        search.load()
        search.run_steps()
        found = search.found()
        write_found(out, found.text, found.cells, whole, found.arch)
    return run
