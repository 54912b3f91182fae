"""Blocks as ONNX nodes: one function for each kind. What stands around an operator in a precision is the graph's business."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np

from deploy.graphs import Graph
from ofa.block_spec import BlockSpec, padding
from ofa.shufflenet import branch_channels
from ofa.slots import se_channels


def _conv(g: Graph, x: str, name: str, spec: BlockSpec) -> str:
    channels, window = (spec.in_channels, spec.out_channels), (spec.kernel_size, spec.stride)
    out = g.conv(x, name, *channels, *window, act=spec.act, kernel_width=spec.kernel_width)
    return _add_shortcut(g, x, out, name, spec)


def _mbconv(g: Graph, x: str, name: str, spec: BlockSpec) -> str:
    hidden = spec.hidden_channels
    out = x if hidden == spec.in_channels else g.conv(x, f"{name}.expand", spec.in_channels, hidden, act=spec.act)
    out = g.conv(out, f"{name}.depthwise", hidden, hidden, spec.kernel_size, spec.stride, groups=hidden, act=spec.act)
    if spec.se:
        mean = g.node("GlobalAveragePool", [out], f"{name}.se.mean")
        squeezed = g.conv(mean, f"{name}.se.reduce", hidden, se_channels(spec), act="relu")
        gate = g.conv(squeezed, f"{name}.se.expand", se_channels(spec), hidden)
        gate = g.node("HardSigmoid", [gate], f"{name}.se.gate", alpha=1 / 6, beta=0.5)
        out = g.node("Mul", [out, gate], f"{name}.se")
    out = g.conv(out, f"{name}.project", hidden, spec.out_channels)
    return _add_shortcut(g, x, out, name, spec)


def _bottleneck(g: Graph, x: str, name: str, spec: BlockSpec) -> str:
    hidden = spec.hidden_channels
    out = g.conv(x, f"{name}.reduce", spec.in_channels, hidden, act=spec.act)
    out = g.conv(out, f"{name}.spatial", hidden, hidden, spec.kernel_size, spec.stride, act=spec.act)
    out = g.conv(out, f"{name}.expand", hidden, spec.out_channels)
    return g.activation(spec.act, _add_shortcut(g, x, out, name, spec), f"{name}.act")


def _add_shortcut(g: Graph, x: str, branch: str, name: str, spec: BlockSpec) -> str:
    """Add what the spec's shortcut makes of the block's input (ofa.block_spec.SHORTCUTS)."""
    if spec.shortcut == "none":
        return branch
    if spec.shortcut != "identity" and spec.stride > 1:
        missing = -spec.resolution % spec.stride  # pixels that the last window lacks
        if spec.shortcut == "pool_conv_bn":  # it averages over those that are there
            pads, count = [0, 0, missing, missing], 0
        else:
            pads, count = [(missing + 1) // 2] * 4, 1
        square = {"kernel_shape": [spec.stride] * 2, "strides": [spec.stride] * 2}
        x = g.node("AveragePool", [x], f"{name}.shortcut.pool", pads=pads, count_include_pad=count, **square)
    if spec.shortcut in ("pool_conv", "pool_conv_bn"):
        bias = spec.shortcut == "pool_conv_bn"
        x = g.conv(x, f"{name}.shortcut.conv", spec.in_channels, spec.out_channels, bias=bias)
    return g.node("Add", [branch, x], name)


def _maxpool(g: Graph, x: str, name: str, spec: BlockSpec) -> str:
    window = {"kernel_shape": [spec.kernel_size] * 2, "strides": [spec.stride] * 2, "pads": [spec.kernel_size // 2] * 4}
    return g.node("MaxPool", [x], name, **window)


def _pad(g: Graph, x: str, name: str, spec: BlockSpec) -> str:
    before, after = padding(spec)
    ends = np.array([0, 0, before, before, 0, 0, after, after], np.int64)
    return g.node("Pad", [x, g.constant(f"{name}.ends", ends)], name)


def _pool(g: Graph, x: str, name: str, spec: BlockSpec) -> str:
    x = g.activation(spec.act, x, f"{name}.act")
    return g.node("Flatten", [g.node("GlobalAveragePool", [x], f"{name}.mean")], name, axis=1)


def _linear(g: Graph, x: str, name: str, spec: BlockSpec) -> str:
    out = g.layer("Gemm", x, name, (spec.out_channels, spec.in_channels), bias=spec.bias, transB=1)
    return g.activation(spec.act, out, f"{name}.act")


def _relu_conv(g: Graph, x: str, name: str, spec: BlockSpec) -> str:
    x = g.activation("relu", x, f"{name}.relu")
    return g.conv(x, name, spec.in_channels, spec.out_channels, spec.kernel_size, spec.stride)


def _factorized_reduce(g: Graph, x: str, name: str, spec: BlockSpec) -> str:
    # both convolutions as one with a kernel of 2x2, half of it zeros: no slice, no concatenation, one thing to round
    return g.conv(g.activation("relu", x, f"{name}.relu"), name, spec.in_channels, spec.out_channels, 2, 2)


def _sep_conv(g: Graph, x: str, name: str, spec: BlockSpec) -> str:
    channels = spec.in_channels
    for number, stride, out in ((1, spec.stride, channels), (2, 1, spec.out_channels)):
        x = g.activation("relu", x, f"{name}.relu{number}")
        x = g.conv(x, f"{name}.depthwise{number}", channels, channels, spec.kernel_size, stride, groups=channels, bias=False)
        x = g.conv(x, f"{name}.pointwise{number}", channels, out)
    return x


def _relu_sep(g: Graph, x: str, name: str, spec: BlockSpec, *, dilation: int = 1) -> str:
    channels, window = spec.in_channels, (spec.kernel_size, spec.stride)
    x = g.activation("relu", x, f"{name}.relu")
    x = g.conv(x, f"{name}.depthwise", channels, channels, *window, groups=channels, bias=False, dilation=dilation)
    return g.conv(x, f"{name}.pointwise", channels, spec.out_channels)


def _row_column_conv(g: Graph, x: str, name: str, spec: BlockSpec) -> str:
    k, s, pad = spec.kernel_size, spec.stride, spec.kernel_size // 2
    x = g.activation("relu", x, f"{name}.relu")
    row = {"kernel_shape": [1, k], "strides": [1, s], "pads": [0, pad, 0, pad]}
    x = g.layer("Conv", x, f"{name}.row", (spec.in_channels, spec.in_channels, 1, k), bias=False, **row)
    column = {"kernel_shape": [k, 1], "strides": [s, 1], "pads": [pad, 0, pad, 0]}
    return g.layer("Conv", x, f"{name}.column", (spec.out_channels, spec.in_channels, k, 1), bias=True, **column)


def _basic(g: Graph, x: str, name: str, spec: BlockSpec) -> str:
    out = g.activation("relu", x, f"{name}.relu1")
    out = g.conv(out, f"{name}.conv1", spec.in_channels, spec.out_channels, spec.kernel_size, spec.stride, act="relu")
    out = g.conv(out, f"{name}.conv2", spec.out_channels, spec.out_channels, spec.kernel_size)
    return _add_shortcut(g, x, out, name, spec)


def _avgpool(g: Graph, x: str, name: str, spec: BlockSpec) -> str:
    window = {"kernel_shape": [spec.kernel_size] * 2, "strides": [spec.stride] * 2, "pads": [spec.kernel_size // 2] * 4}
    return g.node("AveragePool", [x], name, count_include_pad=0, **window)


def _norm(g: Graph, x: str, name: str, spec: BlockSpec) -> str:
    return g.conv(x, name, spec.in_channels, spec.in_channels, groups=spec.in_channels, act=spec.act)


def _sum(g: Graph, x: str, name: str, spec: BlockSpec, *others: str) -> str:
    for number, other in enumerate(others, 1):
        x = g.node("Add", [x, other], name if number == len(others) else f"{name}.{number}")
    return x


def _concat(g: Graph, x: str, name: str, spec: BlockSpec, *others: str) -> str:
    return g.node("Concat", [x, *others], name, axis=1)


def _shuffle(g: Graph, x: str, name: str, spec: BlockSpec) -> str:
    (before, after), hidden = branch_channels(spec), spec.hidden_channels
    kept, read = _halves(g, x, name, spec)
    out = g.conv(read, f"{name}.branch.expand", before, hidden, act=spec.act)
    out = g.conv(out, f"{name}.branch.depthwise", hidden, hidden, spec.kernel_size, spec.stride, groups=hidden)
    out = g.conv(out, f"{name}.branch.project", hidden, after, act=spec.act)
    return _stack_halves(g, kept, out, name, spec)


def _xception(g: Graph, x: str, name: str, spec: BlockSpec) -> str:
    before, last = branch_channels(spec)
    kept, out = _halves(g, x, name, spec)
    for number, stride, after in ((1, spec.stride, spec.hidden_channels), (2, 1, spec.hidden_channels), (3, 1, last)):
        out = g.conv(out, f"{name}.branch.depthwise{number}", before, before, spec.kernel_size, stride, groups=before)
        out = g.conv(out, f"{name}.branch.pointwise{number}", before, after, act=spec.act)
        before = after
    return _stack_halves(g, kept, out, name, spec)


def _halves(g: Graph, x: str, name: str, spec: BlockSpec) -> tuple[str, str]:
    """What a choice block hands on or projects, and what its branch reads: the even and the odd channels, or both all of them."""
    if spec.stride > 1:
        return x, x
    step, end = (g.constant(f"const.int{value}", np.array([value], np.int64)) for value in (2, spec.in_channels))
    first, second = (g.constant(f"const.int{value}", np.array([value], np.int64)) for value in (0, 1))
    even, odd = ([x, start, end, second, step] for start in (first, second))  # along axis 1
    return g.node("Slice", even, f"{name}.kept"), g.node("Slice", odd, f"{name}.read")


def _stack_halves(g: Graph, kept: str, branch: str, name: str, spec: BlockSpec) -> str:
    if spec.stride > 1:  # only now: while the branch is at its widest, nothing but the input waits
        channels, window = spec.in_channels, (spec.kernel_size, spec.stride)
        kept = g.conv(kept, f"{name}.projection.depthwise", channels, channels, *window, groups=channels)
        kept = g.conv(kept, f"{name}.projection.pointwise", channels, channels, act=spec.act)
    return g.node("Concat", [kept, branch], name, axis=1)


def _zeros(g: Graph, x: str, name: str, spec: BlockSpec) -> str:
    return g.node("Sub", [x, x], name)


EMITTERS: dict[str, Callable[..., str]] = {
    "conv": _conv,
    "mbconv": _mbconv,
    "bottleneck": _bottleneck,
    "maxpool": _maxpool,
    "pad": _pad,
    "pool": _pool,
    "linear": _linear,
    "relu_conv": _relu_conv,
    "factorized_reduce": _factorized_reduce,
    "sep_conv": _sep_conv,
    "dil_conv": partial(_relu_sep, dilation=2),
    "relu_sep": _relu_sep,
    "row_column_conv": _row_column_conv,
    "avgpool": _avgpool,
    "basic": _basic,
    "norm": _norm,
    "sum": _sum,
    "concat": _concat,
    "zeros": _zeros,
    "shuffle": _shuffle,
    "xception": _xception,
}
