"""Search cells or chains of images with a controller and shared weights, from Python; alternating.py does the steps.

Pham et al. 2018 (ENAS, arXiv 1802.03268). At the end some architectures are drawn from the controller and measured on all of its
images, BatchNorm calibrated for each; the best is what is found. (The paper measures each on one batch.)
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch

from ofa.artefacts import write_bytes, write_json
from ofa.cell_space import CellSpace
from ofa.counts import block_macs, block_params
from ofa.formats.enas import parse_arc
from ofa.progress import say
from ofa.run_dir import Run
from ofa.space import ArchConfig, SearchSpace
from ofa.training.distributed import join
from ofa.training.evaluation import evaluate
from search.cell_drawing import cells_of
from search.chain_drawing import write_chain
from search.joint.alternating import AlternatingSearch
from search.joint.candidates import Candidate, write_candidates
from search.joint.enas_config import EnasConfig
from search.joint.enas_space import ChildSpace
from search.joint.images import open_images
from search.joint.objective import Objective, open_objective
from search.joint.record import ARC, CHAIN, SearchError, open_or_create, write_found


def search_enas(
    data: str,
    out: Path | str,
    *,
    config: EnasConfig | None = None,
    resume: bool = False,
    reward: str | None = None,
    where: Sequence[str] = (),
    table: Path | None = None,
    validation_fraction: float = 0.1,
    flip: bool | None = None,
    device: str = "auto",
) -> Run:
    """Search with a controller and return the run directory, with arch.json, arc.txt, a drawing and nas/candidates.json.

    Args:
        data: name, directory or archive of images (ofa.training.data.load_images).
        out: run directory to make.
        config: see search.joint.enas_config.configure.
        resume: go on from the newest checkpoint in `out`, if there is one.
        reward: mnasnet_soft, mnasnet_hard or mobilenetv3: what costs are worth (search.joint.objective); None = accuracy alone.
        where: limits on costs of the network that is to be trained, the targets of `reward`.
        table: latency table for limits on latency.
        validation_fraction: share of the training images held out; what is found is measured on them once.
        flip: whether augmentation may mirror images; None = unless they are digits or clothes.
        device: "auto", "cpu", "cuda", ...
    Raises:
        OfaError: for a bad argument, unreadable data, an existing search (without `resume`), or a loss that is not finite.
    """
    config, out = config or EnasConfig(), Path(out)
    open_objective(ChildSpace.of(config, 10).whole, reward, where, table, price_now=False)  # before images are loaded
    with join(device) as world:
        if world.size > 1:
            raise SearchError(f"{world.size} processes were started, but this search runs in one; leave out torchrun")
        images = open_images(data, config, validation_fraction=validation_fraction, flip=flip)
        space = ChildSpace.of(config, len(images.source.classes))
        objective = open_objective(space.whole, reward, where, table)
        wanted = {"reward": reward, "where": list(where), "objective_sha256": objective.fingerprint}
        run = open_or_create(out, space.whole, images.source, {"method": "enas", **asdict(config), **wanted}, resume=resume)
        search = AlternatingSearch(run, config, space, images, objective, world.device)
        say(
            f"searching {space.shared.name} ({space.whole.size():.2g} networks) on {images}; {config.epochs} epochs of "
            f"{search.weight_steps} steps of the weights and {config.controller_steps} of the controller"
        )
        search.load()
        search.run_steps()
        ranked, arch = _choose(search, space, objective)
        best = space.shared_arch(torch.tensor(parse_arc(ranked[0].arc)))
        (top1,) = evaluate(search.shared, [best], images.weights, images.held_out, images.preprocess)
        say(
            f"found: top-1 with the shared weights {ranked[0].top1:.4f} on the {len(images.alphas)} images of the ranking, "
            f"{top1:.4f} on {len(images.held_out)} held out, that nothing was chosen by"
        )
        write_candidates(search.folder, ranked, images=len(images.alphas), held_out_top1=top1, held_out=len(images.held_out))
        _write(run, space.whole, ranked[0].arc, arch)
    return run


def _choose(search: AlternatingSearch, space: ChildSpace, objective: Objective) -> tuple[list[Candidate], ArchConfig]:
    """Draw architectures from the controller and measure each on all of its images; returns the ranking and the best."""
    tokens = search.final_draws()
    drawn = Counter(map(space.arch, tokens))  # in the order in which they were drawn
    shared = list(dict.fromkeys(map(space.shared_arch, tokens)))
    images = search.images
    say(f"measuring {len(drawn)} architectures of the controller on {len(images.alphas)} images")
    top1 = np.array(evaluate(search.shared, shared, images.weights, images.alphas, images.preprocess))
    rewards = objective(list(drawn), top1)
    found = {
        arch: Candidate(
            space.arc(arch),
            float(accuracy),
            float(reward),
            drawn[arch],
            sum(map(block_macs, space.whole.blocks(arch).values())),
            sum(map(block_params, space.whole.blocks(arch).values())),
        )
        for arch, accuracy, reward in zip(drawn, top1, rewards, strict=True)
    }
    ranked = sorted(found, key=lambda arch: (-found[arch].reward, found[arch].macs))
    return [found[arch] for arch in ranked], ranked[0]


def _write(run: Run, space: SearchSpace, arc: str, arch: ArchConfig) -> None:
    write_bytes(run.path / ARC, f"{arc}\n".encode())
    if isinstance(space, CellSpace):
        genotype = space.to_genotype(arch)
        write_found(run.path, str(genotype), tuple(cells_of(genotype)), space, arch)
    else:
        write_chain(run.path / CHAIN, space, arch)
        write_json(run.path / "arch.json", space.to_json(arch), sealed=True)
