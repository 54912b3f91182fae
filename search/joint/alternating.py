"""The steps of ENAS: a pass that trains shared weights, then steps that train the controller, epoch after epoch.

Pham et al. 2018 (arXiv 1802.03268), section 2.2. In a step of the weights one architecture is drawn, and only its weights are
used: what a step holds in memory does not depend on how many operations there are to choose from. A step of the controller draws
some architectures and measures each on a batch of images that the weights do not learn from.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from ofa.run_dir import Run
from ofa.supernet import Noise, Supernet
from ofa.training.checkpoint import Checkpoint
from ofa.training.config import TrainConfig
from ofa.training.data import steps_per_epoch, training_batch
from search.joint.controllers import Sampled
from search.joint.controllers.policy_gradient import PolicyGradient
from search.joint.enas_config import EnasConfig
from search.joint.enas_space import ChildSpace
from search.joint.images import SearchImages
from search.joint.objective import Objective
from search.joint.stepping import Optimizers, SteppedSearch

Losses = tuple[float | None, float | None]  # of the weights, of the controller: a step has one of them

CHILDREN, SAMPLES, DROPOUT, ORDER, WEIGHTS, LAST = 0xE1, 0xE2, 0xE3, 0xE4, 0xE5, 0xE6  # what is drawn from a seed and a number


class AlternatingSearch(SteppedSearch[Losses]):
    """Shared weights, a controller, and where their search stands."""

    loss_names = ("on images of the weights", "of the controller")

    def __init__(
        self, run: Run, config: EnasConfig, space: ChildSpace, images: SearchImages, objective: Objective, device: torch.device
    ) -> None:
        torch.manual_seed(config.seed)
        self.config, self.space, self.images, self.objective, self.device = config, space, images, objective, device
        self.weight_steps = steps_per_epoch(images.weights, config.batch_size)
        self.shared = Supernet(space.shared).to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        super().__init__(
            run,
            self.shared,
            epoch_steps=self.weight_steps + config.controller_steps,
            epochs=config.epochs,
            advice=f"start again with a lower --lr (now {config.lr:g})",
        )
        self.weights = list(self.shared.parameters())  # thousands; finding them takes as long as using those of one child
        self.optimizer = _nesterov(self.weights, config)
        self.controller = space.controller(config, self._generator(WEIGHTS, 0))
        self.policy = PolicyGradient(
            self.controller,
            lr=config.controller_lr,
            baseline_decay=config.baseline_decay,
            entropy_weight=config.entropy_weight,
            skip_weight=config.skip_weight,
            initial_baseline=config.initial_baseline,
        )
        self.batches = TrainConfig(batch_size=config.batch_size, seed=config.seed)
        self.best = -np.inf  # reward so far
        self.noted: dict[str, list[float]] = {}  # of this epoch's steps of the controller
        self._order: tuple[int, NDArray[np.int64]] | None = None  # pass over the controller's images, their order in it
        self._children: tuple[int, Tensor] | None = None  # epoch, tokens of the architectures of its weights' steps

    # -- steps ---------------------------------------------------------------------------------------------------------

    def one_step(self) -> Losses:
        epoch, within = divmod(self.step, self.epoch_steps)
        if within < self.weight_steps:
            return self.weight_step(epoch, within), None
        return None, self.controller_step(epoch * self.config.controller_steps + within - self.weight_steps)

    def weight_step(self, epoch: int, within: int) -> float:
        """Train the weights of one architecture on a batch of an epoch; returns the loss."""
        config, number = self.config, epoch * self.weight_steps + within
        if self._children is None or self._children[0] != epoch:  # all of them at once: the controller rests meanwhile
            self._children = (epoch, self.draw(self.weight_steps, CHILDREN, epoch).tokens)
        arch = self.space.shared_arch(self._children[1][within])
        images, labels = training_batch(self.images.weights, number, self.batches, flip=self.images.preprocess.flip)
        self.shared.train()
        self.optimizer.zero_grad(set_to_none=not config.moves_unused)
        logits = self.shared(self._prepared(images), arch, self._noise(DROPOUT, number))
        loss = F.cross_entropy(logits, labels.to(self.device))
        loss.backward()
        if config.clip_norm:
            nn.utils.clip_grad_norm_(self.weights, config.clip_norm)
        for group in self.optimizer.param_groups:
            group["lr"] = config.learning_rate(epoch)
        self.optimizer.step()
        return float(loss.detach())

    def controller_step(self, number: int) -> float:
        """Draw some architectures, measure each, and move the controller; returns its loss."""
        sampled = self.controller(self.config.samples, generator=self._generator(SAMPLES, number))
        first = number * self.config.samples
        top1 = np.array([self.batch_top1(tokens, first + i) for i, tokens in enumerate(sampled.tokens)])
        rewards = self.objective([self.space.arch(tokens) for tokens in sampled.tokens], top1)
        told = self.policy.step(sampled, torch.from_numpy(rewards))
        self.best = max(self.best, float(rewards.max()))
        noted = {"reward": told["reward"], "entropy": told["entropy"], "top1": float(top1.mean())}
        noted |= {"skips": told["skips"]} if self.config.space == "macro" else {}
        for name, value in noted.items():
            self.noted.setdefault(name, []).append(value)
        return told["loss"]

    @torch.no_grad()
    def batch_top1(self, tokens: Tensor, number: int) -> float:
        """Return the accuracy of an architecture on a batch of the controller's images, BatchNorm by the batch's statistics.

        Args:
            number: of the batch, counted over all passes over these images, each in an order of its own.
        """
        images, size = self.images.alphas, self.config.batch_size
        turn, place = divmod(number, len(images) // size)
        if self._order is None or self._order[0] != turn:
            self._order = (turn, np.random.default_rng((self.config.seed, turn, ORDER)).permutation(len(images)))
        batch = self._order[1][place * size : (place + 1) * size]
        self.shared.train()
        noise = self._noise(ORDER, number) if self.config.dropout_in_reward else None
        logits = self.shared(self._prepared(images.images[batch]), self.space.shared_arch(tokens), noise)
        return float((logits.argmax(1).cpu() == images.labels[batch]).float().mean())

    @torch.no_grad()
    def draw(self, n: int, purpose: int, number: int) -> Sampled:
        """Draw architectures from the controller as it is now, without gradients."""
        return self.controller(n, generator=self._generator(purpose, number))

    def final_draws(self) -> Tensor:
        """Return the tokens of the architectures one of which is found, (candidates, length)."""
        return self.draw(self.config.candidates, LAST, 0).tokens

    def _prepared(self, images: Tensor) -> Tensor:
        return self.images.preprocess(images.to(self.device), self.config.resolution)

    def _noise(self, purpose: int, number: int) -> Noise:
        return Noise(dropout=self.config.dropout, drop_connect=0.0, generator=self._generator(purpose, number))

    def _generator(self, purpose: int, number: int) -> torch.Generator:
        seed = np.random.SeedSequence((self.config.seed, number, purpose)).generate_state(1, np.uint64)
        return torch.Generator().manual_seed(int(seed[0] >> np.uint64(1)))

    # -- what is kept and noted ----------------------------------------------------------------------------------------

    def optimizers(self) -> Optimizers:
        return [("sgd|", self.shared, self.optimizer)]

    def learned(self) -> list[Tensor]:
        return [*self.weights, *self.controller.parameters()]

    def tensors(self) -> dict[str, Tensor]:
        return self.policy.state().tensors

    def state(self) -> dict[str, Any]:
        best = float(self.best) if np.isfinite(self.best) else None
        return {**super().state(), "policy": self.policy.state().facts, "best": best, "noted": self.noted}

    def restore(self, checkpoint: Checkpoint) -> None:
        super().restore(checkpoint)
        state = checkpoint.state()
        self.best = -np.inf if state["best"] is None else float(state["best"])
        self.noted = {str(name): [float(value) for value in values] for name, values in state["noted"].items()}
        self._facts = state["policy"]

    def load_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        self.policy.load_state(tensors, self._facts)

    def facts(self, epoch: int, losses: Sequence[Losses]) -> dict[str, Any]:
        """Return means over the epoch's steps, the best reward of all epochs and the baseline at the end."""
        means = {name: float(np.mean(values)) for name, values in self.noted.items()}
        self.noted.clear()
        return {
            "lr": self.config.learning_rate(epoch),
            "loss": float(np.mean([loss for loss, _ in losses if loss is not None])),
            "controller_loss": float(np.mean([loss for _, loss in losses if loss is not None])),
            **means,
            "best_reward": float(self.best),
            "baseline": self.policy.baseline,
        }

    def last_seen(self) -> str:
        rewards = self.noted.get("reward", [])[-10:]
        return f"{super().last_seen()}, reward {np.mean(rewards):.3f}" if rewards else super().last_seen()


def _nesterov(weights: Sequence[Tensor], config: EnasConfig) -> torch.optim.SGD:
    """Return SGD with Nesterov's momentum; the gradient of the penalty l2 x (sum of squares) is 2 x l2 x weight."""
    optimizer = torch.optim.SGD(
        weights, lr=config.lr, momentum=config.momentum, nesterov=config.momentum > 0, weight_decay=2 * config.l2, fused=True
    )
    for weight in weights:
        # the fused step cannot begin some momenta later than others; from zero they begin alike
        optimizer.state[weight]["momentum_buffer"] = torch.zeros_like(weight)
        weight.grad = torch.zeros_like(weight) if config.moves_unused else None
    return optimizer
