"""Text as streams of numbered tokens: words or characters, with a token for the end of each line.

The vocabulary is that of the training text alone: what the model has never seen is one token, `<unk>`, in the other texts.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ofa.artefacts import read_bounded
from ofa.errors import OfaError

END, UNKNOWN = "<eos>", "<unk>"
KINDS = ("words", "characters")
SPLITS = ("train", "valid", "test")
SHARES = (0.8, 0.1)  # of the lines of a single file: training, validation; the rest is the test text
MAX_TEXT_BYTES = 2**30
MIN_LENGTH, DELTA = 5, 20  # tokens: shortest piece, and what the longest exceeds the mean length by
DEVIATION, HALF = 5.0, 0.05  # of lengths; share of pieces of half the length


class TextError(OfaError):
    """A text cannot be read, or is too short."""


@dataclass(frozen=True)
class Vocabulary:
    """Tokens by number; the most frequent first."""

    tokens: tuple[str, ...]
    kind: str = "words"

    def __len__(self) -> int:
        return len(self.tokens)

    @cached_property
    def number(self) -> dict[str, int]:
        return {token: i for i, token in enumerate(self.tokens)}

    def encode(self, lines: Iterable[str]) -> Tensor:
        """Return the numbers of all tokens of some lines, (tokens,), an end after each line."""
        number, unknown = self.number, self.number[UNKNOWN]
        return torch.tensor([number.get(token, unknown) for token in _tokens(lines, self.kind)], dtype=torch.long)


@dataclass(frozen=True)
class Corpus:
    """Three texts, of which none is part of another, as streams of numbers, (tokens,) each."""

    vocabulary: Vocabulary
    train: Tensor
    valid: Tensor
    test: Tensor
    sha256: str  # of the texts, in this order


def load_text(path: Path | str, *, kind: str = "words", max_vocabulary: int = 0) -> Corpus:
    """Read a UTF-8 text file, split by lines into 80 % training, 10 % validation and 10 % test text, or a folder with all three.

    Args:
        path: a file, or a folder with train.txt, valid.txt and test.txt.
        kind: "words", what stands between white space, or "characters".
        max_vocabulary: most tokens to tell apart, the most frequent of the training text; 0 = all of them.
    Raises:
        TextError: if a text is not there, not UTF-8, empty, or the arguments make no sense.
    """
    if kind not in KINDS:
        raise TextError(f"unknown kind of tokens {kind!r}; known: {', '.join(KINDS)}")
    if max_vocabulary < 0 or 0 < max_vocabulary < 3:
        raise TextError(f"max_vocabulary is {max_vocabulary}, expected 0 for all tokens, or at least 3")
    lines = _read_texts(Path(path))
    vocabulary = _vocabulary(lines[0], kind, max_vocabulary)
    train, valid, test = (vocabulary.encode(part) for part in lines)
    for name, stream in zip(SPLITS, (train, valid, test), strict=True):
        if len(stream) < 2:
            raise TextError(f"{path}: the {name} text has {len(stream)} tokens, expected a text")
    digest = hashlib.sha256("\x1d".join("\n".join(part) for part in lines).encode()).hexdigest()
    return Corpus(vocabulary, train, valid, test, digest)


def batchify(stream: Tensor, batch: int) -> Tensor:
    """Return a text as `batch` texts side by side, (time, batch); up to batch - 1 tokens at the end are left out.

    Raises:
        TextError: if that leaves less than two tokens of each.
    """
    time = len(stream) // batch
    if time < 2:
        raise TextError(f"text of {len(stream)} tokens is too short for {batch} side by side; use a smaller batch or more text")
    return stream[: time * batch].view(batch, time).t().contiguous()


def cut(time: int, bptt: int, rng: np.random.Generator) -> list[tuple[int, int]]:
    """Cut a text of `time` tokens into pieces (start, length) of about `bptt` tokens; the last token is a target only.

    Source: Merity et al. 2018 (arXiv 1708.02182), section 4.1: of other lengths in each epoch, tokens meet other neighbours.
    """
    pieces, start = [], 0
    while start < time - 1:
        mean = bptt if rng.random() >= HALF else bptt / 2
        length = min(max(MIN_LENGTH, int(rng.normal(mean, DEVIATION))), bptt + DELTA, time - 1 - start)
        pieces.append((start, length))
        start += length
    return pieces


def piece(text: Tensor, start: int, length: int) -> tuple[Tensor, Tensor]:
    """Return tokens and the tokens that follow them, (length, batch) each."""
    return text[start : start + length], text[start + 1 : start + 1 + length]


def _read_texts(path: Path) -> list[list[str]]:
    if path.is_dir():
        return [_read_lines(path / f"{name}.txt") for name in SPLITS]
    lines = _read_lines(path)
    ends = [round(len(lines) * SHARES[0]), round(len(lines) * sum(SHARES))]
    if not 0 < ends[0] < ends[1] < len(lines):
        raise TextError(f"{path}: {len(lines)} lines, expected at least 10 to split; or a folder with train, valid and test.txt")
    return [lines[: ends[0]], lines[ends[0] : ends[1]], lines[ends[1] :]]


def _read_lines(path: Path) -> list[str]:
    content = read_bounded(path, what="a UTF-8 text", limit=MAX_TEXT_BYTES)
    try:
        return content.decode("utf-8-sig").split("\n")[: -1 if content.endswith(b"\n") else None]
    except UnicodeDecodeError as error:
        raise TextError(f"{path}: not a UTF-8 text (byte {error.start})") from None


def _tokens(lines: Iterable[str], kind: str) -> Iterator[str]:
    for line in lines:
        yield from line.split() if kind == "words" else line.rstrip("\r")
        yield END


def _vocabulary(lines: list[str], kind: str, limit: int) -> Vocabulary:
    counts = Counter(_tokens(lines, kind))
    counts |= {END: 1, UNKNOWN: 1}  # the larger count of each
    ranked = sorted(counts, key=lambda token: (-counts[token], token))
    if limit and len(ranked) > limit:
        kept = [token for token in ranked if token not in (END, UNKNOWN)][: limit - 2]
        ranked = [token for token in ranked if token in {*kept, END, UNKNOWN}]
    return Vocabulary(tuple(ranked), kind)
