"""The command line verb train-text: a language model of a recurrent cell."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ofa.cli import Resume
from ofa.cli_support import command

if TYPE_CHECKING:
    from ofa.language_model import Dropouts


@command
def train_text(
    arch: Annotated[
        str,
        typer.Argument(
            help="darts_rnn_v1, darts_rnn_v2, enas_rnn; a search's folder, arch.json or genotype.txt; an arc of ENAS."
        ),
    ],
    text: Annotated[Path, typer.Option(help="A text file, or a folder with train.txt, valid.txt and test.txt.")],
    out: Annotated[Path, typer.Option(help="Folder to write, e.g. runs/words.")],
    tokens: Annotated[str, typer.Option(help="What the text is made of: words or characters.")] = "words",
    max_vocabulary: Annotated[int, typer.Option(help="Tell apart only so many tokens, the most frequent; 0 = all.")] = 0,
    features: Annotated[int, typer.Option(help="Size of the embedding and of every state.")] = 850,
    epochs: Annotated[int, typer.Option(help="Passes over the text; published: 8000, which are meant for a GPU.")] = 100,
    batch_size: Annotated[int, typer.Option(help="Texts side by side.")] = 64,
    bptt: Annotated[int, typer.Option(help="Tokens that a gradient reaches back, on average.")] = 35,
    lr: Annotated[
        float, typer.Option(help="Learning rate of SGD; weights are averaged once validation stops to improve.")
    ] = 20.0,
    dropout: Annotated[
        float,
        typer.Option(
            help="Factor on all published dropouts (outputs 0.75, hidden states 0.25, inputs 0.75, embeddings 0.2, words 0.1): "
            "1 = as published, 0 = none; small models need less."
        ),
    ] = 1.0,
    weight_decay: Annotated[float, typer.Option(help="L2 penalty of all weights.")] = 8e-7,
    seed: Annotated[int, typer.Option(help="Everything random follows from it.")] = 0,
    resume: Annotated[Resume, typer.Option(help="auto: go on from the newest checkpoint in --out.")] = Resume.never,
    device: Annotated[str, typer.Option(help="auto (a GPU if there is one), cpu, cuda, ...")] = "auto",
) -> Path | None:
    """Train a language model of a recurrent cell, and measure its perplexity on text that it never saw.

    Example: ofa train-text darts_rnn_v2 --text words.txt --features 200 --epochs 20 --out runs/words

    `ofa nas darts --rnn`, `ofa nas enas --space rnn` and `ofa nas nas_rl --space rnn` find cells; `ofa export runs/words -o out/`
    writes one step of the model as ONNX.
    """
    from ofa.errors import OfaError
    from ofa.find_arch import find_genotype
    from ofa.genotype import RecurrentGenotype
    from ofa.training.language import LanguageConfig, train_language_model
    from ofa.tree_genotype import TreeGenotype

    genotype = find_genotype(arch)
    if not isinstance(genotype, RecurrentGenotype | TreeGenotype):
        raise OfaError(f"{arch}: is no recurrent cell but one for images; train it with: ofa train --arch {arch}")
    config = LanguageConfig(
        tokens=tokens,
        max_vocabulary=max_vocabulary,
        features=features,
        epochs=epochs,
        batch_size=batch_size,
        bptt=bptt,
        lr=lr,
        weight_decay=weight_decay,
        dropouts=scaled(LanguageConfig().dropouts, dropout),
        seed=seed,
    )
    train_language_model(genotype, text, out, config=config, resume=resume is Resume.auto, device=device)
    return None


def scaled(dropouts: Dropouts, factor: float) -> Dropouts:
    """Return dropouts of `factor` times the shares.

    Raises:
        OfaError: if one would be below 0, or 1 and more.
    """
    from dataclasses import asdict

    from ofa.errors import OfaError
    from ofa.language_model import Dropouts

    shares = asdict(dropouts)
    if not 0 <= factor * max(shares.values()) < 1:
        raise OfaError(
            f"--dropout {factor:g}: expected a factor of at least 0 and below {1 / max(shares.values()):.3g}; 1 = as published"
        )
    return Dropouts(**{name: factor * share for name, share in shares.items()})
