"""Search a recurrent cell on text by gradients: alphas learn from the validation text, weights from the training text.

Liu et al. 2019 (DARTS, arXiv 1806.09055), section 3.2 and appendix A.2. Where this differs from the published code: the masks of
dropout are the same in all passes of a step, as a difference between passes needs; alphas take their text in order, from the
beginning again when it ends; the step of order 2 moves the embedding with all other weights. There it stays where it was
(the copy of the network is filled first with the new weights, then, through the name of the classifier that is tied to it, with
the old embedding); `untied_unrolled_embedding` does the same.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ofa.artefacts import append_jsonl, write_bytes, write_json
from ofa.genotype import RecurrentGenotype
from ofa.language_model import LanguageModel, haste, prediction_loss
from ofa.mix_activations import OPERATIONS
from ofa.progress import say
from ofa.recurrent import NODES, MixedCell, num_edges
from ofa.spaces.darts_rnn import SPACE
from ofa.training.distributed import join
from ofa.training.optimizer import load_optimizer, optimizer_tensors
from ofa.training.text import batchify, load_text, piece
from ofa.training.text_loop import METRICS, TextLoop, nats_a_token, open_or_create, perplexity_of, require_one_process
from search.cell_drawing import cells_of, write_drawing
from search.joint.alpha_search import INITIAL_DEVIATION
from search.joint.architect import AlphaGradients, first_order, second_order, second_order_exact
from search.joint.derive import derive_recurrent
from search.joint.record import ALPHAS, DRAWING, FOLDER, GENOTYPE, SCHEMA, require_no_run
from search.joint.rnn_config import RecurrentSearchConfig

CELL = "recurrent"
EDGES = [(node, source) for node in range(1, NODES + 1) for source in range(node)]  # (to, from), rows of the alphas


def search_recurrent(
    text: Path | str,
    out: Path | str,
    *,
    config: RecurrentSearchConfig | None = None,
    resume: bool = False,
    device: str = "auto",
) -> RecurrentGenotype:
    """Search a cell on text and return it; `out` has genotype.txt, cells.svg and arch.json besides.

    Args:
        text: a file, or a folder with train.txt, valid.txt and test.txt (ofa.training.text.load_text); the test text is not
            looked at.
        out: folder to make.
        resume: go on from the newest checkpoint in `out`, if there is one.
        device: "auto", "cpu", "cuda", ...
    Raises:
        OfaError: for a bad argument, an unreadable text, an existing search (without `resume`), or a loss that is not finite.
    """
    config, out = config or RecurrentSearchConfig(), Path(out)
    require_no_run(out)
    corpus = load_text(text, kind=config.tokens, max_vocabulary=config.max_vocabulary)
    with join(device) as world:
        require_one_process(world)
        torch.manual_seed(config.seed)
        net = LanguageModel(len(corpus.vocabulary), MixedCell(config.features))
        search = RecurrentSearch(out / FOLDER, net, corpus, config, world.device)
        settings = {"method": "darts_rnn", **asdict(config), "operations": list(OPERATIONS), "edges": {CELL: EDGES}}
        open_or_create(out / FOLDER, SCHEMA, {**settings, "text_sha256": corpus.sha256}, resume=resume)
        say(
            f"searching {SPACE.name} ({SPACE.size():.2g} cells) on {len(corpus.train)} {config.tokens} for weights and "
            f"{len(corpus.valid)} for alphas, {len(corpus.vocabulary)} of them different; order {config.order}, "
            f"{config.epochs} epochs"
        )
        search.load()
        if search.step == 0:
            search.note_alphas()
        search.run()
        genotype = search.found()
    write_bytes(out / GENOTYPE, f"{genotype}\n".encode())
    write_drawing(out / DRAWING, cells_of(genotype))
    write_json(out / "arch.json", SPACE.to_json(SPACE.from_genotype(genotype)), sealed=True)
    say(
        f"cell: {out / GENOTYPE}, drawn in {out / DRAWING}; a search on text has no report\n"
        "The cell has no weights of its own yet, and its perplexity is not that of the search.\n"
        f"next: {shlex.join(['ofa', 'train-text', str(out), '--text', str(text), '--out', f'{out}-trained'])}"
    )
    return genotype


class RecurrentSearch(TextLoop):
    """The network of all operations, the alphas and their optimiser."""

    doing = "searching"
    lines = (METRICS, ALPHAS)
    config: RecurrentSearchConfig

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        config = self.config
        self.weights = list(self.net.parameters())
        self.optimizer = torch.optim.SGD(self.weights, lr=config.lr, weight_decay=config.weight_decay)
        first = torch.randn(num_edges(), len(OPERATIONS), generator=torch.Generator().manual_seed(config.seed))
        self.alphas = nn.ParameterDict({CELL: (INITIAL_DEVIATION * first).to(self.device)})
        self.alpha_optimizer = torch.optim.Adam(
            self.alphas.parameters(), lr=config.alpha_lr, weight_decay=config.alpha_weight_decay
        )
        self.alpha_text = batchify(self.corpus.valid, config.batch_size).to(self.device)
        self.alpha_hidden = self.net.no_text(config.batch_size)
        self.alpha_losses: list[float] = []  # of this epoch

    def probabilities(self) -> Tensor:
        """Return (edges, operations), with gradients to the alphas."""
        return self.alphas[CELL].softmax(-1)

    def found(self) -> RecurrentGenotype:
        """Return the cell that the alphas decide for as they are now."""
        return derive_recurrent(self.probabilities())

    def one_step(self, tokens: Tensor, targets: Tensor) -> float:
        """One step of the alphas on their text, and one of the weights."""
        config = self.config
        lr = config.lr * len(tokens) / config.bptt
        self.net.train()
        gradients = self._alpha_gradients(tokens, targets, lr)
        self.alphas[CELL].grad = gradients.gradients[0]
        self.alpha_optimizer.step()
        self.alpha_losses.append(float(gradients.loss))
        output = self.net(tokens, self.hidden, self.probabilities().detach(), noise=self.noise())
        self.hidden = output.hidden.detach()
        self.optimizer.zero_grad(set_to_none=True)
        loss = prediction_loss(output, targets)
        (loss + config.slowness * haste(output.states)).backward()
        if config.clip_norm:
            nn.utils.clip_grad_norm_(self.weights, config.clip_norm)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.optimizer.step()
        # a step on alphas that are not finite shows in the next loss, which might be after a checkpoint
        return float(loss.detach()) + 0.0 * float(self.alphas[CELL].detach().sum())

    def _alpha_gradients(self, tokens: Tensor, targets: Tensor, lr: float) -> AlphaGradients:
        config, alphas = self.config, list(self.alphas.values())
        rows = len(self.alpha_text) - 1
        window = self.step % max(1, rows // config.bptt)
        if window == 0:
            self.alpha_hidden = self.net.no_text(config.batch_size)
        other = piece(self.alpha_text, window * config.bptt, min(config.bptt, rows))

        def train_loss() -> Tensor:
            return prediction_loss(self.net(tokens, self.hidden, self.probabilities(), noise=self.noise()), targets)

        def valid_loss() -> Tensor:
            output = self.net(other[0], self.alpha_hidden, self.probabilities(), noise=self.noise(1))
            self.alpha_hidden = output.hidden.detach()
            return prediction_loss(output, other[1])

        if config.order == "1":
            return first_order(valid_loss, alphas)
        differentiate = second_order if config.order == "2" else second_order_exact
        return differentiate(
            train_loss,
            valid_loss,
            self.weights,
            alphas,
            eta=lr,
            weight_decay=config.weight_decay,
            clip=config.clip_norm or None,
            unmoved=[self.net.embedding] if config.untied_unrolled_embedding else (),
        )

    # -- what is noted and kept ----------------------------------------------------------------------------------------

    def look(self) -> tuple[dict[str, Any], float | None]:
        """Measure the network of all operations on the text that alphas learn from: not what is derived from it, nor unseen."""
        loss = nats_a_token(self.net, self.corpus.valid, batch=self.config.eval_batch_size, choice=self.probabilities().detach())
        found = {"alpha_loss": float(np.mean(self.alpha_losses)), "valid_perplexity": perplexity_of(loss)}
        self.alpha_losses.clear()
        self.note_alphas()
        return found, None

    def note_alphas(self) -> None:
        """Write where the alphas stand."""
        rows = [[round(p, 5) for p in row] for row in self.probabilities().tolist()]
        record = {"step": self.step, "epoch": self.epoch, "skips": {}, "genotype": str(self.found())}
        append_jsonl(self.folder / ALPHAS, record | {"probabilities": {CELL: rows}})

    def state(self) -> tuple[Mapping[str, Tensor], dict[str, Tensor], dict[str, Any]]:
        """Return the weights; the alphas and their optimiser's state besides."""
        adam = {f"adam|{name}": value for name, value in optimizer_tensors(self.alphas, self.alpha_optimizer).items()}
        tensors = {f"alphas|{CELL}": self.alphas[CELL].detach(), "alpha_hidden": self.alpha_hidden, **adam}
        return self.net.state_dict(), tensors, {"alpha_losses": self.alpha_losses}

    def load_state(self, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> None:
        """Go on with the alphas as they were."""
        with torch.no_grad():
            self.alphas[CELL].copy_(tensors[f"alphas|{CELL}"])
        self.alpha_hidden = tensors["alpha_hidden"].to(self.device)
        self.alpha_losses = [float(loss) for loss in facts["alpha_losses"]]
        adam = {name.removeprefix("adam|"): value for name, value in tensors.items() if name.startswith("adam|")}
        load_optimizer(self.alphas, self.alpha_optimizer, adam)
