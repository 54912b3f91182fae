"""The steps of ProxylessNAS: weights through one drawn path, alphas through two, or by the reward of some.

Cai et al. 2019 (arXiv 1812.00332), sections 3.1 to 3.3. Weights and alphas learn from images of their own.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ofa.artefacts import append_jsonl
from ofa.run_dir import Run
from ofa.supernet import Supernet
from ofa.training.augment import augment, draw
from ofa.training.checkpoint import Checkpoint
from ofa.training.config import TrainConfig
from ofa.training.data import Images, in_batches, steps_per_epoch, training_batch
from ofa.training.optimizer import make_optimizer
from search.joint.controllers.policy_gradient import PolicyGradient
from search.joint.controllers.sequences import generator_of
from search.joint.gate_latency import LatencyLoss
from search.joint.gates import Gates, gated_logits, new_gates, pair_gradients, rows_of
from search.joint.gates_config import GatesConfig
from search.joint.images import SearchImages
from search.joint.objective import Objective
from search.joint.open_choices import OpenChoices
from search.joint.record import ALPHAS, METRICS
from search.joint.stepping import Optimizers, SteppedSearch

Losses = tuple[float, float | None]  # of the weights and of the alphas, None while they wait

START, PATHS, PAIRS, BATCH, SAMPLES, LOOK = 0x6A, 0x6B, 0x6C, 0x6D, 0x6E, 0x6F  # what is drawn from a seed and a step
LOOK_IMAGES = 2_000  # of the alphas', on which accuracy is looked at after each epoch


class GateSearch(SteppedSearch[Losses]):
    """Shared weights, alphas, their optimisers, and where the search stands."""

    lines = (METRICS, ALPHAS)
    loss_names = ("on images of the weights", "of the alphas")

    def __init__(
        self,
        run: Run,
        config: GatesConfig,
        choices: OpenChoices,
        images: SearchImages,
        device: torch.device,
        *,
        latency: LatencyLoss | None = None,
        objective: Objective | None = None,
    ) -> None:
        """Begin; `objective` is what paths are rewarded for, of reinforce."""
        torch.manual_seed(config.seed)
        self.config, self.choices, self.images, self.device = config, choices, images, device
        self.latency, self.objective = latency, objective
        self.shared = Supernet(choices.space).to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        super().__init__(
            run,
            self.shared,
            epoch_steps=steps_per_epoch(images.weights, config.batch_size),
            epochs=config.epochs,
            advice=f"start again with a lower --lr (now {config.lr:g})",
        )
        self.batches = TrainConfig(
            batch_size=config.batch_size, seed=config.seed, lr=config.lr, weight_decay=config.weight_decay, optimizer="sgd"
        )
        self.optimizer = make_optimizer(self.shared, self.batches)
        self.gates = Gates(choices, self._generator(START, 0))
        # beta 0: what is not sampled, whose gradient is 0, does not move
        self.policy = PolicyGradient(
            self.gates, lr=config.alpha_lr, betas=(0.0, 0.999), eps=1e-8, baseline_decay=config.baseline_decay, entropy_weight=0.0
        )

    # -- steps ---------------------------------------------------------------------------------------------------------

    def one_step(self) -> Losses:
        """One step of the weights and, every few, one of the alphas."""
        loss = self.weight_step()
        if self.epoch < self.config.waits or (self.step + 1) % self.config.alpha_every:
            return loss, None
        return loss, self.gate_step() if self.config.update == "gradient" else self.reward_step()

    def weight_step(self) -> float:
        """Train the weights of one drawn path; returns the loss. Weights beside the path stay as they are."""
        config = self.config
        with torch.no_grad():
            chosen = self.gates(1, generator=self._generator(PATHS, self.step)).tokens[0].tolist()
        images, labels = self._prepared(
            *training_batch(self.images.weights, self.step, self.batches, flip=self.images.preprocess.flip), chosen
        )
        self.shared.train()
        self.optimizer.zero_grad(set_to_none=True)
        loss = F.cross_entropy(self.shared(images, self.choices.arch(chosen)), labels, label_smoothing=config.label_smoothing)
        loss.backward()
        for group in self.optimizer.param_groups:
            group["lr"] = config.learning_rate(self.step / self.total_steps)
        self.optimizer.step()
        return float(loss.detach())

    def gate_step(self) -> float:
        """Move the alphas of two options of every choice; returns the loss."""
        pairs = self.gates.draw_pairs(np.random.default_rng((self.config.seed, self.step, PAIRS)))
        images, labels = self._prepared(*self._alpha_batch(self.step), pairs.chosen)
        self.shared.train()
        before, gates = self.gates.of_pairs(pairs).detach().requires_grad_(), new_gates(pairs)
        loss = cross_entropy = F.cross_entropy(gated_logits(self.shared, self.choices, pairs, gates, images), labels)
        if self.latency is None:
            (by_gates,) = torch.autograd.grad(loss, [gates])
            gradients = pair_gradients(before.detach(), by_gates)
        else:
            loss = self.latency(cross_entropy, pairs.probabilities(self.gates, before))
            by_gates, directly = torch.autograd.grad(loss, [gates, before])
            gradients = pair_gradients(before.detach(), by_gates) + directly
        self.gates.set_gradients(pairs, gradients)
        self.policy.optimizer.step()
        self.gates.rescale(pairs, before.detach())
        return float(loss.detach())

    def reward_step(self) -> float:
        """Draw some paths, reward each, and move the alphas by REINFORCE; returns its loss."""
        assert self.objective is not None
        sampled = self.gates(self.config.samples, generator=self._generator(SAMPLES, self.step))
        paths: list[list[int]] = sampled.tokens.tolist()
        first = self.step // self.config.alpha_every * self.config.samples
        top1 = np.array([self._batch_top1(chosen, first + i) for i, chosen in enumerate(paths)])
        rewards = self.objective([self.choices.arch(chosen) for chosen in paths], top1)
        return self.policy.step(sampled, torch.from_numpy(rewards))["loss"]

    @torch.no_grad()
    def _batch_top1(self, chosen: Sequence[int], number: int) -> float:
        images, labels = self._prepared(*self._alpha_batch(number), chosen)
        self.shared.train()
        return float((self.shared(images, self.choices.arch(chosen)).argmax(1) == labels).float().mean())

    def _alpha_batch(self, number: int) -> tuple[Tensor, Tensor]:
        rng = np.random.default_rng((self.config.seed, number, BATCH))
        data = self.images.alphas
        batch = rng.choice(len(data), self.config.batch_size, replace=False)
        draws = draw(rng, len(batch), data.size, flip=self.images.preprocess.flip, crop_scale=1.0)
        return augment(data.images[batch], draws), data.labels[batch]

    def _prepared(self, images: Tensor, labels: Tensor, chosen: Sequence[int]) -> tuple[Tensor, Tensor]:
        side = self.choices.space.resolution(self.choices.arch(chosen))
        return self.images.preprocess(images.to(self.device), side), labels.to(self.device)

    def _generator(self, purpose: int, number: int) -> torch.Generator:
        return generator_of(self.config.seed, number, purpose)

    # -- checkpoints ---------------------------------------------------------------------------------------------------

    def optimizers(self) -> Optimizers:
        return [("sgd|", self.shared, self.optimizer)]

    def learned(self) -> Iterable[Tensor]:
        return (*self.shared.parameters(), *self.gates.parameters())

    def tensors(self) -> dict[str, Tensor]:
        return self.policy.state().tensors

    def state(self) -> dict[str, Any]:
        return {**super().state(), "policy": self.policy.state().facts}

    def restore(self, checkpoint: Checkpoint) -> None:
        super().restore(checkpoint)
        self._facts = checkpoint.state()["policy"]

    def load_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        self.policy.load_state(tensors, self._facts)

    # -- what is written -----------------------------------------------------------------------------------------------

    def begin(self) -> None:
        self._note_alphas()

    def end_epoch(self, epoch: int) -> str:
        self._note_alphas()
        return ""

    def facts(self, epoch: int, losses: Sequence[Losses]) -> dict[str, Any]:
        """Return means over the epoch's steps; of the alphas at its end entropy, expected latency, top-1 of what they favour."""
        record: dict[str, Any] = {"loss": float(np.mean([loss for loss, _ in losses]))}
        if alpha_losses := [loss for _, loss in losses if loss is not None]:
            record["alpha_loss"] = float(np.mean(alpha_losses))
        record |= {"alpha_top1": self._look(), "entropy": float(self.gates.entropy().detach())}
        if self.latency is not None:
            record["expected_ms"] = float(self.latency.expected_ms(self.gates.probabilities()).detach())
        return record

    @torch.no_grad()
    def _look(self) -> float:
        """Top-1 of the most probable path on some of the alphas' images, BatchNorm by the batch."""
        chosen, right = self.gates.most_probable(), 0
        some = _first(self.images.alphas, self.config.batch_size, np.random.default_rng((self.config.seed, LOOK)))
        self.shared.train()
        for batch in in_batches(some, self.config.batch_size):
            images, labels = self._prepared(*batch, chosen)
            right += int((self.shared(images, self.choices.arch(chosen)).argmax(1) == labels).sum())
        return right / len(some)

    def _note_alphas(self) -> None:
        chosen = self.gates.most_probable()
        names = [(d.name, d.options[option]) for d, option in zip(self.choices.dimensions, chosen, strict=True)]
        record = {"step": self.step, "epoch": self.epoch, "skips": {}, "genotype": ", ".join(f"{n} {v}" for n, v in names)}
        append_jsonl(self.folder / ALPHAS, record | {"probabilities": dict(rows_of(self.gates.probabilities()))})


def _first(data: Images, batch_size: int, rng: np.random.Generator) -> Images:
    """Return some images, whole batches of them."""
    order = rng.permutation(len(data))
    return data.subset(order[: max(1, min(LOOK_IMAGES, len(order)) // batch_size) * batch_size])
