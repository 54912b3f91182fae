"""Write BlockSpecs as an ONNX graph: the one emitter for what is timed and for what ships.

With constant-filled weights (ConstantOfShape nodes, which runtimes fold when they load the file) the graphs are tiny and
a device can time every block of a space; with folded trained weights the same graph is the file that ships.
Opset 17, IR 8 unless asked otherwise: read by ONNX Runtime from 1.12 on.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping
from string import ascii_letters

import onnx
from onnx import TensorProto, defs, helper

from deploy.emitters import EMITTERS
from deploy.graphs import UINT16_OPSET, Graph, HalfGraph, QuantizedGraph, Scales, Weights
from deploy.precision import FLOATS, Grid, PrecisionError, grid_of
from ofa.block_spec import IMAGES, BlockSpec, wiring
from ofa.errors import OfaError

OPSET, LEAST_OPSET = 17, 13  # quantisation for each channel came with 13


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
