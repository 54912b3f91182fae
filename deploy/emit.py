"""Write BlockSpecs as an ONNX graph: the one emitter for what is timed and for what ships.

With constant-filled weights (ConstantOfShape nodes, which runtimes fold when they load the file) the graphs are tiny and
a device can time every block of a space; with folded trained weights the same graph is the file that ships.
Opset 17, IR 8 unless asked otherwise: read by ONNX Runtime from 1.12 on.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from string import ascii_letters

import numpy as np
import onnx
from onnx import TensorProto, defs, helper

from deploy.graphs import UINT16_OPSET, Graph, HalfGraph, QuantizedGraph, Scales, Weights
from deploy.precision import FLOATS, Grid, PrecisionError, grid_of
from ofa.block_spec import IMAGES, BlockSpec, padding, wiring
from ofa.errors import OfaError
from ofa.shufflenet import branch_channels
from ofa.slots import se_channels

OPSET, LEAST_OPSET = 17, 13  # quantisation for each channel came with 13


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


def emit(
    blocks: Mapping[str, BlockSpec],
    weights: Weights | None = None,
    *,
    precision: str = "fp32",
    scales: Scales | None = None,
    layers: Mapping[str, str] | None = None,
    opset: int | None = None,
    metadata: Mapping[str, str] | None = None,
) -> bytes:
    """Return the bytes of an ONNX model that runs the blocks in order, equal for equal input.

    Args:
        blocks: name -> block, in execution order; each reads the one before, or what its wiring says (ofa.block_spec.Blocks).
        weights: folded weights under "<block>.<layer>.weight" / ".bias" (deploy.export.fold); None = constants.
        precision: of the network, see deploy.precision; blocks with bits of their own have those in any.
        scales: in integers only: (scale, zero point) of every activation on the network's grid, by its tensor's name in the fp32
            graph; None = constants.
        layers: in integers only: layer (one of `layer_names`) -> precision, where it is another than the network's; "fp32" leaves
            the layer in float.
        opset: 13 or later; None = 17, or 21 where 16-bit integers need it.
        metadata: key -> text for the file's metadata_props.

    Raises:
        OfaError: if no such graph can be written.
    """
    graph = _graph(weights, precision, scales, layers or {}, opset, block_bits(blocks))
    specs = list(blocks.values())
    graph.output(_write(graph, blocks, graph.input(IMAGES)), "logits")
    first, last = specs[0], specs[-1]
    for name in sorted(layers or {}):
        if (own := graph.bits_of(name)) is not None and name in _layers(graph):
            raise PrecisionError(f"layer {name}: its architecture gives it {own}, which it was trained with; leave it out")
        if name not in _layers(graph):
            raise OfaError(f"layer {name!r} is not one of this network; it has: {', '.join(_layers(graph))}")
    opsets = [helper.make_opsetid("", graph.opset)]
    model = helper.make_model(
        helper.make_graph(
            graph.nodes,
            "ofa",
            [helper.make_tensor_value_info(IMAGES, TensorProto.FLOAT, ["batch", *input_shape(first)])],
            [helper.make_tensor_value_info("logits", TensorProto.FLOAT, _output_shape(last))],
            list(graph.initializers.values()),
        ),
        opset_imports=opsets,
        ir_version=helper.find_min_ir_version_for(opsets),
        producer_name="ofa-toolkit",
    )
    helper.set_model_props(model, dict(sorted((metadata or {}).items())))
    return model.SerializeToString(deterministic=True)


def choose_opset(opset: int | None, precisions: Iterable[str]) -> int:
    """Return the opset of a file that holds these precisions: the one that is asked for, or the oldest from 17 on that will do.

    Raises:
        OfaError: if it is too old for them, or newer than this onnx.
    """
    grids = map(grid_of, precisions)
    wide = any(grid is not None and grid.activation_bits > 8 for grid in grids)
    least = UINT16_OPSET if wide else LEAST_OPSET
    if opset is None:
        return max(OPSET, least)
    if not least <= opset <= defs.onnx_opset_version():
        what = "activations of more than 8 bits" if wide else "a file"
        raise OfaError(f"opset {opset}: {what} can be written in {least} to {defs.onnx_opset_version()}")
    return opset


def layer_names(blocks: Mapping[str, BlockSpec]) -> list[str]:
    """Return the names of the layers whose precision may be chosen, in execution order: what `layers` of `emit` takes."""
    graph = _drawn(blocks)
    return [name for name in _layers(graph) if graph.bits_of(name) is None]


def layers_of_bits(blocks: Mapping[str, BlockSpec]) -> dict[str, str]:
    """Return layer -> precision of those that have bits of their own, such as "a4w2", in execution order."""
    graph = _drawn(blocks)
    return {name: str(own) for name in _layers(graph) if (own := graph.bits_of(name)) is not None}


def block_bits(blocks: Mapping[str, BlockSpec]) -> dict[str, Grid]:
    """Return block -> grid of those that have bits of their own."""
    return {name: Grid(spec.activation_bits, spec.weight_bits) for name, spec in blocks.items() if spec.weight_bits}


def _drawn(blocks: Mapping[str, BlockSpec]) -> Graph:
    graph = Graph(None, OPSET, block_bits(blocks))
    _write(graph, blocks, IMAGES)
    return graph


def _write(graph: Graph, blocks: Mapping[str, BlockSpec], images: str) -> str:
    """Append all blocks and return the name of the last one's output."""
    states = {IMAGES: images}
    out = images
    for name, sources in wiring(blocks).items():
        first, *others = (states[source] for source in sources)
        out = states[name] = EMITTERS[blocks[name].kind](graph, first, name, blocks[name], *others)
    return out


def _layers(graph: Graph) -> list[str]:
    return [node.name.rpartition(".")[0] for node in graph.nodes if node.op_type in ("Conv", "Gemm")]


def _graph(
    weights: Weights | None,
    precision: str,
    scales: Scales | None,
    layers: Mapping[str, str],
    opset: int | None,
    bits: Mapping[str, Grid],
) -> Graph:
    """Return the empty graph of a precision.

    Raises:
        OfaError: if the parts do not go together.
    """
    grid = grid_of(precision)
    if bits and precision == "fp16":
        raise PrecisionError(
            f"{precision}: block {next(iter(bits))} has bits of its own, and integers stand beside fp32 or other integers; "
            "choose fp32 or int8"
        )
    for name, other in layers.items():
        if grid is None:
            raise PrecisionError(
                f"layer {name}: {other} in a network of {precision}; layers differ in integer ones only, e.g. int8"
            )
        if other == "fp16":
            raise PrecisionError(f"layer {name}: fp16 in a network of {precision}; leave it in fp32")
    if grid is not None and (weights is None) != (scales is None):
        raise OfaError(f"{precision} needs the scales of all activations with trained weights, and no scales with constant ones")
    opset = choose_opset(opset, [precision, *layers.values()])
    if precision in FLOATS:
        return (HalfGraph if precision == "fp16" else Graph)(weights, opset, bits)
    assert grid is not None
    return QuantizedGraph(weights, opset, grid, scales, layers, bits)


def input_shape(spec: BlockSpec) -> list[int]:
    """Shape of a block's input without the batch; linear layers stand after pooling and have no height and width."""
    return [spec.in_channels] if spec.kind == "linear" else [spec.in_channels, spec.resolution, spec.resolution]


def _output_shape(spec: BlockSpec) -> list[int | str]:
    if spec.kind in ("pool", "linear"):
        return ["batch", spec.out_channels]
    return ["batch", spec.out_channels, spec.out_resolution, spec.out_resolution]


def short_names(content: bytes) -> bytes:
    """Return the same model with tensors named a, b, ...: names are 3 % of a small file in integers. Layers keep theirs."""
    model = onnx.load_from_string(content)
    graph = model.graph
    kept = {value.name for value in (*graph.input, *graph.output)}
    tensors = [*(tensor.name for tensor in graph.initializer), *(name for node in graph.node for name in node.output)]
    letters = (first + second for first in ("", *ascii_letters) for second in ascii_letters)
    numbers = (f"t{number}" for number in itertools.count())
    short = dict(zip((name for name in tensors if name not in kept), itertools.chain(letters, numbers), strict=False))
    for tensor in graph.initializer:
        tensor.name = short.get(tensor.name, tensor.name)
    for node in graph.node:
        node.name = node.name if node.op_type in ("Conv", "Gemm") else ""
        for names in (node.input, node.output):
            names[:] = [short.get(name, name) for name in names]
    return model.SerializeToString(deterministic=True)
