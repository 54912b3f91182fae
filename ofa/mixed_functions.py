"""Two operations of the search network that autograd alone does slowly: depthwise convolutions of all edges, and sums of a node.

Their gradients are written out for speed; asked to differentiate twice, they fall back on autograd.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

Gradients = tuple[Tensor | None, ...]


def depthwise(x: Tensor, weight: Tensor, edges: int = 1, *, stride: int = 1, dilation: int = 1) -> Tensor:
    """Convolve every channel with a kernel of each edge.

    Args:
        x: (n, c, h, w), channels last in memory.
        weight: (edges * c, 1, k, k), edge by edge, k odd.
        edges: that leave x.
        stride: of the output's pixels.
        dilation: of the kernel's.

    Returns:
        (n, edges * c, h / stride, w / stride).
    """
    if dilation > 1:
        return _plain_depthwise(x, weight, edges, stride, dilation)
    return _Depthwise.apply(x, weight, edges, stride)


def weighted_sum(weights: Tensor, weighted: Sequence[Tensor], others: Sequence[Tensor] = ()) -> Tensor:
    """Add tensors of one shape: some times a number each, (len(weighted),), and the others as they are."""
    return _WeightedSum.apply(weights, *weighted, *others)


def _plain_depthwise(x: Tensor, weight: Tensor, edges: int, stride: int, dilation: int = 1) -> Tensor:
    padding = weight.shape[-1] // 2 * dilation
    return F.conv2d(_repeat(x, edges), weight, None, stride, padding, dilation, len(weight))


def _repeat(x: Tensor, edges: int) -> Tensor:
    return x if edges == 1 else torch.cat([x] * edges, 1)


class _Depthwise(torch.autograd.Function):
    """Keeps x once instead of once an edge, and has fast gradients of 5x5 kernels."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, edges: int, stride: int) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.edges, ctx.stride = edges, stride
        return _plain_depthwise(x, weight, edges, stride)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Gradients:
        (x, weight), edges, stride = ctx.saved_tensors, ctx.edges, ctx.stride
        g = grads[0].contiguous(memory_format=torch.channels_last)
        if torch.is_grad_enabled():
            return *_again(lambda x, weight: _plain_depthwise(x, weight, edges, stride), (x, weight), g), None, None
        gx = gw = None
        if ctx.needs_input_grad[0]:
            if stride == 1:  # forward kernels are faster than those of the gradient
                wide = F.conv2d(g, weight.flip(2, 3), None, 1, weight.shape[-1] // 2, 1, len(weight))
            else:
                wide = _convolution_backward(g, _repeat(x, edges), weight, stride)[0]
            gx = wide if edges == 1 else _sum(wide.chunk(edges, 1))
        if ctx.needs_input_grad[1]:
            gw = _weight_gradient(g, x, weight, edges, stride)
        return gx, gw, None, None


def _weight_gradient(g: Tensor, x: Tensor, weight: Tensor, edges: int, stride: int) -> Tensor:
    """Gradient of kernels; oneDNN has it vectorised to a width of 3, and takes ten times as long beyond.

    Stride 1: columns 0 to 2 and 2 to 4 are kernels of 5x3 on images with two columns of zeros before each row, or behind it.
    That is the same buffer, read from its first pixel or its third. Stride 2: even and odd rows and columns of the kernel meet
    even and odd ones of the image, as kernels of 3x3 with stride 1.
    """
    n, c, h, w = x.shape
    if weight.shape[-1] != 5 or (stride == 2 and (h % 2 or w % 2)):
        return _convolution_backward(g, _repeat(x, edges), weight, stride, weights=True)[1]
    if stride == 2:
        gradient = torch.empty_like(weight)
        for i in (0, 1):
            for j in (0, 1):
                pixels = _repeat(x[:, :, i::2, j::2].contiguous(memory_format=torch.channels_last), edges)
                part = _convolution_backward(g, pixels, weight[:, :, :3, :3], 1, weights=True)[1]
                gradient[:, :, i::2, j::2] = part[:, :, : 3 - i, : 3 - j]
        return gradient
    wide = edges * c
    buffer = x.new_empty(n * h * (w + 2) + 2, wide)
    shape, strides = (n, wide, h, w + 2), (h * (w + 2) * wide, 1, (w + 2) * wide, wide)
    before, behind = buffer.as_strided(shape, strides), buffer.as_strided(shape, strides, 2 * wide)
    behind.unflatten(1, (edges, c))[..., :w] = x[:, None]
    behind[..., w:] = 0
    buffer[:2] = 0
    halves = [_convolution_backward(g, image, weight[..., :3], 1, (2, 0), weights=True)[1] for image in (before, behind)]
    return torch.cat([halves[0], halves[1][..., 1:]], 3)


def _convolution_backward(
    g: Tensor, x: Tensor, weight: Tensor, stride: int, padding: tuple[int, int] | None = None, *, weights: bool = False
) -> tuple[Tensor, Tensor, Tensor]:
    strides, paddings = (stride, stride), padding or (weight.shape[2] // 2, weight.shape[3] // 2)
    return torch.ops.aten.convolution_backward(
        g, x, weight, None, strides, paddings, (1, 1), False, (0, 0), len(weight), (not weights, weights, False)
    )


class _WeightedSum(torch.autograd.Function):
    """One buffer and one pass a term, forward and backward."""

    @staticmethod
    def forward(ctx: Any, weights: Tensor, *tensors: Tensor) -> Tensor:
        ctx.save_for_backward(weights, *tensors[: len(weights)])
        ctx.others = len(tensors) - len(weights)
        numbers = weights.tolist() + [1.0] * ctx.others
        total = tensors[-1] * numbers[-1]
        for tensor, number in zip(tensors[:-1], numbers, strict=False):
            total.add_(tensor, alpha=number)
        return total

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Gradients:
        (weights, *tensors), others = ctx.saved_tensors, [grads[0]] * ctx.others
        g = grads[0].contiguous(memory_format=torch.channels_last)
        if torch.is_grad_enabled() and tensors:
            return *_again(_plain_weighted_sum, (weights, *tensors), g), *others
        flat = _flat(g)
        products = [torch.dot(flat, _flat(tensor)) for tensor in tensors] if ctx.needs_input_grad[0] else []
        of_weights = torch.stack(products) if products else torch.zeros_like(weights)
        of_tensors = [
            g * number if wanted else None
            for number, wanted in zip(weights.tolist(), ctx.needs_input_grad[1 : 1 + len(tensors)], strict=True)
        ]
        return of_weights, *of_tensors, *others


def _plain_weighted_sum(weights: Tensor, *tensors: Tensor) -> Tensor:
    return sum((w * tensor for w, tensor in zip(weights[1:], tensors[1:], strict=True)), weights[0] * tensors[0])


def _flat(x: Tensor) -> Tensor:
    return x.permute(0, 2, 3, 1).reshape(-1)


def _sum(tensors: Sequence[Tensor]) -> Tensor:
    total = tensors[0].clone(memory_format=torch.channels_last)
    for tensor in tensors[1:]:
        total.add_(tensor)
    return total


def _again(plain: Callable[..., Tensor], inputs: Sequence[Tensor], g: Tensor) -> Gradients:
    """Gradients that can be differentiated, from a second run of the operation under autograd."""
    inputs = [tensor.view_as(tensor) for tensor in inputs]  # cut off from each other: one may have been made of another
    wanted = [tensor for tensor in inputs if tensor.requires_grad]
    gradients = iter(torch.autograd.grad(plain(*inputs), wanted, g, create_graph=True, materialize_grads=True))
    return tuple(next(gradients) if tensor.requires_grad else None for tensor in inputs)
