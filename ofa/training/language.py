"""Train a language model of a recurrent cell, and measure its perplexity on text that nothing was chosen by.

SGD first; once validation has not improved for some epochs, the mean of the weights of all steps from then on is what is used
(averaged SGD). Source: Merity et al. 2018 (arXiv 1708.02182), sections 2 to 4, as in Liu et al. 2019 (DARTS, arXiv 1806.09055),
appendix A.4. Where the published code goes back to the best weights after a loss that is not finite, this stops and says so.

config.json metrics.jsonl vocabulary.json genotype.txt arch.json step_NNNNNN/ result.json
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ofa.artefacts import ArtefactError, read_json, write_bytes, write_json
from ofa.genotype import RecurrentGenotype
from ofa.language_model import LanguageModel, build_cell, haste, prediction_loss
from ofa.progress import say
from ofa.recurrent_spaces import find_point
from ofa.training.checkpoint import best_checkpoint, load_weights
from ofa.training.distributed import join
from ofa.training.text import Corpus, Vocabulary, batchify, load_text
from ofa.training.text_config import TextConfig
from ofa.training.text_loop import TextLoop, nats_a_token, open_or_create, perplexity_of, require_one_process
from ofa.tree_genotype import TreeGenotype, parse_text_cell

SCHEMA, VOCABULARY_SCHEMA, RESULT_SCHEMA = "ofa.language/1", "ofa.vocabulary/1", "ofa.language_result/1"


@dataclass(frozen=True, slots=True, kw_only=True)
class LanguageConfig(TextConfig):
    """How to train a language model; defaults are those of Penn Treebank, for WikiText-2 see DARTS, appendix A.4."""

    nonmono: int = 5  # epochs without improvement after which weights are averaged


@dataclass(frozen=True, slots=True)
class LanguageResult:
    """What came of it, at the epoch with the lowest validation loss."""

    valid_perplexity: float
    test_perplexity: float
    epoch: int
    parameters: int
    vocabulary: int


def train_language_model(
    genotype: RecurrentGenotype | TreeGenotype,
    text: Path | str,
    out: Path | str,
    *,
    config: LanguageConfig | None = None,
    resume: bool = False,
    device: str = "auto",
) -> LanguageResult:
    """Train the language model of a cell on text and measure it.

    Args:
        text: a file, or a folder with train.txt, valid.txt and test.txt (ofa.training.text.load_text).
        out: folder to make.
        resume: go on from the newest checkpoint in `out`, if there is one.
        device: "auto", "cpu", "cuda", ...
    Raises:
        OfaError: for a bad argument, an unreadable text, an existing folder (without `resume`), or a loss that is not finite.
    """
    config, out = config or LanguageConfig(), Path(out)
    corpus = load_text(text, kind=config.tokens, max_vocabulary=config.max_vocabulary)
    with join(device) as world:
        require_one_process(world)
        torch.manual_seed(config.seed)
        net = LanguageModel(len(corpus.vocabulary), build_cell(genotype, config.features))
        trainer = LanguageTrainer(out, net, corpus, config, world.device)
        settings = {**asdict(config), "genotype": str(genotype), "text_sha256": corpus.sha256}
        open_or_create(out, SCHEMA, settings, resume=resume)
        _describe(out, genotype, corpus.vocabulary)
        parameters = sum(p.numel() for p in net.parameters())
        say(
            f"training a language model of {parameters / 1e6:.2f} M weights on {len(corpus.train)} {config.tokens}, "
            f"{len(corpus.vocabulary)} of them different; {config.epochs} epochs"
        )
        trainer.load()
        trainer.run()
        result = measure(out, net, corpus, config)
    say(f"{out}: validation perplexity {result.valid_perplexity:.2f}, test {result.test_perplexity:.2f} (epoch {result.epoch})")
    return result


def measure(folder: Path, net: LanguageModel, corpus: Corpus, config: TextConfig) -> LanguageResult:
    """Load the best weights into the network, measure them on validation and test text, and write result.json."""
    best = best_checkpoint(folder)
    if best is None:
        raise ArtefactError(f"{folder}: no checkpoint with a validation loss inside; train first")
    load_weights(best, net)
    valid, test = (nats_a_token(net, stream, batch=config.eval_batch_size) for stream in (corpus.valid, corpus.test))
    result = LanguageResult(
        perplexity_of(valid),
        perplexity_of(test),
        int(best.state()["epoch"]),
        sum(p.numel() for p in net.parameters()),
        len(corpus.vocabulary),
    )
    write_json(folder / "result.json", {"schema": RESULT_SCHEMA, **asdict(result)}, sealed=True)
    return result


def load_language_model(folder: Path | str) -> tuple[LanguageModel, Vocabulary]:
    """Read the model with the lowest validation loss, in eval mode on the CPU, and the tokens that its numbers stand for.

    Raises:
        ArtefactError: if the folder holds none, or is damaged.
    """
    folder = Path(folder)
    config = read_json(folder / "config.json", schema=SCHEMA)
    tokens = read_json(folder / "vocabulary.json", schema=VOCABULARY_SCHEMA)
    best = best_checkpoint(folder)
    if best is None:
        raise ArtefactError(
            f"{folder}: holds no trained language model; train one: ofa train-text ARCH --text FILE --out {folder}"
        )
    try:
        genotype = parse_text_cell(str(config["genotype"]))
        vocabulary = Vocabulary(tuple(map(str, tokens["tokens"])), str(tokens["kind"]))
        net = LanguageModel(len(vocabulary), build_cell(genotype, int(config["features"]))).eval()
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise ArtefactError(f"{folder}: damaged ({type(error).__name__}: {str(error)[:100]}); train it again") from None
    load_weights(best, net)
    return net, vocabulary


class LanguageTrainer(TextLoop):
    """Training of one cell."""

    config: LanguageConfig

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        batchify(self.corpus.test, self.config.eval_batch_size)  # raises before anything is written
        self.optimizer = torch.optim.SGD(self.net.parameters(), lr=self.config.lr, weight_decay=self.config.weight_decay)
        self.averages: dict[str, Tensor] | None = None
        self.averaged = 0  # steps in the averages
        self.history: list[float] = []  # validation losses, epoch by epoch

    def one_step(self, tokens: Tensor, targets: Tensor) -> float:
        """One step of SGD on the loss with dropout."""
        self.net.train()
        output = self.net(tokens, self.hidden, noise=self.noise())
        self.hidden = output.hidden.detach()
        self.optimizer.zero_grad(set_to_none=True)
        loss = prediction_loss(output, targets)
        (loss + self.config.slowness * haste(output.states)).backward()
        if self.config.clip_norm:
            nn.utils.clip_grad_norm_(self.net.parameters(), self.config.clip_norm)
        for group in self.optimizer.param_groups:
            group["lr"] = self.config.lr * len(tokens) / self.config.bptt
        self.optimizer.step()
        if self.averages is not None:
            self.averaged += 1
            ours = [p.detach() for p in self.net.parameters()]
            torch._foreach_lerp_(list(self.averages.values()), ours, 1 / self.averaged)
        return float(loss.detach())

    def look(self) -> tuple[dict[str, Any], float]:
        """Measure the weights to use on validation text, and begin to average if that no longer improves."""
        averaging = self.averages is not None
        self._swap()
        loss = nats_a_token(self.net, self.corpus.valid, batch=self.config.eval_batch_size)
        self._swap()
        before = self.history[: -self.config.nonmono]
        if not averaging and before and loss > min(before):
            self.averages = {name: p.detach().clone() for name, p in self.net.named_parameters()}
            say(f"validation has not improved for {self.config.nonmono} epochs: weights are averaged from here on")
        self.history.append(loss)
        return {"valid_loss": loss, "valid_perplexity": perplexity_of(loss), "averaging": averaging}, -loss

    def state(self) -> tuple[Mapping[str, Tensor], dict[str, Tensor], dict[str, Any]]:
        """Return the averages as the weights to use, once there are some, and then the weights themselves besides."""
        facts = {"averaged": self.averaged, "averaging": self.averages is not None, "history": self.history}
        if self.averages is None:
            return self.net.state_dict(), {}, facts
        weights = {f"weights|{name}": p.detach() for name, p in self.net.named_parameters()}
        return self.averages, weights, facts

    def load_state(self, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> None:
        """Go on averaging where that had begun."""
        self.history, self.averaged = [float(loss) for loss in facts["history"]], int(facts["averaged"])
        if facts["averaging"]:
            self.averages = {name: p.detach().clone() for name, p in self.net.named_parameters()}
            with torch.no_grad():
                for name, parameter in self.net.named_parameters():
                    parameter.copy_(tensors[f"weights|{name}"])

    @torch.no_grad()
    def _swap(self) -> None:
        """Exchange the weights and their averages, if there are some."""
        if self.averages is None:
            return
        for name, parameter in self.net.named_parameters():
            kept = parameter.detach().clone()
            parameter.copy_(self.averages[name])
            self.averages[name].copy_(kept)


def _describe(out: Path, genotype: RecurrentGenotype | TreeGenotype, vocabulary: Vocabulary) -> None:
    """Write which cell and which tokens, and arch.json if the cell is one of a space."""
    tokens = {"schema": VOCABULARY_SCHEMA, "kind": vocabulary.kind, "tokens": list(vocabulary.tokens)}
    write_json(out / "vocabulary.json", tokens, sealed=True)
    write_bytes(out / "genotype.txt", f"{genotype}\n".encode())
    found = find_point(genotype)
    if found is not None:
        space, arch = found
        write_json(out / "arch.json", space.to_json(arch), sealed=True)
