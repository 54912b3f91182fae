"""The steps of Cyclic-DARTS: pre-training, then cycles of deriving, warming up and learning jointly.

Yu et al. 2022 (arXiv 2006.10724), algorithm 1. The search network S learns from one half of the images. The evaluation network E,
the alphas and the heads between the networks learn from the other.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ofa.genotype import Genotype, parse_genotype
from ofa.mixed import PRIMITIVES, MixedNetwork
from ofa.run_dir import Run
from ofa.space import ArchConfig
from ofa.spaces.darts import SPACE
from ofa.supernet import Supernet
from ofa.training.checkpoint import Checkpoint
from ofa.training.config import TrainConfig
from ofa.training.data import Images, steps_per_epoch, training_batch
from search.joint.alpha_search import AlphaSearch, Losses, fresh_alphas
from search.joint.cyclic import (
    FeatureEnsemble,
    Features,
    absolute_sum,
    derive_weighted,
    distillation_loss,
    edge_probabilities,
)
from search.joint.cyclic_config import CyclicConfig
from search.joint.images import SearchImages
from search.joint.relaxation import DartsCells, Found, found_cells
from search.joint.stepping import Optimizers

CELLS = ("normal", "reduce")
BETAS = {cell: f"{cell}_edges" for cell in CELLS}  # name among the alphas

Batch = tuple[Tensor, Tensor]  # images and labels
Pass = tuple[Tensor, Sequence[Tensor]]  # logits, features after two stages


class CyclicSearch(AlphaSearch):
    """Two networks and the alphas.

    E is a path through a supernet of its size, which holds weights for every operation on every edge: it is the pool from which
    the paper copies weights into each newly derived network, and to which it copies them back. Calling the supernet with the
    derived architecture runs and trains just the chosen operations, in place.
    """

    def __init__(self, run: Run, config: CyclicConfig, images: SearchImages, device: torch.device) -> None:
        torch.manual_seed(config.seed)
        self.config, self.images, self.device = config, images, device
        classes = run.num_classes
        self.space = replace(
            SPACE.with_numbers(cells=config.evaluation_cells, channels=config.channels, resolution=config.resolution),
            num_classes=classes,
        )
        self.searched = MixedNetwork(classes, cells=config.cells, channels=config.channels, pool_norm=False)
        self.evaluated = Supernet(self.space)
        self.ensemble = FeatureEnsemble(
            config.channels, config.resolution, classes, join=config.ensemble, learned=config.learn_ensemble
        )
        networks = nn.ModuleDict({"search": self.searched, "evaluation": self.evaluated, "ensemble": self.ensemble})
        edges = DartsCells(resolution=config.resolution).edges
        shapes: dict[str, tuple[int, ...]] = {cell: (len(edges[cell]), len(PRIMITIVES)) for cell in CELLS}
        if config.edge_weights == "learned":
            shapes |= {BETAS[cell]: (len(edges[cell]),) for cell in CELLS}
        halves = [steps_per_epoch(half, config.batch_size) for half in (images.weights, images.alphas)]
        super().__init__(
            run,
            networks.to(device, memory_format=torch.channels_last),  # type: ignore[call-overload]
            fresh_alphas(shapes, config.seed, device),
            epoch_steps=max(1, int(config.sample_ratio * min(halves))),
            epochs=config.epochs,
            advice=f"start again with a lower --lr (now {config.lr:g}) or --evaluation-lr (now {config.evaluation_lr:g})",
        )
        self.optimizer = self._sgd([{"params": list(self.searched.parameters())}], config.lr)
        self.alpha_optimizer = torch.optim.Adam(
            self.alphas.parameters(), lr=config.alpha_lr, betas=(0.5, 0.999), weight_decay=config.alpha_weight_decay
        )
        self.batches = [TrainConfig(batch_size=config.batch_size, seed=config.seed ^ half) for half in (0, 1)]
        self.noted: dict[str, tuple[float, int]] = {}  # sum and number of this epoch's values
        self._choose(self._derived())

    # -- what alphas say -----------------------------------------------------------------------------------------------

    def probabilities(self) -> dict[str, Tensor]:
        return {cell: self.alphas[cell].softmax(-1) for cell in CELLS}

    def found(self, *, limited: bool = True) -> Found:
        return found_cells(self._derived(), SPACE.with_numbers(resolution=self.config.resolution))

    def _edges(self) -> dict[str, Tensor]:
        """Return cell -> (edges,), what the sum of an edge's operations is multiplied by; nothing if not at all."""
        if self.config.edge_weights == "none":
            return {}
        learned = self.config.edge_weights == "learned"
        betas = {cell: self.alphas[BETAS[cell]] if learned else torch.zeros_like(self.alphas[cell][:, 0]) for cell in CELLS}
        return {cell: edge_probabilities(beta) for cell, beta in betas.items()}

    def _weighting(self) -> list[Tensor]:
        """Return what a pass of S takes, of normal and reduction cells."""
        edges = self._edges()
        return [p * edges[cell].unsqueeze(1) if edges else p for cell, p in self.probabilities().items()]

    @torch.no_grad()
    def _derived(self) -> Genotype:
        return derive_weighted(self.probabilities(), self._edges())

    # -- which network E is --------------------------------------------------------------------------------------------

    def _choose(self, genotype: Genotype) -> None:
        """Let E be a derived network; its momentum, and that of the heads, begins anew."""
        self.genotype, self.arch = genotype, self.space.from_genotype(genotype)
        self.evaluated.zero_grad(set_to_none=True)  # gradients of the network before would stay for ever
        own = parameters_of(self.evaluated, self.arch)
        self.taught = [*own, *self.ensemble.parameters()]
        # Two groups, as the heads' momentum begins later: a fused step cannot mix tensors with and without
        groups = [{"params": own}, {"params": list(self.ensemble.parameters())}]
        self.evaluation_optimizer = self._sgd(groups, self.config.evaluation_lr)

    def state(self) -> dict[str, Any]:
        return {**super().state(), "evaluated": str(self.genotype), "noted": self.noted}

    def restore(self, checkpoint: Checkpoint) -> None:
        super().restore(checkpoint)
        state = checkpoint.state()
        self.noted = {name: (float(total), int(count)) for name, (total, count) in state["noted"].items()}
        genotype = parse_genotype(str(state["evaluated"]))
        assert isinstance(genotype, Genotype)
        self._choose(genotype)

    def optimizers(self) -> Optimizers:
        return [
            ("sgd|", self.net, self.optimizer),
            ("evaluation|", self.net, self.evaluation_optimizer),
            ("adam|", self.alphas, self.alpha_optimizer),
        ]

    def _sgd(self, groups: list[dict[str, Any]], lr: float) -> torch.optim.SGD:
        return torch.optim.SGD(groups, lr=lr, momentum=self.config.momentum, weight_decay=self.config.weight_decay, fused=True)

    # -- steps ---------------------------------------------------------------------------------------------------------

    def one_step(self) -> Losses:
        """Return the loss of S, in a warm-up that of E, and the joint one."""
        self.net.train()
        epoch, config = self.epoch, self.config
        position, within = config.position(epoch), self.step % self.epoch_steps
        before = (config.pretrain_epochs if position.phase != "pretrain" else epoch) + position.joint  # epochs of S's weights
        others = epoch - config.pretrain_epochs  # epochs of the other half
        if position.phase == "pretrain":
            return self._search_step(before * self.epoch_steps + within), None
        if within == 0 and others % (config.warmup_epochs + config.cycle_epochs) == 0:
            self._choose(self._derived())
        batch = self._batch(1, others * self.epoch_steps + within)
        if position.phase == "warmup":
            return self._warmup_step(batch), None
        joint = self._joint_step(batch)
        return self._search_step(before * self.epoch_steps + within), joint

    def _search_step(self, number: int) -> float:
        """A step of S's weights."""
        images, labels = self._batch(0, number)
        self.optimizer.zero_grad(set_to_none=True)
        with torch.no_grad():
            weighting = self._weighting()
        loss = F.cross_entropy(self.searched(images, *weighting), labels)
        loss.backward()
        self._move(self.optimizer, self.config.learning_rate(self.epoch))
        return self._note("loss", loss)

    def _warmup_step(self, batch: Batch) -> float:
        """A step of E's weights alone."""
        images, labels = batch
        self.evaluation_optimizer.zero_grad(set_to_none=True)
        logits = self.evaluated(images, self.arch)
        loss = F.cross_entropy(logits, labels)
        loss.backward()
        self._move(self.evaluation_optimizer, self.config.evaluation_rate(self.epoch))
        self._note("evaluation_top1", _top1(logits, labels))
        return self._note("evaluation_loss", loss)

    def _joint_step(self, batch: Batch) -> float:
        """A step of E's weights, the heads and the alphas."""
        config, (images, labels) = self.config, batch
        self.evaluation_optimizer.zero_grad(set_to_none=True)
        self.alpha_optimizer.zero_grad(set_to_none=True)
        logits, features = self._pass_evaluated(images)
        with torch.set_grad_enabled(not config.detach_teacher):
            teacher = self.ensemble(features, logits)
        evaluation_loss = F.cross_entropy(logits, labels) / config.loss_alpha
        total = evaluation_loss
        if config.detach_teacher:  # nothing else reaches E: its activations go before those of S come
            self._differentiate(evaluation_loss)
            total = evaluation_loss.detach()
        self._note("evaluation_top1", _top1(logits, labels))
        del logits, features
        logits, features = self._pass_searched(images)
        search_loss = F.cross_entropy(logits, labels) / config.loss_alpha
        distilled = distillation_loss(
            self.ensemble(features, logits),
            teacher,
            kind=config.distillation,
            temperature=config.temperature,
            kl_reduction=config.kl_reduction,
        )
        norm = absolute_sum({cell: self.alphas[cell] for cell in CELLS}, config.penalised)
        total = total + search_loss + config.loss_alpha * distilled + config.penalty_at(self.epoch) * norm
        self._differentiate(total)
        self._note("alpha_top1", _top1(logits, labels))
        self._note("evaluation_loss", evaluation_loss * config.loss_alpha)
        self._note("distillation", distilled)
        self._note("penalised_norm", norm)
        self._move(self.evaluation_optimizer, config.evaluation_rate(self.epoch))
        self.alpha_optimizer.step()
        return self._note("alpha_loss", total)

    def _pass_evaluated(self, images: Tensor) -> Pass:
        seen = Features(self.config.evaluation_cells)
        return self.evaluated(images, self.arch, observe=seen), seen.outputs

    def _pass_searched(self, images: Tensor) -> Pass:
        seen = Features(self.config.cells)
        self.searched.requires_grad_(False)  # what only its weights' gradients need is neither kept nor computed
        try:
            return self.searched(images, *self._weighting(), observe=seen), seen.outputs
        finally:
            self.searched.requires_grad_(True)

    def _differentiate(self, loss: Tensor) -> None:
        """Add gradients of what a joint step moves."""
        loss.backward(inputs=[*self.taught, *self.alphas.parameters()])

    def _move(self, optimizer: torch.optim.Optimizer, lr: float) -> None:
        if self.config.clip_norm:
            nn.utils.clip_grad_norm_([p for group in optimizer.param_groups for p in group["params"]], self.config.clip_norm)
        for group in optimizer.param_groups:
            group["lr"] = lr
        optimizer.step()

    def _batch(self, half: int, number: int) -> Batch:
        """Batch number `number` of S's half (0) or of the other (1): passes over it, each in an order of its own."""
        own: Images = self.images.alphas if half else self.images.weights
        images, labels = training_batch(own, number, self.batches[half], flip=self.images.preprocess.flip)
        images, labels = images.to(self.device), labels.to(self.device)
        return self.images.preprocess(images, self.config.resolution), labels

    # -- what is noted -------------------------------------------------------------------------------------------------

    def _note(self, name: str, value: Tensor) -> float:
        found = float(value.detach())
        total, count = self.noted.get(name, (0.0, 0))
        self.noted[name] = (total + found, count + 1)
        return found

    def facts(self, epoch: int, losses: Sequence[Losses]) -> dict[str, Any]:
        """Return means over the epoch's batches: accuracy of E on images that it learns from, of S on images that it does not."""
        position = self.config.position(epoch)
        means = {name: total / count for name, (total, count) in self.noted.items()}
        self.noted.clear()
        rates = {"lr": self.config.learning_rate(epoch), "evaluation_lr": self.config.evaluation_rate(epoch)}
        named = {} if position.phase == "pretrain" else {"cycle": position.cycle, "evaluated": str(self.genotype)}
        return {"phase": position.phase, **rates, **means, **named}


def parameters_of(supernet: Supernet, arch: ArchConfig) -> list[nn.Parameter]:
    """Return the parameters that a pass of an architecture uses, in a space whose operations share none."""
    space = supernet.space
    names = (name for block, spec in space.blocks(arch).items() for name in (block, f"{block}_{space.weight_group(spec)}"))
    return [p for name in names if name in supernet.layers for p in supernet.layers[name].parameters()]


def _top1(logits: Tensor, labels: Tensor) -> Tensor:
    return (logits.detach().argmax(1) == labels).float().mean()
