"""The steps of DARTS: alphas on one half of the images, weights on the other, epoch after epoch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ofa.run_dir import Run
from ofa.training.augment import augment, draw
from ofa.training.config import TrainConfig
from ofa.training.data import Images, Preprocessing, in_batches, steps_per_epoch, training_batch
from search.joint.alpha_search import AlphaSearch, Losses, fresh_alphas
from search.joint.architect import AlphaGradients, first_order, momentum_buffers, second_order, second_order_exact
from search.joint.config import DartsConfig
from search.joint.hardware import LatencyTerm
from search.joint.relaxation import Found, Relaxation
from search.joint.stepping import Optimizers

LOOK_IMAGES = 2_000  # of those that alphas learn from, on which accuracy is looked at after each epoch

Batch = tuple[Tensor, Tensor]  # images and labels


class BilevelSearch(AlphaSearch):
    """The network of all operations, the alphas, their optimisers, and where the search stands."""

    def __init__(
        self,
        run: Run,
        config: DartsConfig,
        space: Relaxation,
        halves: tuple[Images, Images],
        preprocess: Preprocessing,
        device: torch.device,
        term: LatencyTerm | None = None,
    ) -> None:
        torch.manual_seed(config.seed)
        self.config, self.space, self.term, self.device = config, space, term, device
        self.weight_half, self.alpha_half, self.preprocess = *halves, preprocess
        net = space.build(run.num_classes)
        super().__init__(
            run,
            net.to(device, memory_format=torch.channels_last),  # type: ignore[call-overload]
            fresh_alphas({cell: (len(rows), len(space.operations)) for cell, rows in space.edges.items()}, config.seed, device),
            epoch_steps=steps_per_epoch(self.weight_half, config.batch_size),
            epochs=config.epochs,
            advice=f"start again with a lower --lr (now {config.lr:g})",
        )
        self.weights = list(self.net.parameters())
        self.optimizer = torch.optim.SGD(
            self.weights, lr=config.lr, momentum=config.momentum, weight_decay=config.weight_decay, fused=True
        )
        self.alpha_optimizer = torch.optim.Adam(
            self.alphas.parameters(), lr=config.alpha_lr, betas=(0.5, 0.999), weight_decay=config.alpha_weight_decay
        )
        self.batches = TrainConfig(batch_size=config.batch_size, seed=config.seed)

    def probabilities(self) -> dict[str, Tensor]:
        """Return cell -> (edges, operations), with gradients to the alphas."""
        return {cell: alphas.softmax(-1) for cell, alphas in self.alphas.items()}

    def found(self, *, limited: bool = True) -> Found:
        """Return what the alphas decide for as they are now; `limited`: with at most max_skips skips."""
        chosen = {cell: p.detach() for cell, p in self.probabilities().items()}
        return self.space.derive(chosen, self.config.guards.max_skips if limited else None)

    def optimizers(self) -> Optimizers:
        return [("sgd|", self.net, self.optimizer), ("adam|", self.alphas, self.alpha_optimizer)]

    def ends(self, epoch: int, skips: Mapping[str, int]) -> str:
        return self.config.guards.ends(epoch, skips) or ""

    def one_step(self) -> Losses:
        """One step of the alphas, unless they wait, and one of the weights; returns the losses of the latter and the former."""
        config, epoch = self.config, self.step // self.epoch_steps
        lr, drop = config.learning_rate(epoch), config.guards.drop_rate(self.step, self.total_steps)
        self.net.train()
        own = self._prepared(*training_batch(self.weight_half, self.step, self.batches, flip=self.preprocess.flip))
        alpha_loss = None
        if config.guards.decides(epoch):
            other = self._prepared(*self._alpha_batch())
            gradients = self._alpha_gradients(own, other, lr, drop)
            alpha_loss = float(gradients.loss)
            for alphas, gradient in zip(self.alphas.values(), gradients.gradients, strict=True):
                alphas.grad = gradient
            if self.term is not None:
                self.term(self.probabilities()).backward()  # adds to what is there
            self.alpha_optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        loss = self._loss(*own, drop, {cell: p.detach() for cell, p in self.probabilities().items()})
        loss.backward()
        if config.clip_norm:
            nn.utils.clip_grad_norm_(self.weights, config.clip_norm)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.optimizer.step()
        return float(loss.detach()), alpha_loss

    def _alpha_gradients(self, own: Batch, other: Batch, lr: float, drop: float) -> AlphaGradients:
        config, alphas = self.config, list(self.alphas.values())

        def train_loss() -> Tensor:
            return self._loss(*own, drop, self.probabilities())

        def valid_loss() -> Tensor:
            return self._loss(*other, drop, self.probabilities())

        if config.order == "1":
            return first_order(valid_loss, alphas, weights=self.weights)
        differentiate = second_order if config.order == "2" else second_order_exact
        return differentiate(
            train_loss,
            valid_loss,
            self.weights,
            alphas,
            eta=lr,
            momentum=config.momentum,
            buffers=momentum_buffers(self.optimizer, self.weights),
            weight_decay=config.weight_decay,
        )

    def _loss(self, images: Tensor, labels: Tensor, drop: float, chosen: dict[str, Tensor]) -> Tensor:
        # every pass of a step drops the same skips, as a difference between passes needs
        seed = np.random.SeedSequence((self.config.seed, self.step, 0xD5)).generate_state(1, np.uint64)
        generator = torch.Generator().manual_seed(int(seed[0] >> np.uint64(1)))
        logits = self.space.forward(self.net, images, chosen, skip_drop=drop, generator=generator)
        return F.cross_entropy(logits, labels)

    def _alpha_batch(self) -> Batch:
        """A random batch of the alphas' images: the published code shuffles them anew for every step."""
        rng = np.random.default_rng((self.config.seed, self.step, 0xA1FA))
        batch = rng.choice(len(self.alpha_half), self.config.batch_size, replace=False)
        draws = draw(rng, len(batch), self.alpha_half.size, flip=self.preprocess.flip, crop_scale=1.0)
        return augment(self.alpha_half.images[batch], draws), self.alpha_half.labels[batch]

    def _prepared(self, images: Tensor, labels: Tensor) -> Batch:
        images, labels = images.to(self.device), labels.to(self.device)
        return self.preprocess(images, self.config.resolution), labels

    def facts(self, epoch: int, losses: Sequence[Losses]) -> dict[str, Any]:
        record: dict[str, Any] = {"lr": self.config.learning_rate(epoch), "loss": float(np.mean([loss for loss, _ in losses]))}
        if alpha_losses := [loss for _, loss in losses if loss is not None]:
            record["alpha_loss"] = float(np.mean(alpha_losses))
        record["alpha_top1"] = self._look()
        if self.term is not None:
            record["expected_ms"] = float(self.term.expected({c: p.detach() for c, p in self.probabilities().items()}))
        return record

    @torch.no_grad()
    def _look(self) -> float:
        """Top-1 of the network of all operations on images that alphas learn from: not that of what is derived from it.

        BatchNorm goes by the batch, as in the search.
        """
        size = self.config.batch_size
        order = np.random.default_rng((self.config.seed, 0x100C)).permutation(len(self.alpha_half))
        some = self.alpha_half.subset(order[: max(1, min(LOOK_IMAGES, len(order)) // size) * size])
        chosen, generator, right = self.probabilities(), torch.Generator(), 0
        for batch in in_batches(some, size):
            images, labels = self._prepared(*batch)
            logits = self.space.forward(self.net, images, chosen, skip_drop=0.0, generator=generator)
            right += int((logits.argmax(1) == labels).sum())
        return right / len(some)
