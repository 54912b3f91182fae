"""How ENAS searches a recurrent cell on text: every setting that the result depends on."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ofa.errors import OfaError
from ofa.language_model import Dropouts
from ofa.training.text_config import TextConfig

if TYPE_CHECKING:
    from search.joint.controllers import Variant

VARIANTS: dict[str, dict[str, Any]] = {
    "paper": {},
    "release": {
        "epochs": 100,
        "batch_size": 20,
        # the released loss adds up the tokens of a text, so that its rate and bound are those of 35 times our gradient
        "lr": 0.25 * 35,
        "clip_norm": 10 / 35,
        "weight_decay": 2e-7 / 35,
        "lr_decay": 0.95,
        "lr_decay_from": 12,
        "matrix_a_function": True,
        "controller_steps": 100,
        "controller_samples": 10,
        "controller_lr": 1e-3,
        "initial_baseline": 0.0,
    },
}


@dataclass(frozen=True, slots=True, kw_only=True)
class EnasRnnConfig(TextConfig):
    """Settings, written to nas/config.json; a resumed search must be given the same.

    Defaults are those of Pham et al. 2018 (ENAS, arXiv 1802.03268), section 3.1, for Penn Treebank, with its temperature of 5,
    tanh constant of 2.5 and controller's learning rate of 0.00035. As in the authors' code are what the paper leaves open (size,
    dropout, normalisation), and the entropy weight of 0.001, where the paper names 0.0001. See `configure_rnn`.
    """

    variant: Variant = "paper"  # of the controller
    nodes: int = 12  # of a cell, the first of which reads the token and the last hidden state
    features: int = 720  # of the embedding, and of every state
    epochs: int = 150
    weight_decay: float = 2e-7  # an L2 penalty of 1e-7 times the sum of squares
    lr_decay: float = 0.96  # factor on the learning rate after every epoch
    lr_decay_from: int = 15  # epochs before the first time
    slowness: float = 0.0
    dropouts: Dropouts = field(default_factory=lambda: Dropouts(embeddings=0.0, words=0.25))
    cells_a_step: int = 1  # sampled cells whose gradients a step of the shared weights averages
    matrix_a_function: bool = False  # shared weights for every (node, source, function); else for every (node, source)
    normalise: bool = True  # BatchNorm of what enters every node, in the search alone
    controller_steps: int = 2000  # after every epoch of the shared weights
    controller_samples: int = 1  # sampled cells of a step of the controller
    controller_lr: float = 3.5e-4  # of Adam with betas (0, 0.999), eps 1e-3
    reward_scale: float = 80.0  # c of the reward c / perplexity of a piece of the validation text
    entropy_weight: float = 1e-3  # worth of a nat of the controller's entropy, in rewards
    baseline_decay: float = 0.99
    initial_baseline: float | None = None  # None = the first rewards
    candidates: int = 100  # cells drawn in the end, of which the one with the lowest perplexity is taken

    def __post_init__(self) -> None:
        if self.variant not in VARIANTS:
            raise OfaError(f"unknown variant {self.variant!r}; known: {', '.join(VARIANTS)}")
        TextConfig.__post_init__(self)  # a class with slots is made anew, which super() without arguments does not know

    def learning_rate(self, epoch: int) -> float:
        """Return the rate of the shared weights in an epoch, counted from 0."""
        return self.lr * float(self.lr_decay ** max(0, epoch + 1 - self.lr_decay_from))


def configure_rnn(variant: str = "paper", **settings: Any) -> EnasRnnConfig:
    """Return the settings of a search: those of a variant, and `settings`, which take precedence.

    "release" is what the authors' code (src/ptb, scripts/ptb_search.sh) does where the paper says otherwise: shared matrices for
    every function, the controller's size and entropy, ten cells a step of the controller, a baseline that begins at 0, rates.

    Raises:
        OfaError: for an unknown variant, or an illegal value.
    """
    if variant not in VARIANTS:
        raise OfaError(f"unknown variant {variant!r}; known: {', '.join(VARIANTS)}")
    return EnasRnnConfig(**{"variant": variant, **VARIANTS[variant], **settings})
