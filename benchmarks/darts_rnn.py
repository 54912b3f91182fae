"""A whole search of a recurrent cell on text: what it finds against random cells and the published one, trained alike.

    OMP_NUM_THREADS=1 python benchmarks/darts_rnn.py [--data ../shared/data] [--out runs/darts_rnn] [--random 3] [--seeds 1]

Text: WikiText-2's validation text (0.2 M words), its first 90 % of lines for training, the others for validation; its test text
for nothing but the numbers below. The 5,000 most frequent words of the training text are told apart. The search is of first
order. Every cell is trained with the same settings and seeds, for the same epochs. What is done is not done again: start it
again to go on. Prints a table; results.json has it too.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np

from ofa.artefacts import read_json, write_bytes, write_json
from ofa.genotype import RecurrentGenotype, parse_genotype
from ofa.genotypes import get_genotype
from ofa.language_model import Dropouts
from ofa.spaces.darts_rnn import SPACE
from ofa.training.language import LanguageConfig, train_language_model
from search.joint.darts_rnn import search_recurrent
from search.joint.rnn_config import RecurrentSearchConfig

SCHEMA, COST_SCHEMA = "ofa.benchmark_darts_rnn/1", "ofa.benchmark_cost/1"
VOCABULARY = 5_000
# small networks that see little text: less is dropped than in the published settings, and a search of 64 features, whose states
# BatchNorm makes large, does not learn at the published rate of 20
DROPOUTS = Dropouts(outputs=0.4, hidden=0.13, inputs=0.4, embeddings=0.1, words=0.05)
SEARCH = RecurrentSearchConfig(
    features=64,
    batch_size=32,
    epochs=10,
    max_vocabulary=VOCABULARY,
    lr=5.0,
    dropouts=Dropouts(outputs=0.1, hidden=0.03, inputs=0.1, embeddings=0.03, words=0.0),
)
TRAIN = LanguageConfig(features=128, batch_size=32, epochs=12, max_vocabulary=VOCABULARY, dropouts=DROPOUTS)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path(__file__).parents[2] / "shared" / "data")
    parser.add_argument("--out", type=Path, default=Path("runs/darts_rnn"))
    parser.add_argument("--random", type=int, default=3, help="random cells of the same space")
    parser.add_argument("--seeds", type=int, default=1, help="trainings of each cell")
    args = parser.parse_args()
    text = args.out / "text"
    split_text(args.data, text)
    began = time.monotonic()
    found = search_recurrent(text, args.out / "search", config=SEARCH, resume=True)
    seconds = note_cost(args.out / "search" / "cost.json", time.monotonic() - began)
    cells: dict[str, RecurrentGenotype] = {"found": found}
    published = get_genotype("darts_rnn_v2")
    assert isinstance(published, RecurrentGenotype)
    population = SPACE.sample(np.random.default_rng(0), args.random)
    cells |= {f"random {i}": SPACE.to_genotype(arch) for i, arch in enumerate(SPACE.decode(population), 1)}
    cells["darts_rnn_v2"] = published
    rows = []
    for seed in range(args.seeds):
        for name, genotype in cells.items():
            config = replace(TRAIN, seed=seed)
            result = train_language_model(
                genotype, text, args.out / f"{name.replace(' ', '_')}_{seed}", config=config, resume=True
            )
            rows.append({"cell": name, "seed": seed, "genotype": str(parse_genotype(str(genotype))), **asdict(result)})
            write_json(args.out / "results.json", {"schema": SCHEMA, "search_seconds": seconds, "rows": rows})
            print(
                f"| {name} | {seed} | {result.valid_perplexity:.2f} | {result.test_perplexity:.2f} | {result.epoch} |", flush=True
            )
    report(rows, seconds)


def split_text(data: Path, folder: Path) -> None:
    """Write train.txt, valid.txt and test.txt."""
    lines = (data / "wikitext2_valid.txt").read_bytes().splitlines(keepends=True)
    cut = len(lines) * 9 // 10
    write_bytes(folder / "train.txt", b"".join(lines[:cut]))
    write_bytes(folder / "valid.txt", b"".join(lines[cut:]))
    write_bytes(folder / "test.txt", (data / "wikitext2_test.txt").read_bytes())


def note_cost(path: Path, seconds: float) -> float:
    """Return the seconds of the search: of the first time that it ran to its end, not of finding it done."""
    if not path.exists():
        write_json(path, {"schema": COST_SCHEMA, "seconds": round(seconds, 1)})
    return float(read_json(path, schema=COST_SCHEMA)["seconds"])


def report(rows: list[dict[str, object]], seconds: float) -> None:
    """Print a table: perplexity of each cell, mean and range over seeds."""
    print(f"\nsearch: {seconds / 60:.1f} minutes\n\n| cell | valid perplexity | test perplexity |\n|---|---|---|")
    for name in dict.fromkeys(str(row["cell"]) for row in rows):
        of_cell = [row for row in rows if row["cell"] == name]
        print(f"| {name} | {spread(of_cell, 'valid_perplexity')} | {spread(of_cell, 'test_perplexity')} |")


def spread(rows: list[dict[str, object]], key: str) -> str:
    values = [float(str(row[key])) for row in rows]
    return f"{np.mean(values):.2f}" + (f" ({min(values):.2f} to {max(values):.2f})" if len(values) > 1 else "")


if __name__ == "__main__":
    main()
