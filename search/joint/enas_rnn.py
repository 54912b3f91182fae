"""Search a recurrent cell on text with a controller and shared weights.

An epoch trains the shared weights on the training text, every step with a cell that the controller draws; then the controller
draws cells and is rewarded with c / perplexity of each on a piece of the validation text. In the end some cells are drawn, and
the one with the lowest perplexity on all of the validation text is found.

Source: Pham et al. 2018 (ENAS, arXiv 1802.03268), sections 2.1, 2.2 and 3.1. There, what is drawn in the end is measured on one
piece of text. As in the authors' code, what is rewarded starts without a hidden state, and without dropout.

nas/ranking.json    what was drawn in the end, best first
"""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ofa.artefacts import write_bytes, write_json
from ofa.formats.enas import format_arc
from ofa.formats.enas_rnn import rnn_arc
from ofa.genotype import RecurrentGenotype
from ofa.language_model import LanguageModel, haste, prediction_loss
from ofa.progress import say
from ofa.shared_cell import SharedCell
from ofa.space import ArchConfig
from ofa.spaces.enas_rnn import SPACE, EnasRecurrentSpace
from ofa.training.distributed import join
from ofa.training.text import batchify, load_text, piece
from ofa.training.text_loop import TextLoop, nats_a_token, open_or_create, perplexity_of, require_one_process
from search.cell_drawing import cells_of
from search.joint.controllers.policy_gradient import PolicyGradient
from search.joint.controllers.recurrent import RecurrentController
from search.joint.enas_rnn_config import EnasRnnConfig
from search.joint.record import ARC, DRAWING, FOLDER, GENOTYPE, SCHEMA, require_no_run, write_found

RANKING, RANKING_SCHEMA = "ranking.json", "ofa.nas_text_ranking/1"
CELLS, PIECES, LAST, DROPOUT = 0xE1, 0xE2, 0xE3, 0xE4  # what is drawn in a step


def search_enas_recurrent(
    text: Path | str,
    out: Path | str,
    *,
    config: EnasRnnConfig | None = None,
    resume: bool = False,
    device: str = "auto",
) -> RecurrentGenotype:
    """Search a cell on text and return it; `out` has genotype.txt, arc.txt, cells.svg and arch.json besides.

    Args:
        text: a file, or a folder with train.txt, valid.txt and test.txt (ofa.training.text.load_text); the test text is not
            looked at.
        out: folder to make.
        config: see search.joint.enas_rnn_config.configure_rnn.
        resume: go on from the newest checkpoint in `out`, if there is one.
        device: "auto", "cpu", "cuda", ...
    Raises:
        OfaError: for a bad argument, an unreadable text, an existing search (without `resume`), or a loss that is not finite.
    """
    config, out = config or EnasRnnConfig(), Path(out)
    require_no_run(out)
    corpus = load_text(text, kind=config.tokens, max_vocabulary=config.max_vocabulary)
    space = SPACE.with_numbers(nodes=config.nodes)
    with join(device) as world:
        require_one_process(world)
        torch.manual_seed(config.seed)
        cell = SharedCell(config.features, config.nodes, normalise=config.normalise, matrix_a_function=config.matrix_a_function)
        search = RecurrentEnas(out / FOLDER, LanguageModel(len(corpus.vocabulary), cell), corpus, config, world.device)
        settings = {"method": "enas_rnn", **asdict(config), "text_sha256": corpus.sha256}
        open_or_create(out / FOLDER, SCHEMA, settings, resume=resume)
        say(
            f"searching {space.name} ({space.size():.2g} cells) on {len(corpus.train)} {config.tokens} for weights and "
            f"{len(corpus.valid)} for the controller, {len(corpus.vocabulary)} of them different; {config.epochs} epochs, each "
            f"with {config.controller_steps} steps of the controller"
        )
        search.load()
        search.run()
        ranked = search.ranked()
    arch, genotype = ranked[0][0], space.to_genotype(ranked[0][0])
    rows = [{"arc": _arc(space, arch), "valid_perplexity": perplexity, "drawn": drawn} for arch, perplexity, drawn in ranked]
    write_json(out / FOLDER / RANKING, {"schema": RANKING_SCHEMA, "candidates": rows})
    write_bytes(out / ARC, f"{_arc(space, arch)}\n".encode())
    write_found(out, str(genotype), tuple(cells_of(genotype)), space, arch)
    say(
        f"cell: {out / GENOTYPE}, drawn in {out / DRAWING}; a search on text has no report\n"
        f"Its perplexity with shared weights, {ranked[0][1]:.2f}, is not that of the cell trained alone.\n"
        f"next: {shlex.join(['ofa', 'train-text', str(out), '--text', str(text), '--out', f'{out}-trained'])}"
    )
    return genotype


class RecurrentEnas(TextLoop):
    """Shared weights, a controller, and where their search stands."""

    doing = "searching"
    config: EnasRnnConfig

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        config = self.config
        self.space: EnasRecurrentSpace = SPACE.with_numbers(nodes=config.nodes)
        self.optimizer = torch.optim.SGD(self.net.parameters(), lr=config.lr, weight_decay=config.weight_decay)
        self.controller = RecurrentController(
            config.nodes, variant=config.variant, generator=torch.Generator().manual_seed(config.seed)
        )
        self.policy = PolicyGradient(
            self.controller,
            lr=config.controller_lr,
            baseline_decay=config.baseline_decay,
            entropy_weight=config.entropy_weight,
            initial_baseline=config.initial_baseline,
        )
        self.reward_text = batchify(self.corpus.valid, config.batch_size).to(self.device)
        self.told: list[tuple[float, float]] = []  # of this epoch's steps of the controller: reward, entropy
        self.best_reward = 0.0  # of any cell so far

    # -- steps ---------------------------------------------------------------------------------------------------------

    def one_step(self, tokens: Tensor, targets: Tensor) -> float:
        """One step of the weights that drawn cells share; the hidden state goes on from the last of the cells."""
        config = self.config
        self.net.train()
        self.optimizer.zero_grad(set_to_none=True)
        before, total = self.hidden, 0.0
        for number, cell in enumerate(self._draw(config.cells_a_step, CELLS)):
            output = self.net(tokens, before, cell, noise=self.noise(DROPOUT + number))
            self.hidden = output.hidden.detach()
            loss = prediction_loss(output, targets)
            ((loss + config.slowness * haste(output.states)) / config.cells_a_step).backward()
            total += float(loss.detach())
        if config.clip_norm:
            nn.utils.clip_grad_norm_(self.net.parameters(), config.clip_norm)
        for group in self.optimizer.param_groups:
            group["lr"] = config.learning_rate(self.epoch) * len(tokens) / config.bptt
        self.optimizer.step()
        return total / config.cells_a_step

    def more(self) -> str | None:
        """One step of the controller, if there is one left in this epoch."""
        if len(self.told) == self.config.controller_steps:
            return None
        sampled = self.controller(self.config.controller_samples, generator=self.generator(CELLS))
        rewards = self.rewards(self._cells(sampled.tokens))
        told = self.policy.step(sampled, rewards)
        self.told.append((told["reward"], told["entropy"]))
        self.best_reward = max(self.best_reward, float(rewards.max()))
        return f"reward {told['reward']:.4f}"

    @torch.no_grad()
    def rewards(self, cells: list[RecurrentGenotype]) -> Tensor:
        """Return c / perplexity of cells on one piece of the validation text, (cells,)."""
        config, rows = self.config, len(self.reward_text) - 1
        length = min(config.bptt, rows)
        start = int(torch.randint(rows - length + 1, (), generator=self.generator(PIECES)))
        tokens, targets = piece(self.reward_text, start, length)
        self.net.eval()
        nothing = self.net.no_text(config.batch_size)
        nats = [float(prediction_loss(self.net(tokens, nothing, cell), targets)) for cell in cells]
        return torch.tensor([config.reward_scale / perplexity_of(each) for each in nats])

    def ranked(self) -> list[tuple[ArchConfig, float, int]]:
        """Draw cells from the controller; returns point, validation perplexity and how often it was drawn, best first."""
        with torch.no_grad():
            tokens = self.controller(self.config.candidates, generator=self.generator(LAST)).tokens
        drawn = Counter(self.space.decode(tokens.numpy().astype(np.int16)))
        say(f"measuring {len(drawn)} cells of the controller on {len(self.corpus.valid)} {self.config.tokens}")
        found = []
        for arch, times in drawn.items():
            cell = self.space.to_genotype(arch)
            nats = nats_a_token(self.net, self.corpus.valid, batch=self.config.eval_batch_size, choice=cell)
            found.append((arch, perplexity_of(nats), times))
        return sorted(found, key=lambda each: each[1])

    def _draw(self, n: int, part: int) -> list[RecurrentGenotype]:
        with torch.no_grad():
            return self._cells(self.controller(n, generator=self.generator(part)).tokens)

    def _cells(self, tokens: Tensor) -> list[RecurrentGenotype]:
        return [self.space.to_genotype(arch) for arch in self.space.decode(tokens.numpy().astype(np.int16))]

    # -- what is noted and kept ----------------------------------------------------------------------------------------

    def look(self) -> tuple[dict[str, Any], float | None]:
        """Note the rewards of this epoch, their mean and the best so far, and where baseline and entropy stand."""
        reward, entropy = (float(np.mean(column)) for column in zip(*self.told, strict=True))
        self.told.clear()
        return {
            "reward": reward,
            "best_reward": self.best_reward,
            "baseline": self.policy.baseline,
            "entropy": entropy,
        }, None

    def state(self) -> tuple[Mapping[str, Tensor], dict[str, Tensor], dict[str, Any]]:
        """Return the shared weights; the controller and its optimiser's state besides."""
        tensors, facts = self.policy.state()
        return self.net.state_dict(), tensors, {**facts, "told": self.told, "best_reward": self.best_reward}

    def load_state(self, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> None:
        """Go on with the controller as it was."""
        self.policy.load_state(tensors, facts)
        self.told = [(float(reward), float(entropy)) for reward, entropy in facts["told"]]
        self.best_reward = float(facts["best_reward"])


def _arc(space: EnasRecurrentSpace, arch: ArchConfig) -> str:
    return format_arc(rnn_arc(space, arch))
