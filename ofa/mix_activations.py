"""All operations of all edges that leave a state of a recurrent cell, in one step with a gradient of its own.

Left to autograd, a state's edges keep eight tensors of their size for the backward pass; this keeps the matrix product alone and
computes the rest again, with fewer passes over memory.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

OPERATIONS = ("none", "tanh", "relu", "sigmoid", "identity")  # the columns of alphas and probabilities


def mix_activations(products: Tensor, state: Tensor, weighting: Tensor) -> Tensor:
    """Return what each node has of a state, sum_f p_f (s + sigmoid(c)(f(g) - s)) over all f but "none": (batch, nodes, features).

    Args:
        products: (batch, nodes, 2, features), gate c and candidate g of each node that reads the state.
        state: s, (batch, features).
        weighting: p, (nodes, 5).
    """
    mixed: Tensor = _Mix.apply(products, state, weighting)
    return mixed


def mix_by_autograd(products: Tensor, state: Tensor, weighting: Tensor) -> Tensor:
    """Compute `mix_activations` in plain operations, which can be differentiated any number of times."""
    gate, g = products.unbind(2)
    _, tanh, relu, sigmoid, identity = weighting.unsqueeze(-1).unbind(1)
    carried = weighting[:, 1:].sum(1, keepdim=True) * state.unsqueeze(1)  # (batch, nodes, features)
    candidate = tanh * torch.tanh(g) + relu * torch.relu(g) + sigmoid * torch.sigmoid(g) + identity * g
    return torch.lerp(carried, candidate, torch.sigmoid(gate))


class _Mix(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, products: Tensor, state: Tensor, weighting: Tensor) -> Tensor:
        ctx.save_for_backward(products, state, weighting)
        gate, g = products.unbind(2)
        _, tanh, relu, sigmoid, identity = weighting.unsqueeze(-1).unbind(1)
        candidate = _tanh(g).mul_(tanh)
        candidate.addcmul_(torch.relu(g), relu).addcmul_(torch.sigmoid(g), sigmoid).addcmul_(g, identity)
        carried = weighting[:, 1:].sum(1, keepdim=True) * state.unsqueeze(1)
        return torch.lerp(carried, candidate, torch.sigmoid(gate))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = gradients
        if torch.is_grad_enabled():  # a gradient of gradients is asked for
            # aliases: products are made of the state, and its gradient by way of them is not ours to add
            inputs = [tensor.view_as(tensor) for tensor in ctx.saved_tensors]
            wanted = [i for i, needed in enumerate(ctx.needs_input_grad) if needed]
            found = torch.autograd.grad(mix_by_autograd(*inputs), [inputs[i] for i in wanted], gradient, create_graph=True)
            return tuple(found[wanted.index(i)] if i in wanted else None for i in range(len(inputs)))
        return _gradients(gradient, *ctx.saved_tensors, of_weighting=ctx.needs_input_grad[2])


def _gradients(
    gradient: Tensor, products: Tensor, state: Tensor, weighting: Tensor, *, of_weighting: bool
) -> tuple[Tensor | None, ...]:
    pre_gate, g = products.unbind(2)
    _, tanh, relu, sigmoid, identity = weighting.unsqueeze(-1).unbind(1)
    kept = weighting[:, 1:].sum(1, keepdim=True)
    gate, t, q, r = torch.sigmoid(pre_gate), _tanh(g), torch.sigmoid(g), torch.relu(g)
    through = gradient * gate  # what reaches the activations
    past = gradient - through  # and the state
    of_products = torch.empty_like(products)
    # sigmoid'(c) (candidate - carried) gradient = (1 - gate) through (candidate - carried)
    candidate = (t * tanh).addcmul_(r, relu).addcmul_(q, sigmoid).addcmul_(g, identity)
    candidate.sub_(kept * state.unsqueeze(1))
    torch.mul(candidate.mul_(through), 1 - gate, out=of_products[:, :, 0])
    slope = (g > 0).to(g.dtype).mul_(relu).add_(identity)
    slope.addcmul_(1 - t * t, tanh).addcmul_(q - q * q, sigmoid)
    torch.mul(slope, through, out=of_products[:, :, 1])
    of_state = (past * kept).sum(1)
    if not of_weighting:
        return of_products, of_state, None
    of_kept = (past * state.unsqueeze(1)).sum((0, 2))
    of_operations = [of_kept + (through * value).sum((0, 2)) for value in (t, r, q, g)]
    return of_products, of_state, torch.stack([torch.zeros_like(of_kept), *of_operations], dim=1)


def _tanh(g: Tensor) -> Tensor:
    """2 sigmoid(2g) - 1: on processors a third of the time of torch.tanh; near zero exact to the last bit of 1, not of tanh."""
    return (g + g).sigmoid_().mul_(2).sub_(1)
