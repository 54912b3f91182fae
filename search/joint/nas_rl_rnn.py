"""Search a recurrent cell on text with reinforcement learning: a controller draws trees, each is trained from scratch.

The reward of a cell is c / perplexity^2 on the validation text. Source: Zoph and Le 2016 (arXiv 1611.01578), sections 3.2, 3.4
and 4.2. Deviations: one controller, which waits for all children of an update, instead of 400 copies of it, so that a search can
be repeated; a child is one cell instead of two on top of each other.

nas/config.json, nas/metrics.jsonl (a line an update), nas/step_NNNNNN/     as of other searches (search.joint.record)
nas/best/1/arch.json, ...                                                   the best children, 1 = arch.json of the search
nas/trials.jsonl                                                            every child's score (search.journal, scratch_text)
"""

from __future__ import annotations

import math
import shlex
import time
from dataclasses import asdict, fields
from pathlib import Path

import numpy as np
import torch

from ofa.artefacts import append_jsonl, forget_after, write_bytes, write_json
from ofa.progress import progress, say, stop_after_step
from ofa.space import ArchConfig
from ofa.spaces.nas_rl_rnn import SPACE, TreeSpace
from ofa.training.checkpoint import list_checkpoints, load_training, newest_checkpoint, save_checkpoint
from ofa.training.distributed import join
from ofa.training.language import LanguageConfig
from ofa.training.text import batchify, load_text
from ofa.training.text_config import TextConfig
from ofa.training.text_loop import METRICS, open_or_create, perplexity_of, require_one_process
from ofa.tree_genotype import TreeGenotype
from search.engine import Engine
from search.joint.best import BEST, KEPT, write_best
from search.joint.controllers.policy_gradient import PolicyGradient
from search.joint.controllers.sequences import generator_of
from search.joint.controllers.tree import TreeController
from search.joint.nas_rl_rnn_config import NasRlRnnConfig
from search.joint.record import DRAWING, FOLDER, GENOTYPE, SCHEMA, require_no_run
from search.scratch_text import TextScratch
from search.tree_drawing import write_tree

TRIALS = "trials.jsonl"
WEIGHTS, CHILDREN = 0x51, 0x52  # what is drawn from the seed and a step


def search_tree(
    text: Path | str,
    out: Path | str,
    *,
    config: NasRlRnnConfig | None = None,
    resume: bool = False,
    engine: Engine | str | None = None,
    device: str = "auto",
) -> TreeGenotype:
    """Search a cell on text and return it; `out` has genotype.txt, cells.svg and arch.json besides.

    Args:
        text: a file, or a folder with train.txt, valid.txt and test.txt (ofa.training.text.load_text); the test text is not
            looked at.
        out: folder to make.
        resume: go on from the newest checkpoint in `out`, if there is one. No child that was trained is trained again.
        engine: where children are trained (search.engine), e.g. "joblib:2" for two at a time.
        device: "auto", "cpu", "cuda", ... of each worker.
    Raises:
        OfaError: for a bad argument, an unreadable text, an existing search (without `resume`), or if no child can be trained.
    """
    config, out = config or NasRlRnnConfig(), Path(out)
    with join("cpu") as world:  # children are trained on `device`, maybe by other machines
        require_one_process(world)
    require_no_run(out)
    corpus = load_text(text, kind=config.tokens, max_vocabulary=config.max_vocabulary)
    for stream, batch in ((corpus.train, config.batch_size), (corpus.valid, config.eval_batch_size)):
        batchify(stream, batch)  # raises before anything is written
    space = SPACE.with_numbers(base=config.base)
    child = LanguageConfig(**{setting.name: getattr(config, setting.name) for setting in fields(TextConfig)})
    opened = engine if isinstance(engine, Engine) else Engine(engine)
    settings = {"method": "nas_rl_rnn", **asdict(config), "text_sha256": corpus.sha256}
    try:
        open_or_create(out / FOLDER, SCHEMA, settings, resume=resume)
        scratch = TextScratch(space, text, corpus, child, out / FOLDER / TRIALS, engine=opened, device=device)
        search = TreeSearch(out / FOLDER, space, scratch, config)
        say(
            f"searching {space.name} ({float(space.size()):.2g} cells) on {len(corpus.train)} {config.tokens}, "
            f"{len(corpus.vocabulary)} of them different: {config.children} children of {config.epochs} epochs, "
            f"{config.batch_children} to an update, {opened.text}"
        )
        search.load()
        search.run()
    finally:
        if opened is not engine:
            opened.close()
    return _write(text, out, space, search.best)


class TreeSearch:
    """A controller, the best of what it drew, and where the search stands; a step is an update."""

    def __init__(self, folder: Path, space: TreeSpace, scratch: TextScratch, config: NasRlRnnConfig) -> None:
        self.folder, self.space, self.scratch, self.config = folder, space, scratch, config
        self.controller = TreeController(space.base, generator=generator_of(config.seed, 0, WEIGHTS))
        self.policy = PolicyGradient(
            self.controller,
            lr=config.controller_lr,
            betas=(0.9, 0.999),
            eps=1e-8,
            baseline_decay=config.baseline_decay,
            entropy_weight=0.0,
            baseline_first=False,
        )
        self.step = 0  # updates done
        self.best: list[tuple[float, ArchConfig]] = []  # score and child, best first

    def update(self) -> dict[str, float]:
        """Draw children, train them, and move the controller; returns what to note."""
        drawn = self.config.batch_children
        with torch.no_grad():
            tokens = self.controller(drawn, generator=generator_of(self.config.seed, self.step, CHILDREN)).tokens
        archs = self.space.decode(tokens.numpy().astype(np.int16))
        scores = self.scratch(archs).tolist()
        # scored anew: the graph of the draw would have waited for hours
        told = self.policy.step(self.controller(tokens=tokens), torch.tensor([self.reward(score) for score in scores]))
        known = {arch: score for score, arch in self.best} | dict(zip(archs, scores, strict=True))
        self.best = sorted(((score, arch) for arch, score in known.items()), key=lambda each: -each[0])[:KEPT]
        return {
            "reward": told["reward"],
            "best_reward": self.reward(self.best[0][0]),
            "baseline": told["baseline"],
            "entropy": told["entropy"],
            "perplexity": perplexity_of(-float(np.mean(scores))),  # the geometric mean: one child that guesses hides no other
            "best_perplexity": perplexity_of(-self.best[0][0]),
        }

    def reward(self, score: float) -> float:
        """Return c / perplexity^2; `score` is minus the nats a token."""
        return self.config.reward_scale * math.exp(2 * max(score, -350.0))

    def run(self) -> None:
        """Run all updates that are left; stopped in between, what is trained already is in the journal."""
        config, began = self.config, time.monotonic()
        done = self.step * config.batch_children
        with progress("searching", config.children, done=done) as advance, stop_after_step() as stop:
            self.scratch.on_result = lambda _, score: advance(0, note=f"perplexity {perplexity_of(-score):.1f}")
            while self.step < config.updates:
                record = self.update()
                self.step += 1
                children = self.step * config.batch_children
                line = {"step": self.step, "children": children, **record, "seconds": round(time.monotonic() - began, 1)}
                append_jsonl(self.folder / METRICS, line)
                self.save()
                advance(config.batch_children)
                if stop() and self.step < config.updates:
                    raise KeyboardInterrupt

    def save(self) -> None:
        """Write a checkpoint: the controller is all that learns."""
        tensors, facts = self.policy.state()
        best = [[score, list(arch.values)] for score, arch in self.best]
        save_checkpoint(self.folder, {}, self.step, training=tensors, extra=facts | {"best": best})

    def load(self) -> None:
        """Go on from the newest checkpoint, if there is one, and forget what was noted after it."""
        if not list_checkpoints(self.folder):
            (self.folder / METRICS).unlink(missing_ok=True)
            return
        checkpoint = newest_checkpoint(self.folder)
        facts = checkpoint.state()
        self.policy.load_state(load_training(checkpoint), facts)
        self.step = checkpoint.step
        self.best = [(float(score), ArchConfig(self.space.name, tuple(values))) for score, values in facts["best"]]
        forget_after(self.folder / METRICS, self.step)


def _write(text: Path | str, out: Path, space: TreeSpace, best: list[tuple[float, ArchConfig]]) -> TreeGenotype:
    """Write what was found, and say what is next."""
    write_best(out, space, [arch for _, arch in best])
    score, arch = best[0]
    genotype = space.to_genotype(arch)
    write_bytes(out / GENOTYPE, f"{genotype}\n".encode())
    write_tree(out / DRAWING, genotype)
    write_json(out / "arch.json", space.to_json(arch), sealed=True)
    say(
        f"cell: {out / GENOTYPE}, drawn in {out / DRAWING}; a search on text has no report\n"
        f"Its validation perplexity after the search's epochs is {perplexity_of(-score):.2f}, the lowest of many: train the best "
        f"few longer, {out / FOLDER / BEST}, and keep the one that is best then."
    )
    say(f"next: {shlex.join(['ofa', 'train-text', str(out), '--text', str(text), '--out', f'{out}-trained'])}")
    return genotype
