"""Recurrent cells that searches found against random cells of the same space: trained alike on text, measured on its test part.

    python benchmarks/derived_text_cells.py --text TEXT --space enas_rnn --found enas=runs/enas_rnn --out runs/vs_enas_rnn

Every cell is trained from scratch with the same settings; what was trained before is not trained again. TEXT is a folder with
train.txt, valid.txt and test.txt; benchmarks/darts_rnn.py makes one of WikiText-2.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
import torch

from benchmarks.darts_rnn import DROPOUTS, VOCABULARY
from ofa.errors import OfaError
from ofa.find_arch import find_genotype
from ofa.genotype import RecurrentGenotype
from ofa.recurrent_space import RecurrentSpace
from ofa.spaces import get_space
from ofa.training.language import LanguageConfig, train_language_model
from ofa.tree_genotype import TreeGenotype


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--text", type=Path, default=Path("runs/darts_rnn/text"))
    parser.add_argument("--space", default="enas_rnn")
    parser.add_argument(
        "--found", action="append", default=[], metavar="NAME=CELL", help="the folder of a search, or a published cell"
    )
    parser.add_argument("--random", type=int, default=8, help="random cells")
    parser.add_argument("--features", type=int, default=64)
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--lr", type=float, default=20.0)
    parser.add_argument("--out", type=Path, default=Path("runs/derived_text_cells"))
    given = parser.parse_args()
    torch.set_num_threads(1)  # beside others, threads wait for each other

    space = get_space(given.space)
    assert isinstance(space, RecurrentSpace)
    cells: dict[str, RecurrentGenotype | TreeGenotype] = {}
    for name, _, word in (f.partition("=") for f in given.found):
        found = find_genotype(word)
        assert isinstance(found, RecurrentGenotype | TreeGenotype), f"{word}: no recurrent cell"
        cells[name] = found
    drawn = space.decode(space.sample(np.random.default_rng(0), given.random))
    cells |= {f"random_{i}": space.to_genotype(arch) for i, arch in enumerate(drawn)}
    config = LanguageConfig(
        features=given.features, batch_size=32, epochs=given.epochs, lr=given.lr, max_vocabulary=VOCABULARY, dropouts=DROPOUTS
    )
    print(f"{'cell':12} {'weights':>9} {'valid':>8} {'test':>8}  perplexity")
    for name, cell in cells.items():
        began = time.monotonic()
        try:
            result = train_language_model(cell, given.text, given.out / name, config=config, resume=True)
        except OfaError as error:  # a cell may not survive a rate that others do: that is a result too
            print(f"{name:12} {error}", flush=True)
            continue
        figures = f"{result.parameters:9,} {result.valid_perplexity:8.2f} {result.test_perplexity:8.2f}"
        print(f"{name:12} {figures}  {time.monotonic() - began:.0f} s", flush=True)


if __name__ == "__main__":
    main()
