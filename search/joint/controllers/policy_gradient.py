"""REINFORCE for controllers: sequences that were rewarded above a moving average become more likely.

The loss is the mean of -(reward - baseline) log p, so that a step of descent climbs the expected reward. Beware of published
code: what ENAS' calls sample_log_prob is a cross-entropy, -log p, and multiplies the advantage without a minus.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from ofa.errors import OfaError
from ofa.training.optimizer import load_optimizer, optimizer_tensors
from search.joint.controllers import Controller, Sampled

WEIGHTS, MOMENTS = "controller|", "adam|"  # prefixes of tensors in a checkpoint


class PolicyState(NamedTuple):
    """Where training stands, for a checkpoint."""

    tensors: dict[str, Tensor]  # weights of the controller and moments of Adam
    facts: dict[str, Any]  # JSON


class PolicyGradient:
    """Trains a controller with REINFORCE, a moving average of rewards as baseline, and Adam.

    Defaults are those of ENAS' code for the micro space; for the macro space it takes lr 0.001, for recurrent cells
    entropy_weight 0.001. (The paper names lr 0.00035 and entropy_weight 0.1, of text 0.0001.)
    Zoph and Le: lr 0.0006 (recurrent cells 0.0005), betas (0.9, 0.999), eps 1e-8, entropy_weight 0,
    baseline_first=False.
    Source: Williams 1992; Zoph and Le 2017 (arXiv 1611.01578), section 3.2; Pham et al. 2018 (arXiv 1802.03268), section 2.2.
    """

    def __init__(
        self,
        controller: Controller,
        *,
        lr: float = 0.0035,
        betas: tuple[float, float] = (0.0, 0.999),
        eps: float = 1e-3,
        baseline_decay: float = 0.99,
        entropy_weight: float = 1e-4,
        skip_weight: float = 0.8,
        baseline_first: bool = True,
        initial_baseline: float | None = None,
        entropy_in: Literal["reward", "loss"] = "reward",
    ) -> None:
        """Begin.

        Args:
            baseline_decay: how much of the baseline a step keeps, in [0, 1].
            entropy_weight: worth of a nat of entropy, in units of reward.
            skip_weight: price of a nat of `Sampled.skip_penalty`.
            baseline_first: a step's rewards enter the baseline before they are compared with it (ENAS), else after, so that the
                baseline is an average of previous rewards only (Zoph and Le).
            initial_baseline: None = the mean of the first step's rewards; ENAS' code begins at 0, which makes everything that is
                drawn in the first hundred steps more likely.
            entropy_in: "reward" adds the entropy of a sequence to its reward, without a gradient of its own, as ENAS does;
                "loss" takes the mean entropy off the loss, with its gradient.
        Raises:
            OfaError: for a number out of range.
        """
        if lr <= 0 or not 0 <= baseline_decay <= 1 or entropy_weight < 0 or skip_weight < 0:
            raise OfaError(
                f"lr {lr}, baseline_decay {baseline_decay}, entropy_weight {entropy_weight}, skip_weight {skip_weight}: expected "
                "above 0, in [0, 1], at least 0, at least 0"
            )
        self.controller = controller
        self.optimizer = torch.optim.Adam(controller.parameters(), lr=lr, betas=betas, eps=eps)
        self.baseline = initial_baseline
        self._decay, self._baseline_first = baseline_decay, baseline_first
        self._entropy_weight, self._skip_weight, self._entropy_in = entropy_weight, skip_weight, entropy_in

    def step(self, sampled: Sampled, rewards: Tensor) -> dict[str, float]:
        """Take a step.

        Args:
            sampled: of the controller as it is now. Where rewards take long, score the tokens again before the step.
            rewards: (n,), to be large.
        Returns:
            loss, baseline (that rewards were compared with), entropy, reward and skips: means over the sequences.
        Raises:
            OfaError: for rewards of another number, or that are not finite, and for sequences without gradients.
        """
        rewards = rewards.detach().to(sampled.log_prob)
        if rewards.shape != sampled.log_prob.shape or not rewards.isfinite().all():
            raise OfaError(
                f"rewards {tuple(rewards.shape)}: {rewards.tolist()[:4]}, expected {len(sampled.tokens)} finite numbers"
            )
        if not sampled.log_prob.requires_grad:
            raise OfaError("sequences have no gradients, expected ones drawn or scored outside of torch.no_grad")
        gained = rewards
        if self._entropy_in == "reward":
            gained = gained + self._entropy_weight * sampled.entropy.detach()
        mean = float(gained.mean())
        before = mean if self.baseline is None else self.baseline
        after = self._decay * before + (1 - self._decay) * mean
        compared = after if self._baseline_first else before
        loss = -((gained - compared) * sampled.log_prob).mean() + self._skip_weight * sampled.skip_penalty.mean()
        if self._entropy_in == "loss":
            loss = loss - self._entropy_weight * sampled.entropy.mean()
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()
        self.baseline = after
        return {
            "loss": loss.item(),
            "baseline": compared,
            "entropy": sampled.entropy.mean().item(),
            "reward": rewards.mean().item(),
            "skips": sampled.skips.mean().item(),
        }

    def state(self) -> PolicyState:
        """Return what a checkpoint holds: the controller's weights, Adam's moments, the baseline."""
        tensors = {f"{WEIGHTS}{name}": value.detach() for name, value in self.controller.state_dict().items()}
        moments = optimizer_tensors(self.controller, self.optimizer)
        return PolicyState(tensors | {f"{MOMENTS}{name}": value for name, value in moments.items()}, {"baseline": self.baseline})

    def load_state(self, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> None:
        """Take over what `state` returned; other tensors and facts of the checkpoint may stand beside."""
        self.controller.load_state_dict(_of(tensors, WEIGHTS))
        load_optimizer(self.controller, self.optimizer, _of(tensors, MOMENTS))
        self.baseline = facts["baseline"]


def _of(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
