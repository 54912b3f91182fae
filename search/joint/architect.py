"""Gradients of architecture parameters (alphas) in a bilevel search, for any network.

Weights are to minimise the training loss, alphas the validation loss of those weights. Liu et al. 2019 (DARTS, arXiv 1806.09055),
section 2.3: take the weights as they are (first order), or as one step of training would leave them (second order), whose
dependence on the alphas brings in a product of the mixed second derivative and a vector. As published, that product is a finite
difference with steps of 0.01 in all weights. In networks with ReLU and max pooling the difference is NOT close to the derivative
(steps of this size cross many kinks), so that the exact product is another search and has another name here.

Losses are functions without arguments that run the network on a batch fixed beforehand. Weights are moved in place and put back
bit by bit; no second network is built. BatchNorm's running statistics do see the additional passes. Searches of
images normalise by the batch and never read them; the search of a recurrent cell reads them where it measures its network after
an epoch, which nothing follows from but a line in its metrics.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor

Loss = Callable[[], Tensor]

PERTURBATION = 0.01  # length of a finite difference's step in all weights together


class AlphaGradients(NamedTuple):
    """What an alpha step needs."""

    loss: Tensor  # validation loss, detached; in second order, of the unrolled weights
    gradients: tuple[Tensor, ...]  # one for each tensor of alphas


def first_order(valid_loss: Loss, alphas: Sequence[Tensor], *, weights: Sequence[Tensor] = ()) -> AlphaGradients:
    """Return the gradients of the validation loss at the present weights; the weights' `.grad` stay as they are.

    Weights that are named are no variables meanwhile, which saves a third of the pass.
    """
    with _frozen(weights):
        loss = valid_loss()
        return AlphaGradients(loss.detach(), _gradients(loss, alphas))


def second_order(
    train_loss: Loss,
    valid_loss: Loss,
    weights: Sequence[Tensor],
    alphas: Sequence[Tensor],
    *,
    eta: float,
    momentum: float = 0.0,
    buffers: Sequence[Tensor | None] | None = None,
    weight_decay: float = 0.0,
    clip: float | None = None,
    unmoved: Sequence[Tensor] = (),
) -> AlphaGradients:
    """Return the gradients through one step of SGD on the weights, as published: five passes, with a finite difference.

    Args:
        train_loss: loss on a training batch, called three times; once if the validation loss has no gradient.
        valid_loss: loss on a validation batch, called once.
        weights: leaf tensors that the step moves; put back before this returns, also when a loss raises.
        alphas: leaf tensors that both losses depend on.
        eta: learning rate of the step.
        momentum: factor of the buffers.
        buffers: the optimiser's momentum of each weight (see `momentum_buffers`); None where it has none yet.
        weight_decay: L2 penalty in the step.
        clip: global norm that gradients are clipped to (recurrent networks): the one of the step, whose coefficient scales the
            product too, and the vector of the product.
        unmoved: weights that the step leaves alone. The published recurrent code loses the step of its tied embedding this way.
    """
    direct, vector, scale = _unrolled(
        train_loss, valid_loss, weights, alphas, eta, momentum, buffers, weight_decay, clip, unmoved
    )
    length = float(_norm(vector))
    if length == 0:  # no direction, and nothing to multiply with
        return direct
    radius = PERTURBATION / length
    with _restored(weights), _frozen(weights):
        _add(weights, vector, radius)
        plus = _gradients(train_loss(), alphas)
        _add(weights, vector, -2 * radius)
        minus = _gradients(train_loss(), alphas)
    products = [(p - m) / (2 * radius) for p, m in zip(plus, minus, strict=True)]
    return _minus(direct, products, scale)


def second_order_exact(
    train_loss: Loss,
    valid_loss: Loss,
    weights: Sequence[Tensor],
    alphas: Sequence[Tensor],
    *,
    eta: float,
    momentum: float = 0.0,
    buffers: Sequence[Tensor | None] | None = None,
    weight_decay: float = 0.0,
    clip: float | None = None,
    unmoved: Sequence[Tensor] = (),
) -> AlphaGradients:
    """Return what `second_order` approximates: the same with the exact product, by differentiating twice.

    It needs the memory of a graph of gradients, about three times that of a pass.
    """
    direct, vector, scale = _unrolled(
        train_loss, valid_loss, weights, alphas, eta, momentum, buffers, weight_decay, clip, unmoved
    )
    gradients = torch.autograd.grad(train_loss(), list(weights), create_graph=True, materialize_grads=True)
    products = _gradients(torch.stack([(g * v).sum() for g, v in zip(gradients, vector, strict=True)]).sum(), alphas)
    return _minus(direct, products, scale)


def momentum_buffers(optimizer: torch.optim.Optimizer, weights: Sequence[Tensor]) -> list[Tensor | None]:
    """Return SGD's momentum of every weight, None before its first step; the optimiser's state is only looked at."""
    return [optimizer.state[weight].get("momentum_buffer") if weight in optimizer.state else None for weight in weights]


def _unrolled(
    train_loss: Loss,
    valid_loss: Loss,
    weights: Sequence[Tensor],
    alphas: Sequence[Tensor],
    eta: float,
    momentum: float,
    buffers: Sequence[Tensor | None] | None,
    weight_decay: float,
    clip: float | None,
    unmoved: Sequence[Tensor],
) -> tuple[AlphaGradients, list[Tensor], float]:
    """Validation loss and gradients after a step: of the alphas, of the weights, and the factor of the second derivative."""
    steps = list(_gradients(train_loss(), weights))
    coefficient = 1.0 if clip is None else _clip(steps, clip)
    still = {id(weight) for weight in unmoved}
    with _restored(weights), torch.no_grad():
        for weight, step, buffer in zip(weights, steps, buffers or [None] * len(steps), strict=True):
            step.add_(weight, alpha=weight_decay)
            if buffer is not None:
                step.add_(buffer, alpha=momentum)
            if id(weight) not in still:
                weight.sub_(step, alpha=eta)
        del steps
        with torch.enable_grad():
            loss = valid_loss()
        gradients = _gradients(loss, [*alphas, *weights])
    vector = list(gradients[len(alphas) :])
    if clip is not None:
        _clip(vector, clip)
    return AlphaGradients(loss.detach(), gradients[: len(alphas)]), vector, eta * coefficient


def _minus(direct: AlphaGradients, products: Sequence[Tensor], scale: float) -> AlphaGradients:
    return AlphaGradients(direct.loss, tuple(g - scale * p for g, p in zip(direct.gradients, products, strict=True)))


def _gradients(loss: Tensor, tensors: Sequence[Tensor]) -> tuple[Tensor, ...]:
    return torch.autograd.grad(loss, list(tensors), materialize_grads=True)


@contextmanager
def _restored(weights: Sequence[Tensor]) -> Iterator[None]:
    """Put the weights back at the end, to the bit; adding what was subtracted would leave rounding errors behind."""
    copies = [weight.detach().clone() for weight in weights]
    try:
        yield
    finally:
        with torch.no_grad():
            torch._foreach_copy_(list(weights), copies)


@contextmanager
def _frozen(weights: Sequence[Tensor]) -> Iterator[None]:
    """Keep weights from being variables of the passes inside."""
    variables = [weight for weight in weights if weight.requires_grad]
    try:
        for weight in variables:
            weight.requires_grad_(False)
        yield
    finally:
        for weight in variables:
            weight.requires_grad_(True)


def _add(weights: Sequence[Tensor], vector: Sequence[Tensor], factor: float) -> None:
    with torch.no_grad():
        torch._foreach_add_(list(weights), list(vector), alpha=factor)


def _norm(tensors: Sequence[Tensor]) -> Tensor:
    return torch.linalg.vector_norm(torch.stack(torch._foreach_norm(list(tensors))))


def _clip(gradients: list[Tensor], limit: float) -> float:
    """Scale gradients in place to a global norm of at most `limit`; return the coefficient, above 1 if it is smaller."""
    coefficient = limit / (float(_norm(gradients)) + 1e-6)
    if coefficient < 1:
        torch._foreach_mul_(gradients, coefficient)
    return coefficient
