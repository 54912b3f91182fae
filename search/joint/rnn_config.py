"""How to search a recurrent cell on text: every setting that the result depends on."""

from __future__ import annotations

from dataclasses import dataclass, field

from ofa.errors import OfaError
from ofa.language_model import Dropouts
from ofa.training.text_config import TextConfig
from search.joint.config import ORDERS


@dataclass(frozen=True, slots=True, kw_only=True)
class RecurrentSearchConfig(TextConfig):
    """Settings, written to nas/config.json; a resumed search must be given the same.

    Defaults are the published ones for Penn Treebank: Liu et al. 2019 (DARTS, arXiv 1806.09055), appendix A.2.
    """

    order: str = "1"  # of the alpha gradients: 1, 2 (finite difference, as published) or exact
    features: int = 300  # of the embedding, and of every state
    epochs: int = 50
    batch_size: int = 256  # texts side by side, of the weights and of the alphas alike
    weight_decay: float = 5e-7
    dropouts: Dropouts = field(default_factory=lambda: Dropouts(words=0.0))
    alpha_lr: float = 3e-3  # Adam with betas (0.9, 0.999)
    alpha_weight_decay: float = 1e-3
    untied_unrolled_embedding: bool = False  # order 2 and exact, as the published code has it: see darts_rnn.py

    def __post_init__(self) -> None:
        if self.order not in ORDERS:
            raise OfaError(f"unknown order {self.order!r}; known: {', '.join(ORDERS)}")
        if self.untied_unrolled_embedding and self.order == "1":
            raise OfaError("untied_unrolled_embedding has no effect on order 1; leave it out, or search with order 2")
        TextConfig.__post_init__(self)  # a class with slots is made anew, which super() without arguments does not know
