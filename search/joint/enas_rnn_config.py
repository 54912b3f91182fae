"""How ENAS searches a recurrent cell on text: every setting that the result depends on."""

from __future__ import annotations

from dataclasses import dataclass, field

from ofa.language_model import Dropouts
from ofa.training.text_config import TextConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class EnasRnnConfig(TextConfig):
    """Settings, written to nas/config.json; a resumed search must be given the same.

    Defaults are those of Pham et al. 2018 (ENAS, arXiv 1802.03268), section 3.1, for Penn Treebank; what the paper leaves open
    (size, dropout, normalisation, weight of the entropy) is as in the authors' code.
    """

    nodes: int = 12  # of a cell, the first of which reads the token and the last hidden state
    features: int = 720  # of the embedding, and of every state
    epochs: int = 150
    weight_decay: float = 2e-7  # an L2 penalty of 1e-7 times the sum of squares
    lr_decay: float = 0.96  # factor on the learning rate after every epoch
    lr_decay_from: int = 15  # epochs before the first time
    slowness: float = 0.0
    dropouts: Dropouts = field(default_factory=lambda: Dropouts(embeddings=0.0, words=0.25))
    cells_a_step: int = 1  # sampled cells whose gradients a step of the shared weights averages
    matrix_a_function: bool = False  # shared weights for every (node, source, function), as released; else for (node, source)
    normalise: bool = True  # BatchNorm of what enters every node, in the search alone
    controller_steps: int = 2000  # after every epoch of the shared weights
    controller_samples: int = 1  # sampled cells a step of the controller
    controller_lr: float = 3.5e-4  # of Adam
    reward_scale: float = 80.0  # c of the reward c / perplexity of a piece of the validation text
    entropy_weight: float = 1e-3  # of the controller's entropy, in its reward
    baseline_decay: float = 0.99
    candidates: int = 100  # cells that are sampled in the end, of which the one with the lowest perplexity is taken
