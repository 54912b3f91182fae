"""Convolutions that train as they will be rounded: few bits for their weights and for what they take.

Weights of b bits are the odd multiples -(2^b - 1), ..., -1, 1, ..., 2^b - 1 of a step of their output channel: the levels of
DoReFa-Net. What a convolution takes is clipped at a learned alpha and rounded to 2^b levels from 0 to alpha, as in PACT, or,
where it has signs, to integers from 1 - 2^(b-1) to 2^(b-1) of alpha / 2^(b-1). Zero is one of these always, since a file's
integers have a zero point; of one bit 0 and alpha are left. Gradients pass the rounding (straight-through).

Sources: Zhou et al. 2016 (DoReFa-Net, arXiv 1606.06160, sections 2.2 and 2.3), Choi et al. 2018 (PACT, 1805.06085, section 3);
an alpha for each bit width as in Jin et al. 2020 (AdaBits, 1912.09666, switchable clipping levels). Unlike DoReFa-Net's, a step
is a channel's own, which BatchNorm takes up, and follows from the mean magnitude of its weights, not from the largest tanh.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ofa.block_spec import BlockSpec, takes_bits
from ofa.errors import OfaError

MOST_BITS = 8  # containers in a file have as many
# Distance of the levels with the least squared error for normal weights, in mean magnitudes, of 1 to 7 bits (Max 1960, table II,
# there in standard deviations). Of one bit it is 2: the sign times the mean magnitude, as in DoReFa-Net.
DISTANCES = tuple(distance * (torch.pi / 2) ** 0.5 for distance in (1.5958, 0.9957, 0.5860, 0.3352, 0.1881, 0.1041, 0.0569))
# Alpha with the least squared error for normal values of variance 1, as BatchNorm gives them at first; of 1 to 8 bits
FIRST_CLIPS = {
    False: (1.224, 1.952, 2.474, 2.899, 3.270, 3.607, 3.920, 4.215),  # after a ReLU
    True: (1.224, 2.097, 2.407, 2.709, 3.021, 3.334, 3.641, 3.938),
}
LEAST_CLIP = 1e-6
LEAST_STEP = 1e-20  # of a channel of zeros, for any purpose
ENDING_IN_RELU = ("shuffle", "xception", "bottleneck")  # kinds whose blocks, and so those before them, end in a ReLU
WITH_BITS = (*ENDING_IN_RELU, "conv", "mbconv")
CHAINS = ("branch", "projection", "shortcut")  # parts of a block that read its input, besides the block itself


class Levels(NamedTuple):
    """Integers that stand for what a convolution takes."""

    low: int
    high: int

    @classmethod
    def of(cls, bits: int, *, signed: bool) -> Levels:
        return cls(1 - 2 ** (bits - 1), int(2 ** (bits - 1))) if signed else cls(0, int(2**bits) - 1)


class RoundedConv2d(nn.Conv2d):
    """A convolution that rounds its weights and what it takes."""

    def __init__(self, like: nn.Conv2d, weight_bits: int, activation_bits: int, *, signed: bool) -> None:
        """Make one of the shape of another.

        Args:
            signed: whether what it takes has signs, as after a BatchNorm without ReLU.
        """
        size = (like.kernel_size, like.stride, like.padding, like.dilation, like.groups)
        super().__init__(like.in_channels, like.out_channels, *size, bias=like.bias is not None)  # type: ignore[arg-type]
        self.weight_bits, self.levels = weight_bits, Levels.of(activation_bits, signed=signed)
        # of 1, 2, ... bits; the last counts. So those of all bit widths that share weights are the first of the widest's
        self.clip = nn.Parameter(torch.tensor(FIRST_CLIPS[signed][:activation_bits]))

    def forward(self, x: Tensor) -> Tensor:
        weight = rounded_weights(self.weight, self.weight_bits)
        return F.conv2d(self.taken(x), weight, self.bias, self.stride, self.padding, self.dilation, self.groups)

    def taken(self, x: Tensor) -> Tensor:
        """Return what is made of the input before it is convolved."""
        clip = self.clip[-1]
        out: Tensor = _Clipped.apply(x.to(torch.promote_types(x.dtype, clip.dtype)), clip, self.levels)  # never in bf16
        return out

    @property
    def input_step(self) -> Tensor:
        """Distance of the levels of what is taken, a scalar."""
        return _input_step(self.clip[-1], self.levels)


def weight_steps(weight: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """Return integers in the shape of the weights and, for each output channel, the step that they count, (out,).

    Integers are odd below eight bits; of eight, all from -127 to 127, since odd ones would need nine.
    """
    flat = weight.detach().flatten(1)
    if bits == MOST_BITS:
        most = 2 ** (bits - 1) - 1
        step = (flat.abs().amax(1) / most).clamp(min=LEAST_STEP)
        return (flat / step[:, None]).round_().clamp_(-most, most).view_as(weight), step
    step = (flat.abs().mean(1) * (DISTANCES[bits - 1] / 2)).clamp(min=LEAST_STEP)
    most = 2**bits - 1
    return (flat / (2 * step[:, None])).floor_().mul_(2).add_(1).clamp_(-most, most).view_as(weight), step


def rounded_weights(weight: Tensor, bits: int) -> Tensor:
    """Return weights (out, in, k, k) on their channels' grids; the gradient passes."""
    out: Tensor = _Rounded.apply(weight, bits)
    return out


class _Rounded(torch.autograd.Function):
    """Rounding of weights, straight-through."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, bits: int) -> Tensor:
        integers, step = weight_steps(weight, bits)
        return integers.mul_(step.view(-1, *[1] * (weight.ndim - 1)))

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient, None


class _Clipped(torch.autograd.Function):
    """Clipping and rounding of what is taken.

    Inside the ends the gradient passes. Beyond them it goes to alpha, which moves the upper end by 1 and the lower by low / high
    (PACT, equation 3, and its mirror image).
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, clip: Tensor, levels: Levels) -> Tensor:
        step = _input_step(clip, levels)
        steps = x / step
        ctx.save_for_backward(steps, clip)
        ctx.levels = levels
        return steps.round().clamp_(*levels).mul_(step)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None]:
        steps, clip = ctx.saved_tensors
        low, high = ctx.levels
        # one pass each; a product with a mask takes three times as long on a processor
        beyond = torch.ops.aten.threshold_backward(gradient, steps, high).sum()
        if low:
            beyond = beyond + torch.ops.aten.threshold_backward(gradient, -steps, -low).sum() * (low / high)
        return torch.ops.aten.hardtanh_backward(gradient, steps, low, high), beyond * clip.sign(), None


def _input_step(clip: Tensor, levels: Levels) -> Tensor:
    return clip.abs().clamp(min=LEAST_CLIP) / levels.high  # alpha is a magnitude: a step of the optimiser may carry it past zero


def give_bits(block: nn.Module, spec: BlockSpec) -> None:
    """Let the convolutions of a block round as its spec says.

    Raises:
        OfaError: if the block cannot have these bits.
    """
    bits = (spec.weight_bits, spec.activation_bits)
    if spec.kind not in WITH_BITS:
        raise OfaError(f"block {spec}: a {spec.kind} has no bits of its own, only: {', '.join(WITH_BITS)}")
    if not all(1 <= number <= MOST_BITS for number in bits):
        raise OfaError(f"block {spec}: bits are {bits}, expected 1 to {MOST_BITS} for weights and for activations")
    signs: dict[str, bool] = {}  # chain -> whether what its next convolution takes has signs
    for path, module in list(block.named_modules()):
        chain = path.split(".")[0] if path.split(".")[0] in CHAINS else ""
        for name, child in list(module.named_children()):
            if isinstance(child, nn.Conv2d) and takes_bits(path):
                signed = signs.get(chain, spec.kind not in ENDING_IN_RELU)
                setattr(module, name, RoundedConv2d(child, *bits, signed=signed))
                signs[chain] = not isinstance(getattr(module, "act", None), nn.ReLU | nn.ReLU6)


def has_bits(net: nn.Module) -> bool:
    """Tell whether a network rounds."""
    return any(isinstance(module, RoundedConv2d) for module in net.modules())
