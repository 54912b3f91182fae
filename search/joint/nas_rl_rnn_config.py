"""How NAS with reinforcement learning searches a recurrent cell on text: every setting that the result depends on."""

from __future__ import annotations

import math
from dataclasses import dataclass

from ofa.errors import OfaError
from ofa.training.text_config import TextConfig
from search.joint.config import check_numbers


@dataclass(frozen=True, slots=True, kw_only=True)
class NasRlRnnConfig(TextConfig):
    """Settings, written to nas/config.json; a resumed search must be given the same.

    Leaves, children, their epochs, reward and learning rate of the controller are those of Zoph and Le 2016 (arXiv 1611.01578),
    section 4.2, for Penn Treebank; how a child is trained is as for other language models of ours.
    """

    base: int = 8  # leaves of the tree
    epochs: int = 35  # of a child
    children: int = 15_000  # in all
    batch_children: int = 8  # whose rewards an update of the controller averages
    controller_lr: float = 5e-4  # of Adam
    reward_scale: float = 80.0  # c of the reward c / perplexity^2 of the validation text
    baseline_decay: float = 0.95  # of the mean of previous rewards, an update

    def __post_init__(self) -> None:
        TextConfig.__post_init__(self)  # a class with slots is made anew, which super() without arguments does not know
        check_numbers(self, {"controller_lr": (1e-9, math.inf)})  # 0 would search nothing
        if self.children % self.batch_children:
            raise OfaError(f"children is {self.children}, expected a multiple of batch_children, {self.batch_children}")

    @property
    def updates(self) -> int:
        """Steps of the controller."""
        return self.children // self.batch_children
