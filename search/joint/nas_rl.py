"""Search networks for images with reinforcement learning, from Python: a controller draws children, each is trained from scratch.

Zoph and Le 2017 (arXiv 1611.01578), section 3. Deviation: one controller, which waits for all children of an update, instead of
100 copies of it that update shared weights whenever they have one; so that a search can be repeated.

nas/config.json, nas/metrics.jsonl (a line an update), nas/step_NNNNNN/     as of other searches (search.joint.record)
nas/best/1/arch.json, ...                                                   the best children, 1 = arch.json of the run
chain.svg, or cells.svg and genotype.txt, or network.svg                    the best, drawn
search/trials.jsonl                                                         every child's accuracy (search.journal)
"""

from __future__ import annotations

import shlex
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ofa.artefacts import write_json
from ofa.cell_space import CellSpace
from ofa.conv_chain_space import ConvChainSpace
from ofa.progress import LOG_SECONDS, say
from ofa.run_dir import DataSource, Run, max_resolution
from ofa.space import ArchConfig, SearchSpace
from ofa.training.checkpoint import Checkpoint
from ofa.training.data import ORIENTED, Preprocessing, load_images, split_validation
from ofa.training.distributed import join
from search.cell_drawing import cells_of
from search.chain_drawing import chain_of, write_chain
from search.drawing import write_network
from search.engine import Engine
from search.joint.best import KEPT, best_folders, write_best
from search.joint.controllers import Controller, Sampled
from search.joint.controllers.conv import ConvController
from search.joint.controllers.flat import controller_of
from search.joint.controllers.policy_gradient import PolicyGradient
from search.joint.controllers.sequences import generator_of
from search.joint.nas_rl_config import NasRlConfig
from search.joint.objective import Objective, open_objective
from search.joint.record import CHAIN, SearchError, open_or_create, write_found
from search.joint.stepping import Optimizers, SteppedSearch
from search.journal import JOURNAL
from search.scratch import ScratchAccuracy

NETWORK = "network.svg"  # drawing of what is neither chain nor cells
CHILDREN, WEIGHTS = 0x51, 0x52  # what is drawn from the seed and a step

Losses = tuple[float | None, float | None]
Child = dict[str, Any]  # reward, top1, child (its number, from 1), values: its choices


def search_nas_rl(
    data: str,
    out: Path | str,
    *,
    config: NasRlConfig | None = None,
    resume: bool = False,
    engine: Engine | str | None = None,
    reward: str | None = None,
    where: Sequence[str] = (),
    table: Path | None = None,
    validation_fraction: float = 0.1,
    flip: bool | None = None,
    device: str = "auto",
) -> Run:
    """Search and return the run directory, with arch.json, the best children and the accuracy of all.

    Args:
        data: name, directory or archive of images (ofa.training.data.load_images).
        out: run directory to make.
        resume: go on from the newest checkpoint in `out`, if there is one. No child that was trained is trained again.
        engine: where children are trained (search.engine), e.g. "joblib:2" for two at a time.
        reward: mnasnet_soft, mnasnet_hard or mobilenetv3: what costs are worth (search.joint.objective); None = accuracy alone.
        where: limits on costs of the children, the targets of `reward`.
        table: latency table for limits on latency.
        validation_fraction: share of the training images held out; accuracy is measured on them.
        flip: whether augmentation may mirror images; None = unless they are digits or clothes.
        device: "auto", "cpu", "cuda", ... where children are trained.
    Raises:
        OfaError: for a bad argument, unreadable data, an existing search (without `resume`), or if no child can be trained.
    """
    config, out = config or NasRlConfig(), Path(out)
    with join("cpu") as world:  # children are trained on `device`, maybe by other machines
        if world.size > 1:
            raise SearchError(
                f"{world.size} processes were started, but this search runs in one; leave out torchrun, give --engine joblib:2"
            )
    source = _describe(data, config, max_resolution(config.open_space()), validation_fraction, flip)
    space = config.open_space(len(source.classes))
    objective = open_objective(space, reward, where, table)
    wanted = {"reward": reward, "where": list(where), "objective_sha256": objective.fingerprint}
    settings = {"method": "nas_rl", **asdict(config), **wanted}
    run = open_or_create(out, space, source, settings, resume=resume)
    opened = engine if isinstance(engine, Engine) else Engine(engine)
    try:
        accuracy = ScratchAccuracy(run, out / JOURNAL, config.scratch(), engine=opened, device=device)
        search = ScratchSearch(run, config, space, accuracy, objective)
        say(
            f"searching {space.name} ({float(space.size()):.2g} networks): {config.children} children of {config.child_epochs} "
            f"epochs, {config.batch_children} to an update, {opened.text}"
        )
        search.load()
        search.run_steps()
    finally:
        if opened is not engine:
            opened.close()
    _write(run, space, search.best)
    return run


class ScratchSearch(SteppedSearch[Losses]):
    """A controller, the best of what it drew, and where the search stands; a step is an update."""

    loss_names = ("of the controller", "")
    epoch_name = "update"

    def __init__(
        self, run: Run, config: NasRlConfig, space: SearchSpace, accuracy: ScratchAccuracy, objective: Objective
    ) -> None:
        self.config, self.space, self.accuracy, self.objective = config, space, accuracy, objective
        self.controller = _controller(space, generator_of(config.seed, 0, WEIGHTS))
        super().__init__(
            run,
            self.controller,
            epoch_steps=1,
            epochs=config.updates,
            advice=f"start again with a lower --controller-lr (now {config.controller_lr:g})",
        )
        self.policy = PolicyGradient(
            self.controller,
            lr=config.controller_lr,
            betas=(0.9, 0.999),
            eps=1e-8,
            baseline_decay=config.baseline_decay,
            entropy_weight=config.entropy_weight,
            baseline_first=False,
        )
        self.best: list[Child] = []
        self.told: dict[str, Any] = {}  # of the last update
        self._said_at = time.monotonic()
        accuracy.on_result = self._hear

    def one_step(self) -> Losses:
        """Draw children, train them, and move the controller; returns its loss."""
        depth = self.config.depth(self.space, self.step)
        with torch.no_grad():
            tokens = self._draw(depth, generator=generator_of(self.config.seed, self.step, CHILDREN)).tokens
        archs = self.space.decode(self._population(tokens.numpy(), depth))
        top1 = self.accuracy(archs)
        rewards = self.objective(archs, top1) ** self.config.reward_power
        # scored anew: the graph of the draw would have waited for hours
        told = self.policy.step(self._draw(depth, tokens=tokens), torch.from_numpy(rewards))
        self._note_best(archs, top1, rewards)
        self.told = {**told, "top1": float(top1.mean()), **({} if depth is None else {"depth": depth})}
        return told["loss"], None

    def _hear(self, arch: ArchConfig, top1: float) -> None:
        """Say now and then how children do: an update may take hours."""
        if time.monotonic() - self._said_at > LOG_SECONDS:
            self._said_at = time.monotonic()
            say(f"a child of update {self.step + 1}: top-1 {top1:.4f}")

    def _draw(self, depth: int | None, **given: Any) -> Sampled:
        n = self.config.batch_children
        if depth is None:
            return self.controller(n, **given)
        return self.controller(n, layers=depth, **given)

    def _population(self, tokens: NDArray[np.int64], depth: int | None) -> NDArray[np.int16]:
        """Return the rows that sequences stand for, canonical."""
        if depth is not None:
            assert isinstance(self.space, ConvChainSpace)
            # a chain's tokens are its choices but for the first two, resolution and depth
            first = np.tile([0, self.space.depths.index(depth)], (len(tokens), 1))
            tokens = np.concatenate([first, tokens], 1)
        return self.space.canonical(tokens.astype(np.int16))

    def _note_best(self, archs: Sequence[ArchConfig], top1: NDArray[np.float64], rewards: NDArray[np.float64]) -> None:
        known = {tuple(child["values"]): child for child in self.best}
        for number, (arch, accuracy, reward) in enumerate(zip(archs, top1, rewards, strict=True), 1):
            child = self.step * self.config.batch_children + number
            fresh = {"reward": float(reward), "top1": float(accuracy), "child": child, "values": list(arch.values)}
            known.setdefault(arch.values, fresh)
        self.best = sorted(known.values(), key=lambda child: (-child["reward"], child["child"]))[:KEPT]

    # -- what is kept and noted ----------------------------------------------------------------------------------------

    def optimizers(self) -> Optimizers:
        return [("adam|", self.controller, self.policy.optimizer)]

    def state(self) -> dict[str, Any]:
        return {**super().state(), "baseline": self.policy.baseline, "best": self.best}

    def restore(self, checkpoint: Checkpoint) -> None:
        super().restore(checkpoint)
        state = checkpoint.state()
        self.policy.baseline, self.best = state["baseline"], list(state["best"])

    def facts(self, epoch: int, losses: Sequence[Losses]) -> dict[str, Any]:
        """Return what the last update drew: means over its children, and the best of all so far."""
        children = (epoch + 1) * self.config.batch_children
        return {"children": children, **self.told, "best_reward": self.best[0]["reward"], "best_top1": self.best[0]["top1"]}

    def last_seen(self) -> str:
        return f"top-1 {self.told['top1']:.4f}, best {self.best[0]['top1']:.4f}"


def train_commands(run: Run) -> list[str]:
    """Return the commands that train the best children further, as Zoph and Le did: one of them may be the best after all."""
    return [
        shlex.join(
            ["ofa", "train", "--arch", str(folder), "--data", run.data.source, "--out", f"{run.path}-trained{folder.name}"]
        )
        for folder in best_folders(run.path)
    ]


def _describe(data: str, config: NasRlConfig, resolution: int, validation_fraction: float, flip: bool | None) -> DataSource:
    """Load images once, to say which they are and how they are split and normalised; children load them again."""
    if not 0 < validation_fraction < 1:
        raise SearchError(f"validation_fraction is {validation_fraction!r}, expected a share between 0 and 1")
    images = load_images(data, "train", max_size=round(1.25 * resolution))
    train, _ = split_validation(images, fraction=validation_fraction, seed=config.seed)
    used = min(len(train), config.max_images or len(train))
    if used < config.batch_size:
        raise SearchError(f"{used} training images, fewer than batch_size {config.batch_size}; lower --batch-size")
    preprocess = Preprocessing.of(train, flip=data not in ORIENTED if flip is None else flip)
    return DataSource.of(data, images, preprocess, validation_fraction=validation_fraction, seed=config.seed)


def _controller(space: SearchSpace, generator: torch.Generator) -> Controller:
    if isinstance(space, ConvChainSpace):
        return ConvController(space.layers, strides=space.strides, generator=generator)
    return controller_of(space, generator=generator)


def _write(run: Run, space: SearchSpace, best: Sequence[Child]) -> None:
    """Write the best children, and the very best with a drawing: of its layers, its cells, or else its blocks."""
    archs = [ArchConfig(space.name, tuple(child["values"])) for child in best]
    write_best(run.path, space, archs)
    if isinstance(space, CellSpace):
        genotype = space.to_genotype(archs[0])
        write_found(run.path, str(genotype), tuple(cells_of(genotype)), space, archs[0])
        return
    if chain_of(space, archs[0]) is not None:
        write_chain(run.path / CHAIN, space, archs[0])
    else:
        write_network(run.path / NETWORK, space.blocks(archs[0]))
    write_json(run.path / "arch.json", space.to_json(archs[0]), sealed=True)
