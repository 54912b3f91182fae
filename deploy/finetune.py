"""Quantisation-aware fine-tuning: a network is trained on as it will be rounded, taught by itself in fp32.

What is trained is the file: the graph that `emit` writes runs node by node in torch, its weights replaced by those being trained,
rounded anew at every step as the file would hold them, with a scale for each channel from its largest weight; the grids of
activations stay those of calibration. Rounding has no gradient of its own: it passes on what it gets (straight-through), and
nothing to activations beyond the ends of their grid. BatchNorm is folded, so that no statistics move.

Source: Jacob et al. 2018 (arXiv 1712.05877), section 3; distillation from the unrounded network as in Mishra and Marr 2018
(arXiv 1711.05852), scheme 3.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
import torch
from torch import Tensor
from torch.nn import functional as F

from deploy.device import get_device
from deploy.emit import emit
from deploy.graphs import Scales, Weights
from deploy.parity import REFERENCE_DEVICE
from deploy.precision import grid_of
from deploy.runtimes import open_session
from deploy.runtimes.torch_eager import Program
from ofa.block_spec import BlockSpec
from ofa.errors import OfaError
from ofa.progress import progress
from ofa.training.calibration import top1
from ofa.training.config import TrainConfig
from ofa.training.data import Images, Preprocessing, steps_per_epoch, training_batch
from ofa.training.distillation import kl_divergence
from ofa.training.schedule import learning_rate

LABELS = 1.0  # weight of what labels teach, beside the fp32 network
BIAS_STEPS = 2**30  # of int32, that a bias may take (deploy.graphs)


@dataclass(frozen=True)
class FineTuned:
    """Weights that suffer less from rounding."""

    weights: Weights = field(repr=False)
    scales: Scales = field(repr=False)
    top1: tuple[float, ...]  # of the emitted file on validation images: before, then after every epoch
    best_epoch: int  # whose weights these are; 0 = those of before


def finetune_quantised(
    blocks: Mapping[str, BlockSpec],
    weights: Weights,
    scales: Scales,
    layers: Mapping[str, str],
    train: Images,
    validation: Images,
    preprocess: Preprocessing,
    *,
    epochs: int,
    precision: str = "int8",
    lr: float = 1e-3,
    batch_size: int = 128,
    seed: int = 0,
    teacher: Weights | None = None,
) -> FineTuned:
    """Train a network on as it will be rounded, taught by itself in fp32.

    Args:
        blocks: name -> block, in execution order.
        weights: folded weights to begin with.
        scales: of activations (deploy.quantize).
        layers: layer -> its own precision, as for `emit`.
        train: images to learn from; `preprocess.flip` says whether they may be mirrored.
        validation: images by which the best epoch is kept.
        epochs: passes over the training images.
        precision: of the network.
        lr: peak learning rate.
        seed: of the order of images and their augmentation.
        teacher: weights of the fp32 network that teaches; None = `weights`.
    Raises:
        OfaError: if the loss is not finite.
    """
    config = TrainConfig(epochs=epochs, batch_size=min(batch_size, len(train)), lr=lr, seed=seed)
    resolution = next(iter(blocks.values())).resolution
    parameters = {name: torch.tensor(values, requires_grad=True) for name, values in weights.items()}
    taught_by = Program(emit(blocks, weights if teacher is None else teacher))
    student = RoundedNetwork(emit(blocks, weights, precision=precision, scales=scales, layers=layers), precision, layers)

    def trained() -> dict[str, np.ndarray]:
        return {name: parameter.detach().numpy().copy() for name, parameter in parameters.items()}

    def accuracy() -> float:
        content = emit(blocks, trained(), precision=precision, scales=scales, layers=layers)
        session = open_session(content, get_device(REFERENCE_DEVICE))
        return top1(lambda x: torch.from_numpy(session.run(x.contiguous().numpy())), validation, preprocess, resolution)

    optimizer = torch.optim.Adam(parameters.values(), lr=lr)
    best, history = trained(), [accuracy()]
    steps = steps_per_epoch(train, config.batch_size)
    with progress("fine-tuning", epochs * steps) as advance:
        for step in range(epochs * steps):
            for group in optimizer.param_groups:
                group["lr"] = learning_rate("cosine", step, total_steps=epochs * steps, warmup_steps=0, peak=lr)
            images, labels = training_batch(train, step, config, flip=preprocess.flip)
            inputs = preprocess(images, resolution)
            with torch.no_grad():
                target = taught_by(inputs)
            logits = student(inputs, parameters)
            loss = kl_divergence(logits, target) + LABELS * F.cross_entropy(logits, labels)
            if not torch.isfinite(loss):
                raise OfaError(f"the loss of fine-tuning is {loss.item()} at step {step}; choose a learning rate below {lr:g}")
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            advance(note=f"loss {loss.item():.3f}")
            if (step + 1) % steps == 0:
                history.append(accuracy())
                if history[-1] > max(history[:-1]):
                    best = trained()
    return FineTuned(best, scales, tuple(history), int(np.argmax(history)))


class RoundedNetwork:
    """A file in integers as a function of the weights before they were rounded."""

    def __init__(self, content: bytes, precision: str, layers: Mapping[str, str]) -> None:
        self._program = Program(content, {"QuantizeLinear": _Rounded.apply, "DequantizeLinear": lambda x, *_: x})
        nodes = onnx.load_from_string(content).graph.node
        self._layers = {node.output[0].rpartition(".")[0]: list(node.input) for node in nodes if node.op_type in ("Conv", "Gemm")}
        scale_of = {node.output[0]: node.input[1] for node in nodes if node.op_type == "DequantizeLinear"}
        self._grids: dict[str, tuple[int, Tensor]] = {}  # layer -> largest integer of a weight, scale of what it takes
        for name, (x, *_) in self._layers.items():
            grid = grid_of(layers.get(name, precision))
            if grid is not None:
                scale = self._program.constants[scale_of[x]]
                assert scale is not None
                self._grids[name] = grid.most_weight, scale

    def __call__(self, images: Tensor, weights: Mapping[str, Tensor]) -> Tensor:
        """Compute the logits; gradients flow into `weights`, which have the names of the folded ones."""
        given: dict[str, Tensor] = {}
        for name, (_, *tensors) in self._layers.items():
            mine = [weights[f"{name}.{which}"] for which in ("weight", "bias")[: len(tensors)]]
            given.update(zip(tensors, self._rounded(name, *mine), strict=True))
        return self._program(images, given)

    def _rounded(self, name: str, weight: Tensor, bias: Tensor | None = None) -> list[Tensor]:
        """Round a layer's tensors by the rule of deploy.graphs."""
        if name not in self._grids:
            return [weight] if bias is None else [weight, bias]
        most, input_scale = self._grids[name]
        scale = weight.detach().abs().flatten(1).amax(1).clamp(min=1e-30) / most  # (out_channels,)
        if bias is not None:
            scale = torch.maximum(scale, bias.detach().abs() / (input_scale * BIAS_STEPS))
        rounded = [_straight(weight, scale.reshape(-1, *[1] * (weight.ndim - 1)))]
        return rounded if bias is None else [*rounded, _straight(bias, input_scale * scale)]


class _Rounded(torch.autograd.Function):
    """Round to a grid with two ends; inside them the gradient passes, beyond it does not."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor, zero_point: Tensor) -> Tensor:
        bounds, zero = torch.iinfo(zero_point.dtype), int(zero_point)
        steps = (x / scale).round_()
        low, high = bounds.min - zero, bounds.max - zero
        ctx.save_for_backward((steps >= low) & (steps <= high))
        return steps.clamp_(low, high).mul_(scale)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        (inside,) = ctx.saved_tensors
        return gradient * inside, None, None


class _Straight(torch.autograd.Function):
    """Round to multiples of a scale; the gradient passes."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor) -> Tensor:
        return (x / scale).round_().mul_(scale)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient, None


def _straight(x: Tensor, scale: Tensor) -> Tensor:
    found: Tensor = _Straight.apply(x, scale)
    return found
