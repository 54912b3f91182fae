"""What every training on text is told, checked when it is made and written beside the weights."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, fields

from ofa.errors import OfaError
from ofa.language_model import Dropouts
from ofa.training.text import KINDS

RANGES: dict[str, tuple[float, float]] = {  # least and largest legal value
    "max_vocabulary": (0, math.inf),
    "features": (1, 65_536),
    "epochs": (1, math.inf),
    "batch_size": (2, math.inf),
    "bptt": (1, 10_000),
    "lr": (0, math.inf),
    "weight_decay": (0, math.inf),
    "clip_norm": (0, math.inf),
    "slowness": (0, math.inf),
    "eval_batch_size": (1, math.inf),
    "nonmono": (1, math.inf),
    "alpha_lr": (0, math.inf),
    "alpha_weight_decay": (0, math.inf),
    "nodes": (2, 64),
    "lr_decay": (1e-6, 1),
    "lr_decay_from": (0, math.inf),
    "cells_a_step": (1, math.inf),
    "controller_steps": (1, math.inf),
    "controller_samples": (1, math.inf),
    "controller_lr": (0, math.inf),
    "reward_scale": (1e-9, math.inf),
    "entropy_weight": (0, math.inf),
    "baseline_decay": (0, 1),
    "initial_baseline": (-math.inf, math.inf),
    "candidates": (1, math.inf),
    "base": (2, 64),
    "children": (1, math.inf),
    "batch_children": (1, math.inf),
    "seed": (0, 2**63 - 1),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class TextConfig:
    """Settings that a search on text and the training of a language model share."""

    tokens: str = "words"  # or characters
    max_vocabulary: int = 0  # tokens to tell apart, the most frequent of the training text; 0 = all
    features: int = 850  # of the embedding, and of every state
    epochs: int = 8000
    batch_size: int = 64  # texts side by side
    bptt: int = 35  # tokens that a gradient reaches back, on average
    lr: float = 20.0  # of SGD without momentum, for pieces of `bptt` tokens; in proportion for others
    weight_decay: float = 8e-7
    clip_norm: float = 0.25  # of the gradient of all weights; 0 = no clipping
    slowness: float = 1e-3  # weight of the mean squared change of the hidden state from token to token
    dropouts: Dropouts = field(default_factory=Dropouts)
    eval_batch_size: int = 10  # texts side by side where perplexity is measured
    seed: int = 0

    def __post_init__(self) -> None:
        if self.tokens not in KINDS:
            raise OfaError(f"unknown tokens {self.tokens!r}; known: {', '.join(KINDS)}")
        if not isinstance(self.dropouts, Dropouts):
            raise OfaError(f"dropouts are {self.dropouts!r}, expected Dropouts(...)")
        for setting in fields(self):
            if setting.name not in RANGES:
                continue
            value, whole = getattr(self, setting.name), setting.type == "int"
            if value is None and "None" in str(setting.type):
                continue
            least, largest = RANGES[setting.name]
            number = type(value) is int or (type(value) is float and not whole)
            if not number or not math.isfinite(value) or not least <= value <= largest:
                limit = f"of at least {least:g}" if largest == math.inf else f"from {least:g} to {largest:g}"
                raise OfaError(f"{setting.name} is {value!r}, expected a {'whole ' if whole else ''}number {limit}")
